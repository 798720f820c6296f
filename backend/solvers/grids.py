"""Uniform grids: scale and zero point of a group of weights from its range."""

from collections.abc import Callable

import torch
from torch import Tensor

from backend.coded import stored_scale, stored_value

# Float16 still tells halves apart up to here, so codes fall where they should.
_LARGEST_ZERO = 1024.0


def fit_grid(grouped: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor | None]:
    """Scales as stored and zeros (None when symmetric), both [out, groups], for weights [out, groups, group].

    Asymmetric: the range is widened to hold zero; scale = (max - min) / (2**bits - 1),
    zero = round(-min / scale).
    Symmetric: scale = 2 max|w| / (2**bits - 1), zero 2**(bits - 1): the symmetric grid of GPTQ.
    A group of zeros gets the range -1 .. 1.
    """
    return _fitted(grouped, bits, symmetric, stored_scale)


def fit_values(grouped: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor | None]:
    """The same with the scales as stored in float32, for loops that should not wait for the device."""
    return _fitted(grouped, bits, symmetric, stored_value)


def _fitted(
    grouped: Tensor, bits: int, symmetric: bool, stored: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor | None]:
    levels = 2**bits - 1
    if symmetric:
        top = grouped.abs().amax(dim=-1)
        return stored(torch.where(top == 0, torch.ones_like(top), top) * 2 / levels), None
    low, high = range_with_zero(grouped)
    scale = stored((high - low) / levels)
    # From the scale as stored: rounding it first keeps the zero on the grid that is decoded later.
    zero = (-low / scale.float()).round().clamp(0, levels)
    return scale, zero


def range_with_zero(grouped: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest <= 0 and highest >= 0 of each group [...] of weights [..., group]; -1 and 1 for zeros alone."""
    low, high = grouped.amin(dim=-1).clamp(max=0), grouped.amax(dim=-1).clamp(min=0)
    empty = (low == 0) & (high == 0)
    return torch.where(empty, -torch.ones_like(low), low), torch.where(empty, torch.ones_like(high), high)


def fit_float_grid(grouped: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scales as stored and zeros float16, both [out, groups], for weights [out, groups, group].

    The range is the group's own, without zero: scale = (max - min) / (2**bits - 1), zero = -min / scale. A
    scale is kept large enough for the zero to fit float16, which matters for groups of nearly equal weights.
    """
    levels = 2**bits - 1
    low, high = grouped.amin(dim=-1), grouped.amax(dim=-1)
    wide = torch.maximum((high - low) / levels, low.abs() / _LARGEST_ZERO)
    scale = stored_scale(torch.where(wide == 0, torch.ones_like(wide), wide))
    return scale, (-low / scale.float()).half()
