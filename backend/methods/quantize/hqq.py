"""Move each group's zero point to where the weights' errors are small in the l_p norm, p below one.

    W [out, in] in groups:  s = (max - min) / (2**bits - 1),  c = clamp(round(w / s + z), 0, 2**bits - 1)
    min over z of sum |w - s (c - z)|**p, by half-quadratic splitting:
    e = shrink_p(w - s (c - z), β),   z = mean over the group of c - (w - e) / s,   β grows by κ each round
    shrink_p(r, β) = sign(r) max(|r| - |r|**(p - 1) / β, 0)

Needs no data. Stores bits + 32 / group_size bits per weight: scale and zero are float16. Each group keeps the
best zero of all rounds, the start among them, so its l_p error is never above that of rounding with a float
zero. Sees weights only: where there is a calibration text, GPTQ loses far less.
Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models,
https://mobiusml.github.io/hqq_blog/ (2023).
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from backend.coded import Grid, groups_of
from backend.parameters import Bits, GroupSize
from backend.parts import Part
from backend.registry import Claim, method
from backend.sizes import float_zero_bytes
from backend.solvers.grids import fit_float_grid
from backend.views import Layer

_GROWTH = 1.01

Norm = Annotated[float, Field(gt=0.0, le=1.0, description="p of the norm; smaller values mind outliers less")]
Beta = Annotated[float, Field(gt=0.0, description="First weight of the split; larger values shrink less")]
Rounds = Annotated[int, Field(ge=0, le=1000, description="Rounds of the splitting; 0 is float-zero rounding")]


@method(
    paper="https://mobiusml.github.io/hqq_blog/",
    stored=float_zero_bytes,
    pads=True,
    claim=Claim(
        "Moving the zero point loses less than rounding with a float zero at the same bytes",
        better=({"method": "quantize.hqq", "params": {"bits": 3, "group_size": 64}},),
        worse=({"method": "quantize.rtn", "params": {"bits": 3, "group_size": 64, "zero": "float"}},),
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
) -> tuple[Part, ...]:
    """Grid part of the weight so far with float zeros."""
    weight, kept = layer.now, layer.kept
    shape = (weight.shape[0], groups_of(weight.shape[1], group_size), -1)
    grouped = weight.view(shape)
    counted = torch.ones_like(grouped) if kept is None else kept.view(shape).float()
    scales, zeros = fit_float_grid(grouped, bits)
    best = _moved(grouped, counted, scales.float(), zeros, bits, norm, beta, rounds)
    return (Grid.encode(weight, scales, best, bits, group_size, kept),)


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
    """The best zeros float16 [out, groups], for weights [out, groups, group] of which `counted` are kept."""
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
