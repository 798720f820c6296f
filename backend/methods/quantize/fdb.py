"""Split each 2-bit code into two sparse planes of zeros and ones, with a positive and a negative scale.

    ŵ = a b_1 + c b_2,  b in {0, 1},  a > 0 > c:  levels c, 0, a + c and a
    `range`:          the grid -1, 0, 1, 2 times s = max |w| / 2:  a = 2 s,  c = -s
    `least_squares`:  from there in turn nearest levels and (a, c) = argmin |w - B (a, c)|², `rounds` times

Needs no data. Stores 2 + 32 / group_size bits per weight. Zero is always a level, so most bits of both planes
are zero on weights that gather around it, which a kernel can skip; the file stores them all. The paper goes
on to train both scales on text: this is the start of that, and by itself it leaves most models broken. It has
less weight error than rounding to 2 bits, yet often more output error, where few large weights matter most.
With a mask the scales are fitted to the kept weights. Chen et al., DB-LLM, arXiv 2402.11960.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from backend.costs import Cost
from backend.parameters import GroupSize
from backend.parts import Part
from backend.registry import Claim, method
from backend.sizes import SCALE_BITS, Matrix, plane_bytes
from backend.solvers.planes import fit_planes, in_float16, patterns, quantize_planes, row_block
from backend.views import Layer

Start = Annotated[
    Literal["range", "least_squares"],
    Field(description="Scales from the largest weight, as in the paper, or fitted to all of a group"),
]
Rounds = Annotated[int, Field(ge=1, le=100, description="Rounds of the least-squares start")]


def _stored(matrix: Matrix, params: Mapping[str, Any]) -> int:
    return plane_bytes(matrix, 2, matrix.groups(params["group_size"]), 2 * SCALE_BITS)


@method(
    paper="arXiv:2402.11960",
    cost=Cost("round", 51, {"rounds": 8}),
    stored=_stored,
    claim=Claim(
        "In the first block alone, planes fitted by least squares lose less than planes scaled by the range",
        whose="ours",
        paper_says="DB-LLM starts from the range and distils all blocks, and beats other 2-bit methods.",
        better=({"method": "quantize.fdb", "params": {"start": "least_squares"}, "only": "*.0.*"},),
        worse=({"method": "quantize.fdb", "params": {"start": "range"}, "only": "*.0.*"},),
        metric="divergence.kl",
    ),
)
def fdb(
    layer: Layer, *, group_size: GroupSize = 64, start: Start = "least_squares", rounds: Rounds = 8
) -> tuple[Part, ...]:
    """Two planes of the weight so far."""
    known = patterns(2, signed=False, offset=False, device=layer.weight.device)

    def fit(values: Tensor, counted: Tensor | None) -> Tensor:
        top = (values if counted is None else values * counted).abs().amax(dim=1)
        begun = torch.stack([top, -top / 2], dim=1)
        return fit_planes(values, counted, begun, known, rounds if start == "least_squares" else 0, _signed)

    block = row_block(layer.weight.shape[1], group_size)
    return (quantize_planes(layer.now, None, fit, known, block, signed=False, offset=False, kept=layer.kept),)


def _signed(scales: Tensor) -> Tensor:
    """Scales [groups, 2] as stored, the first not negative and the second not positive."""
    return in_float16(torch.stack([scales[:, 0].clamp(min=0), scales[:, 1].clamp(max=0)], dim=1))
