"""Orthogonal mixing of coordinates: signs, then cosines and a Hadamard matrix; stored are the signs."""

import math

import torch
from torch import Tensor


def mixed(values: Tensor, signs: Tensor, back: bool = False) -> Tensor:
    """Q x for each x [n] of `values` [..., n], or Qᵀ x with `back`; Q = (C ⊗ H) diag(signs) is orthogonal.

    n = odd * 2**k: C [odd, odd] is the cosine transform, H [2**k, 2**k] the Hadamard matrix, orthonormal.
    Every coordinate is spread over all of them, so that what is large in one place is small in many.
    """
    count = values.shape[-1]
    even = count & -count
    cosines = cosine_matrix(count // even).to(values)
    grouped = (values if back else values * signs).reshape(*values.shape[:-1], count // even, even)
    out = _hadamard((cosines.T if back else cosines) @ grouped).reshape(values.shape)
    return out * signs if back else out


def cosine_matrix(count: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II) [count, count] in float64."""
    places = torch.arange(count, dtype=torch.float64)
    waves = torch.cos(math.pi / count * places[:, None] * (places + 0.5)) * math.sqrt(2 / count)
    waves[0] /= math.sqrt(2)
    return waves


def _hadamard(values: Tensor) -> Tensor:
    """H x along the last dimension, whose size is a power of two."""
    count, half = values.shape[-1], 1
    out = values
    while half < count:
        pairs = out.reshape(*values.shape[:-1], count // (2 * half), 2, half)
        first, second = pairs.unbind(dim=-2)
        out = torch.stack([first + second, first - second], dim=-2)
        half *= 2
    return out.reshape(values.shape) / math.sqrt(count)
