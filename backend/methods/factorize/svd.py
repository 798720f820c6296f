"""Replace each weight by the product of two thin factors, its truncated SVD.

    W [out, in] ~ B A,  B [out, r], A [r, in] the best rank-r approximation in the Frobenius norm
    r = floor(ratio * out * in / (out + in)),  at least one and at most min(out, in)

Needs no data. Stores r (out + in) values in the model's type: `ratio` of the weight's own. Every input
direction counts alike, so a language model breaks at ratios that factorize.svdllm survives; it is the
baseline there. Wang et al., SVD-LLM (baseline "SVD"), arXiv 2403.07378.
"""

from backend.costs import Cost
from backend.parameters import KeptRatio
from backend.parts import LowRank, Part
from backend.registry import method
from backend.sizes import factor_bytes, factor_rank
from backend.solvers.lowrank import truncated_error
from backend.views import Layer


@method(paper="arXiv:2403.07378", cost=Cost("svd"), stored=factor_bytes)
def svd(layer: Layer, *, ratio: KeptRatio = 0.8) -> tuple[Part, ...]:
    """Low-rank part in place of the weight so far."""
    weight = layer.now
    left, right = truncated_error(weight, factor_rank(weight.shape, ratio))
    return (LowRank.of(left, right, layer.dtype),)
