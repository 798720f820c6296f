"""Uniform grids: scale and zero point of a group of weights from its range."""

import torch
from torch import Tensor

from backend.parts import stored_scale


def fit_grid(grouped: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor | None]:
    """Scales as stored and zeros (None when symmetric), both [out, groups], for weights [out, groups, group].

    Asymmetric: the range is widened to hold zero; scale = (max - min) / (2**bits - 1),
    zero = round(-min / scale).
    Symmetric: scale = 2 max|w| / (2**bits - 1), zero 2**(bits - 1): the symmetric grid of GPTQ.
    A group of zeros gets the range -1 .. 1.
    """
    levels = 2**bits - 1
    if symmetric:
        top = grouped.abs().amax(dim=-1)
        scale = stored_scale(torch.where(top == 0, torch.ones_like(top), top) * 2 / levels)
        return scale, None
    low, high = grouped.amin(dim=-1).clamp(max=0), grouped.amax(dim=-1).clamp(min=0)
    empty = (low == 0) & (high == 0)
    low, high = (
        torch.where(empty, -torch.ones_like(low), low),
        torch.where(empty, torch.ones_like(high), high),
    )
    scale = stored_scale((high - low) / levels)
    # From the scale as stored: rounding it first keeps the zero on the grid that is decoded later.
    zero = (-low / scale.float()).round().clamp(0, levels)
    return scale, zero
