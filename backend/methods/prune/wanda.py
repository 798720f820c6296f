"""Zero, within each output row, the weights with the smallest |weight| times input norm.

    score = |W_ij| * ||x_j||  [out, in];  free: drop the int(in * sparsity) lowest of each row
    N:M: keep the N highest of every M consecutive inputs

Needs the norms of the layer's input channels. Kept weights are unchanged. Stores what prune.magnitude stores.
Works to about 50%; beyond that methods that also update the kept weights lose far less.
Sun et al., Wanda, arXiv 2306.11695, equation 1.
"""

from backend.costs import Cost
from backend.parameters import Pattern, Sparsity
from backend.parts import Part, Sparse
from backend.registry import Claim, method
from backend.sizes import kept_by_row
from backend.solvers.masks import keep_largest, keep_pattern
from backend.views import Layer


@method(
    paper="arXiv:2306.11695",
    cost=Cost("round", 12),
    needs="norms",
    keeps=kept_by_row,
    claim=Claim(
        "Wanda loses less than magnitude pruning at the same sparsity",
        whose="paper",
        better=({"method": "prune.wanda", "params": {"sparsity": 0.5}},),
        worse=({"method": "prune.magnitude", "params": {"sparsity": 0.5}},),
    ),
)
def wanda(layer: Layer, *, sparsity: Sparsity = 0.5, pattern: Pattern = "free") -> tuple[Part, ...]:
    """Sparse part of the weights that matter most to the outputs, one at a time."""
    assert layer.statistics.squares is not None
    weight = layer.now
    score = weight.abs() * layer.statistics.squares.sqrt().float()
    kept = keep_pattern(score, pattern) if pattern != "free" else keep_largest(score, sparsity)
    return (Sparse.keep(weight, kept if layer.kept is None else kept & layer.kept, layer.dtype),)
