"""Round weights to short floats whose exponent bits, and the scale of each group, are searched on the output.

    W [out, in] in groups, each with a real scale s = m 2**-t / (2 - 2**-M),  m = max |w|,  t = 0 at first
    for every split of bits - 1 into exponent and mantissa bits, E + M:
        for each group in turn, the others fixed, t in -0.3 .. 2 with the least  tr((W - Ŵ) C (W - Ŵ)ᵀ)
    the split with the least loss is kept for the linear;  C = XᵀX [in, in],  Ŵ = nearest floats

A real scale is the paper's real exponent bias; E = 1 is a uniform grid, M = 0 gives powers of two. Needs the
Gram matrix. Stores bits + 16 / group_size bits per weight; the paper has one group per row (-1). No step
raises the loss, so it ends at or below that of the largest weights as scales, which `search` 0 gives. 16
scales take a fifth of the time of the paper's 100 and leave up to a fifth more of the loss. Weights alone:
activations stay as they are. Liu et al., LLM-FP4, arXiv 2310.16836.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from backend.coded import groups_of, stored_scale
from backend.costs import Cost
from backend.floating import Float
from backend.parameters import Bits, GroupSize
from backend.parts import Part
from backend.registry import Claim, method
from backend.sizes import Matrix, grid_bytes
from backend.solvers.floats import largest, nearest
from backend.views import Layer

# Past this float32 runs out of exponents for the smallest values.
_MOST_EXPONENT_BITS = 5
_WIDEST, _NARROWEST = -0.3, 2.0
_SMALLEST_SCALE, _LARGEST_SCALE = 2.0**-14, 65504.0

ExponentBits = Annotated[
    int, Field(ge=0, le=_MOST_EXPONENT_BITS, description="Bits of the exponent; 0 tries every split")
]
Search = Annotated[
    int, Field(ge=0, le=200, description="Scales tried for each group; 0 takes the largest weight")
]
Rounds = Annotated[int, Field(ge=1, le=20, description="How often all groups are gone over")]


def _stored(matrix: Matrix, params: Mapping[str, Any]) -> int:
    return grid_bytes(matrix, {**params, "symmetric": True})


@method(
    paper="arXiv:2310.16836",
    cost=Cost("solve", 36.0, {"search": 100, "rounds": 2}),
    needs="gram",
    stored=_stored,
    pads=True,
    claim=Claim(
        "Searched 3-bit floats lose less than symmetric 3-bit integers at the same bytes",
        whose="ours",
        paper_says="LLM-FP4 rounds activations too, and loses less than SmoothQuant and LLM-QAT.",
        better=({"method": "quantize.llm_fp4", "params": {"bits": 3, "group_size": 64}},),
        worse=({"method": "quantize.rtn", "params": {"bits": 3, "group_size": 64, "symmetric": True}},),
    ),
)
def llm_fp4(
    layer: Layer,
    *,
    bits: Bits = 4,
    group_size: GroupSize = 64,
    exponent_bits: ExponentBits = 0,
    search: Search = 100,
    rounds: Rounds = 2,
) -> tuple[Part, ...]:
    """Float part of the weight so far."""
    assert layer.statistics.gram is not None
    weight = layer.now
    groups = groups_of(weight.shape[1], group_size)
    mean = layer.statistics.gram.diagonal().mean().clamp(min=1e-300)
    # Normalised, so that the size of the calibration text does not matter to float32.
    gram = (layer.statistics.gram / mean).float()
    most = min(bits - 1, _MOST_EXPONENT_BITS)
    splits = [min(exponent_bits, most)] if exponent_bits else range(1, most + 1)
    found = [
        (split, *_searched(weight, gram, groups, split, bits - 1 - split, search, rounds)) for split in splits
    ]
    split, scales, _ = min(found, key=lambda entry: entry[2])
    return (Float.encode(weight, scales, bits, split, group_size, layer.kept),)


def _searched(
    weight: Tensor,
    gram: Tensor,
    groups: int,
    exponent_bits: int,
    mantissa_bits: int,
    search: int,
    rounds: int,
) -> tuple[Tensor, float]:
    """Scales as stored [out, groups] for one split, and the loss of `weight` [out, in] with them."""
    grouped = weight.view(weight.shape[0], groups, -1)
    width = grouped.shape[-1]
    size = grouped.abs().amax(dim=-1)
    start = stored_scale(torch.where(size == 0, largest(mantissa_bits), size) / largest(mantissa_bits))
    scales = start.float()
    error = weight - nearest(grouped, exponent_bits, mantissa_bits, scales[..., None]).view_as(weight)
    pull = error @ gram
    shifts = torch.linspace(_WIDEST, _NARROWEST, search).tolist()
    for _ in range(rounds if groups > 1 else 1):
        for group in range(groups):
            place = slice(group * width, (group + 1) * width)
            inner, wanted = gram[place, place], weight[:, place]
            old = error[:, place]
            # What the other groups add: the loss of this one alone is d C d + 2 d rest.
            rest = pull[:, place] - old @ inner
            best, chosen = old, scales[:, group]
            least = ((old @ inner + 2 * rest) * old).sum(dim=1)
            for shift in shifts:
                tried = _as_stored(start[:, group].float() * 2**-shift, start.dtype)
                left = wanted - nearest(wanted, exponent_bits, mantissa_bits, tried[:, None])
                lost = ((left @ inner + 2 * rest) * left).sum(dim=1)
                better = lost < least
                least, chosen = torch.where(better, lost, least), torch.where(better, tried, chosen)
                best = torch.where(better[:, None], left, best)
            pull += (best - old) @ gram[place]
            error[:, place] = best
            scales[:, group] = chosen
    return scales.to(start.dtype), float(((error @ gram) * error).double().sum())


def _as_stored(scales: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.float16:
        scales = scales.clamp(_SMALLEST_SCALE, _LARGEST_SCALE)
    return scales.to(dtype).float()
