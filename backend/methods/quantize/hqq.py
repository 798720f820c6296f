"""Move each group's zero point to where the weights' errors are small in the l_p norm, p below one.

    W [out, in] in groups:  s = (max - min) / (2**bits - 1),  c = clamp(round(w / s + z), 0, 2**bits - 1)
    min over z of sum |w - s (c - z)|**p, by half-quadratic splitting:
    e = shrink_p(w - s (c - z), β),   z = mean over the group of c - (w - e) / s,   β grows by κ each round
    shrink_p(r, β) = sign(r) max(|r| - |r|**(p - 1) / β, 0)

`axis` says what a group runs along: the outputs of one input, or the inputs of one output (axis 0 and 1 of
the authors, who advise 0 at few bits); along outputs loud and soft inputs have grids of their own.
Needs no data. Stores bits + 32 / group_size bits per weight: scale and zero are float16. Where groups do not
divide, the last one is shorter. Each group keeps the best zero of all rounds, the start among them, so its
l_p error is never above that of rounding from the same start: with a float zero, or with `round_zero` a whole
one (what the authors take at 4 bits). With that start, and at 4 bits, groups along inputs may lose less.
Sees weights only: where there is a calibration text, GPTQ loses far less.
Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models,
https://mobiusml.github.io/hqq_blog/ (2023).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from backend.coded import Grid, in_groups
from backend.costs import Cost
from backend.parameters import Bits, GroupSize
from backend.parts import Part
from backend.registry import Claim, method
from backend.sizes import Matrix, float_zero_bytes
from backend.solvers.grids import fit_float_grid
from backend.views import Layer

_GROWTH = 1.01

Norm = Annotated[float, Field(gt=0.0, le=1.0, description="p of the norm; smaller values mind outliers less")]
Beta = Annotated[float, Field(gt=0.0, description="First weight of the split; larger values shrink less")]
Rounds = Annotated[int, Field(ge=0, le=1000, description="Rounds of the splitting; 0 is float-zero rounding")]
Axis = Annotated[
    Literal["outputs", "inputs"],
    Field(description="What a group runs along: the outputs of one input, or the inputs of one output"),
]
RoundZero = Annotated[bool, Field(description="Start from zero points that are whole numbers")]


def _stored(matrix: Matrix, params: Mapping[str, Any]) -> int:
    turned = replace(matrix, rows=matrix.inputs, inputs=matrix.rows)
    return float_zero_bytes(turned if params["axis"] == "outputs" else matrix, params)


@method(
    paper="https://mobiusml.github.io/hqq_blog/",
    cost=Cost("round", 66, {"rounds": 20}),
    stored=_stored,
    pads=True,
    claim=Claim(
        "At 3 bits, moving the zero point loses less than rounding with a float zero in the same groups",
        whose="ours",
        paper_says="HQQ is as good as methods that need calibration, in a fraction of their time.",
        better=({"method": "quantize.hqq", "params": {"bits": 3, "group_size": 64}},),
        worse=({"method": "quantize.hqq", "params": {"bits": 3, "group_size": 64, "rounds": 0}},),
    ),
)
def hqq(
    layer: Layer,
    *,
    bits: Bits = 4,
    group_size: GroupSize = 64,
    norm: Norm = 0.7,
    beta: Beta = 10.0,
    rounds: Rounds = 20,
    axis: Axis = "outputs",
    round_zero: RoundZero = False,
) -> tuple[Part, ...]:
    """Grid part of the weight so far with float zeros, transposed where groups run along outputs."""
    weight, kept = layer.now, layer.kept
    turned = axis == "outputs"

    def grouped_of(matrix: Tensor) -> Tensor:
        return in_groups(matrix.T if turned else matrix, group_size)

    grouped, there = grouped_of(weight), grouped_of(torch.ones_like(weight))
    counted = there if kept is None else grouped_of(kept.float())
    # What fills up a shorter last group must not widen its range.
    scales, zeros = fit_float_grid(torch.where(there > 0, grouped, grouped[..., :1]), bits)
    start = zeros.round() if round_zero else zeros
    best = _moved(grouped, counted, scales.float(), start, bits, norm, beta, rounds)
    return (Grid.encode(weight, scales, best, bits, group_size, kept, turned),)


def _moved(
    grouped: Tensor,
    counted: Tensor,
    scales: Tensor,
    zeros: Tensor,
    bits: int,
    norm: float,
    beta: float,
    rounds: int,
) -> Tensor:
    """The best zeros float16 [rows, groups] of weights [rows, groups, group], of which `counted` are kept."""
    units, scale = grouped / scales[..., None], scales[..., None]
    amount = counted.sum(dim=-1).clamp(min=1)
    best, least = zeros, torch.full_like(scales, torch.inf)
    zero = zeros
    for round_ in range(rounds + 1):
        stored = zero.float()[..., None]
        codes = (units + stored).round_().clamp_(0, 2**bits - 1)
        error = grouped - scale * (codes - stored)
        size = error.abs().clamp_(min=1e-12)
        lost = (size.pow(norm) * counted).sum(dim=-1)
        better = lost < least
        best, least = torch.where(better, zero, best), torch.where(better, lost, least)
        if round_ == rounds:
            break
        shrunk = error.sign() * (size - size.pow(norm - 1) / (beta * _GROWTH**round_)).clamp_(min=0)
        moved = ((codes - (grouped - shrunk) / scale) * counted).sum(dim=-1) / amount
        # As stored: what is judged in the next round is what will be decoded.
        zero = moved.clamp(-60000.0, 60000.0).half()
    return best
