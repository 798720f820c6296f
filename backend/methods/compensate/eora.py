"""Add the rank-r factors that leave the least output error on the calibration text.

    E = W - Ŵ [out, in],  C = XᵀX = Q Λ Qᵀ [in, in];  E' = E Q Λ^½,  [E']_r its truncated SVD
    B A = [E']_r Λ^-½ Qᵀ  minimises ||X (E - BA)ᵀ||,  B [out, rank], A [rank, in];  y += (x Aᵀ) Bᵀ

Needs the Gram matrix of the layer's inputs (uncentred), and works in float64: clamping the spectrum of C at
float32's precision would throw most directions away. Stores what compensate.svd stores; with `energy` below
one the rank stops where that share of ||X Eᵀ||² is repaired, and a run's card draws what is left against the
rank. With a `text` of its own, C is gathered on that one, of what the stages before it made, each block after
the compensated ones before it.
Compensates pruning, quantization and both together; on a small model a rank that helps costs many bits per
weight, so look at the bytes and not at the rank.
Liu et al., EoRA, arXiv 2410.21271, algorithm 1.
"""

from backend.costs import Cost
from backend.parameters import Energy, FactorBits, OwnText, Rank
from backend.parts import Part
from backend.registry import Claim, method
from backend.solvers.lowrank import left_by_rank, projected_error, stored
from backend.views import Layer

_POINTS = 33
_LEFT = "share of the missed output left, from rank 0 to that of the factors, not yet rounded"


@method(
    paper="arXiv:2410.21271",
    cost=Cost("svd", 1.8),
    needs="gram",
    claim=Claim(
        "EoRA repairs more of 2:4 pruning than a plain SVD of the error at the same rank",
        whose="paper",
        better=(
            {"method": "prune.wanda", "params": {"pattern": "2:4"}},
            {"method": "compensate.eora", "params": {"rank": 64}},
        ),
        worse=(
            {"method": "prune.wanda", "params": {"pattern": "2:4"}},
            {"method": "compensate.svd", "params": {"rank": 64}},
        ),
    ),
)
def eora(
    layer: Layer,
    *,
    rank: Rank = 64,
    energy: Energy = 1.0,
    factor_bits: FactorBits = 16,
    text: OwnText = "",
) -> tuple[Part, ...]:
    """The parts so far and a low-rank part for what their outputs miss."""
    assert layer.statistics.gram is not None
    error, gram = layer.weight - layer.now, layer.statistics.gram.double()
    factors = projected_error(error, layer.statistics, rank, energy)
    if left := left_by_rank(error, factors, gram, _POINTS):
        layer.curves[_LEFT] = left
    return (*layer.parts, stored(factors, factor_bits, layer.dtype, error, lambda rows: rows @ gram))
