"""Fit a low-rank part to the weights that pruning took, and let the kept weights carry the rest.

    P keeps the pruned positions of a matrix [out, in], d [in] the sizes of the input channels, or ones
    min over B [out, rank], A [rank, in] of ||P ((W - B A) diag(d))||²;  Ŵ = (W - B A on kept positions) + B A

What B A does at kept positions costs nothing, for the kept value stored there absorbs it: the fit is a
completion of W from its pruned entries, where an SVD of the error spends rank on making zeros at kept ones.
Alternating minimisation in float64 from that SVD, so it never fits worse. The paper proves that steps which
are solved in part converge too, which pays for ranks of hundreds; here each step is solved exactly.
Right after pruning only: values on a grid cannot absorb. The kept values become W - B A, so an update of them
by the pruning method is lost. Stores the mask and values of pruning, and what compensate.svd stores.
Knows the sizes of channels and not how they move together, which compensate.eora does without moving kept
values: which of the two leaves less output error differs from layer to layer.
Gu et al., Low rank matrix completion via robust alternating minimization, arXiv 2302.11068.
"""

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field

from backend.costs import Cost
from backend.errors import UserError
from backend.parameters import FactorBits, Rank
from backend.parts import Part, Sparse
from backend.registry import Claim, method
from backend.solvers.completion import completed
from backend.solvers.lowrank import channel_sizes, stored, truncated_error
from backend.views import Layer

Weighting = Annotated[
    Literal["rms", "none"], Field(description="rms: pruned weights count by the size of their input channel")
]
Sweeps = Annotated[int, Field(ge=1, le=100, description="Times that each factor is fitted to the other")]
_WANDA = {"method": "prune.wanda", "params": {"pattern": "2:4"}}


@method(
    paper="arXiv:2302.11068",
    cost=Cost("svd", 31, {"sweeps": 5}),
    needs="norms",
    follows="prune",
    claim=Claim(
        "Fitting the pruned positions alone repairs more of 2:4 pruning than a plain SVD of the error",
        whose="ours",
        paper_says="A theorem: alternating minimisation completes matrices though its steps are rough.",
        better=(_WANDA, {"method": "compensate.completion", "params": {"rank": 64}}),
        worse=(_WANDA, {"method": "compensate.svd", "params": {"rank": 64}}),
    ),
)
def completion(
    layer: Layer,
    *,
    rank: Rank = 64,
    weighting: Weighting = "rms",
    sweeps: Sweeps = 5,
    factor_bits: FactorBits = 16,
) -> tuple[Part, ...]:
    """Kept values that carry the residual, and a low-rank part."""
    kept = layer.kept
    if kept is None or not all(isinstance(part, Sparse) for part in layer.parts):
        raise UserError(
            f"compensate.completion: {layer.name} is not pruned alone; allowed: right after a prune stage"
        )
    weight = layer.weight.double()
    sizes = channel_sizes(layer.statistics, "rms") if weighting == "rms" else torch.ones_like(weight[0])
    scaled, error = weight * sizes, torch.where(kept, 0.0, weight)
    left, right = completed(scaled, ~kept, truncated_error(error * sizes, rank), sweeps)
    seen = partial(torch.mul, sizes.square())
    part = stored((left, right / sizes), factor_bits, layer.dtype, left @ right / sizes, seen)
    return Sparse.keep(layer.weight - part.dense(), kept, layer.dtype), part
