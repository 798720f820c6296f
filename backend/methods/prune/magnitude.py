"""Zero the weights with the smallest absolute value.

    score = |W| [out, in];  free: drop the int(n * sparsity) lowest of the whole matrix, or of each row
    N:M: keep the N highest of every M consecutive inputs

Needs no data. Kept weights are unchanged. Stores a packed mask and the kept values.
The weakest of the pruning methods: it ignores that some inputs are far larger than others.
The baseline of the pruning literature (Han et al., arXiv 1506.02626).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from backend.costs import Cost
from backend.parameters import Pattern, Sparsity
from backend.parts import Part, Sparse
from backend.registry import method
from backend.sizes import kept_by_row
from backend.solvers.masks import keep_largest, keep_pattern
from backend.views import Layer

Scope = Annotated[
    Literal["matrix", "row"], Field(description="Compare weights within the matrix or within a row")
]


def _keeps(rows: int, inputs: int, params: Mapping[str, Any]) -> int:
    if params["scope"] == "row":
        return kept_by_row(rows, inputs, params)
    return kept_by_row(1, rows * inputs, params)


@method(paper="arXiv:1506.02626", cost=Cost("round", 17), keeps=_keeps)
def magnitude(
    layer: Layer, *, sparsity: Sparsity = 0.5, pattern: Pattern = "free", scope: Scope = "matrix"
) -> tuple[Part, ...]:
    """Sparse part of the largest weights."""
    weight = layer.now
    score = weight.abs()
    if pattern != "free":
        kept = keep_pattern(score, pattern)
    elif scope == "row":
        kept = keep_largest(score, sparsity)
    else:
        kept = keep_largest(score.reshape(1, -1), sparsity).view(weight.shape)
    return (Sparse.keep(weight, kept if layer.kept is None else kept & layer.kept, layer.dtype),)
