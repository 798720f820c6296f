"""Whole numbers below any base, packed close to log2(base) bits each: several digits make one binary word."""

import math
from functools import cache

import torch
from torch import Tensor

# Words are computed in int64, whose sign bit stays free.
_LONGEST_WORD = 62


@cache
def word(base: int, count: int) -> tuple[int, int]:
    """(digits, bits) of the shortest word that takes the fewest bits for `count` digits."""
    best, least = (1, 0), math.inf
    for digits in range(1, _LONGEST_WORD + 1):
        bits = (base**digits - 1).bit_length()
        if bits > _LONGEST_WORD:
            break
        if (total := -(-count // digits) * bits) < least:
            best, least = (digits, bits), total
    return best


def packed_bits(base: int, count: int) -> int:
    """Bits that `count` digits of a base take; none for base 1, whose only digit is 0."""
    digits, bits = word(base, count)
    return -(-count // digits) * bits


def pack_digits(codes: Tensor, base: int) -> Tensor:
    """Bits (bool, lowest of each word first) of codes 0 <= code < base [n]."""
    digits, bits = word(base, codes.numel())
    filled = torch.nn.functional.pad(codes.to(torch.int64), (0, -codes.numel() % digits)).view(-1, digits)
    words = (filled * _powers(base, digits, codes.device)).sum(dim=1)
    return ((words[:, None] >> torch.arange(bits, device=codes.device)) & 1).bool().reshape(-1)


def unpack_digits(stream: Tensor, base: int, count: int) -> Tensor:
    """Undo `pack_digits`: `count` codes int64 from the first bits of `stream`."""
    digits, bits = word(base, count)
    taken = stream[: packed_bits(base, count)].to(torch.int64).view(-1, bits) if bits else None
    if taken is None:
        return torch.zeros(count, dtype=torch.int64, device=stream.device)
    words = (taken << torch.arange(bits, device=stream.device)).sum(dim=1)
    return (words[:, None] // _powers(base, digits, stream.device) % base).reshape(-1)[:count]


def _powers(base: int, digits: int, device: torch.device) -> Tensor:
    return torch.tensor([base**place for place in range(digits)], device=device)
