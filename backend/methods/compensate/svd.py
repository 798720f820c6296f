"""Add the best rank-r approximation of the weight error beside the compressed weight.

    E = W - Ŵ [out, in];  B A = truncated SVD of E,  B [out, rank], A [rank, in];  y += (x Aᵀ) Bᵀ

Needs no data. Stores rank * (out + in) values on top of what it compensates, in the model's type, or as codes
of 4 or 8 bits with a scale and a zero point for each 64 of a column of B or a row of A; B is then fitted anew
to A as stored. With `energy` below one the rank stops where that share of ||E||² is repaired.
Every input direction counts alike, so much of the rank goes where the inputs never point; compare
compensate.eora at the same rank.
Yao et al., ZeroQuant-V2 (low-rank compensation), arXiv 2303.08302.
"""

from backend.costs import Cost
from backend.parameters import Energy, FactorBits, Rank
from backend.parts import Part
from backend.registry import Claim, method
from backend.solvers.lowrank import stored, truncated_error
from backend.views import Layer


@method(
    paper="arXiv:2303.08302",
    cost=Cost("svd"),
    claim=Claim(
        "Adding a low-rank part for the error recovers quality that rounding lost, for its extra bytes",
        whose="paper",
        better=(
            {"method": "quantize.rtn", "params": {"bits": 3, "group_size": 64}},
            {"method": "compensate.svd", "params": {"rank": 64}},
        ),
        worse=({"method": "quantize.rtn", "params": {"bits": 3, "group_size": 64}},),
        more_bytes=True,
    ),
)
def svd(
    layer: Layer, *, rank: Rank = 64, energy: Energy = 1.0, factor_bits: FactorBits = 16
) -> tuple[Part, ...]:
    """The parts so far and a low-rank part for what they miss."""
    error = layer.weight - layer.now
    return (*layer.parts, stored(truncated_error(error, rank, energy), factor_bits, layer.dtype, error))
