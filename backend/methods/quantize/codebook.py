"""Give each weight the nearest of a table's levels, scaled by the largest weight of its group.

    m = max |w| over the group [out, groups];  c = argmin_k |w / m - table_k|;  ŵ = m table_c

Tables, all scaled to a largest level of one: nf2, nf3, nf4 are quantiles of the normal distribution (QLoRA);
e2m1 is the 4-bit float of the OCP formats; fp4 is the 4-bit float of bitsandbytes; or write the levels
themselves, such as -1, -0.3, 0, 0.3, 1. `double` stores the scales as 8-bit codes, with a step for each 256
and one centre (QLoRA uses a dynamic 8-bit table there; the uniform one here costs the same bytes).
Needs no data. Stores ceil(log2 levels) + 16 / group_size bits per weight, or + 8 / group_size + 32 / (256
group_size) with `double`, and the table once per linear. Groups lie along a row, they never run across rows.
Dettmers et al., QLoRA, arXiv 2305.14314, section 3.
"""

from collections.abc import Mapping
from statistics import NormalDist
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from backend.coded import SCALES_A_STEP, Codebook, groups_of
from backend.costs import Cost
from backend.parameters import GroupSize
from backend.parts import Part
from backend.registry import Claim, method
from backend.sizes import SCALE_BITS, Matrix, whole_bytes
from backend.views import Layer

# Half of the probability left out beyond the outermost quantile, as in QLoRA's appendix E.
_OUTERMOST = 0.9677083
_FLOATS = {
    "e2m1": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
    "fp4": (0.0, 0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0),
}


def _known(table: str) -> str:
    levels(table)
    return table


Table = Annotated[
    str,
    Field(max_length=4000, description="nf2, nf3, nf4, e2m1, fp4, or the levels such as -1, -0.3, 0, 0.3, 1"),
    AfterValidator(_known),
]
Double = Annotated[bool, Field(description="Quantize the scales to 8 bits too")]


def levels(table: str) -> tuple[float, ...]:
    """The levels in rising order, the largest magnitude being one; ValueError with what is allowed."""
    if table in ("nf2", "nf3", "nf4"):
        half = 2 ** (int(table[2]) - 1)
        found = [0.0, *_quantiles(half), *(-value for value in _quantiles(half - 1))]
    elif table in _FLOATS:
        found = [sign * value for value in _FLOATS[table] for sign in (1, -1)]
    else:
        try:
            found = [float(piece) for piece in table.split(",")]
        except ValueError:
            found = []
    exact = sorted(set(found))
    largest = max((abs(value) for value in exact), default=0.0)
    if not 2 <= len(exact) <= 256 or not 0 < largest < 1e30:
        raise ValueError("nf2, nf3, nf4, e2m1, fp4, or 2 to 256 different numbers with commas between them")
    return tuple(value / largest for value in exact)


def _stored(matrix: Matrix, params: Mapping[str, Any]) -> int:
    groups, count = matrix.groups(params["group_size"]), len(levels(params["table"]))
    codes = whole_bytes(matrix.kept * max(1, (count - 1).bit_length()))
    steps = -(-groups // SCALES_A_STEP)
    return codes + 4 * count + (groups + 4 * (1 + steps) if params["double"] else groups * SCALE_BITS // 8)


@method(
    paper="arXiv:2305.14314",
    cost=Cost("round", 4.7),
    stored=_stored,
    pads=True,
    claim=Claim(
        "NF4 loses less than a symmetric 4-bit grid at blocks of 64",
        whose="paper",
        better=({"method": "quantize.codebook", "params": {"table": "nf4", "group_size": 64}},),
        worse=({"method": "quantize.rtn", "params": {"bits": 4, "group_size": 64, "symmetric": True}},),
        more_bytes=True,
    ),
)
def codebook(
    layer: Layer, *, table: Table = "nf4", group_size: GroupSize = 64, double: Double = False
) -> tuple[Part, ...]:
    """Codebook part of the weight so far."""
    weight = layer.now
    grouped = weight.view(weight.shape[0], groups_of(weight.shape[1], group_size), -1)
    known: Tensor = torch.tensor(levels(table), device=weight.device)
    return (Codebook.encode(weight, known, grouped.abs().amax(dim=-1), group_size, layer.kept, double),)


def _quantiles(count: int) -> list[float]:
    """The `count` positive levels of one side, from the outermost quantile to the centre."""
    normal = NormalDist()
    steps = [_OUTERMOST + (0.5 - _OUTERMOST) * number / count for number in range(count)]
    outermost = normal.inv_cdf(_OUTERMOST)
    return [normal.inv_cdf(share) / outermost for share in steps]
