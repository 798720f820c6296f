"""Replace each weight by the two thin factors that keep its outputs best, by an SVD in whitened inputs.

    C = XᵀX = S Sᵀ [in, in];  W S ~ U Σ Vᵀ cut to rank r;  B A = U Σ Vᵀ S⁻¹,  B [out, r], A [r, in]
    minimises ||X (W - BA)ᵀ||, and leaves exactly the squares of the singular values cut off
    r = floor(ratio * out * in / (out + in)),  at least one and at most min(out, in)

Needs the Gram matrix, in float64. Stores what factorize.svd stores. The inputs are those of the compressed
prefix (calibration order sequential), so the paper's later refit of B to them changes nothing here. The
mathematics is that of compensate.eora with nothing before it; damping the Gram matrix is not needed in this
form. Usable without training down to about 0.7 of the weights on large models, less far on small ones.
Wang et al., SVD-LLM, arXiv 2403.07378, section 3.
"""

from backend.costs import Cost
from backend.parameters import KeptRatio
from backend.parts import LowRank, Part
from backend.registry import Claim, method
from backend.sizes import factor_bytes, factor_rank
from backend.solvers.lowrank import projected_error
from backend.views import Layer


@method(
    paper="arXiv:2403.07378",
    cost=Cost("svd", 1.6),
    needs="gram",
    stored=factor_bytes,
    claim=Claim(
        "Factors of 0.8 of the linears lose less than leaving out a quarter of the MLP channels",
        whose="ours",
        paper_says="SVD-LLM loses far less than plain SVD, which breaks small models at this size.",
        better=({"method": "factorize.svdllm", "params": {"ratio": 0.8}},),
        worse=({"method": "prune.width", "params": {"ratio": 0.25, "units": "channels"}},),
    ),
)
def svdllm(layer: Layer, *, ratio: KeptRatio = 0.8) -> tuple[Part, ...]:
    """Low-rank part in place of the weight so far."""
    weight = layer.now
    left, right = projected_error(weight, layer.statistics, factor_rank(weight.shape, ratio))
    return (LowRank.of(left, right, layer.dtype),)
