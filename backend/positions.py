"""Masks packed by what takes the fewest bytes: a bitmap, patterns of N:M groups, or places of the fewer.

    bitmap      n bits
    N:M         the rank of each group's pattern among the C(M, N), digits of that base packed into words
    Elias-Fano  c increasing places below n: the l lower bits of each, then the upper ones in unary,
                c l + c + floor(n / 2^l) + 1 bits; of the kept weights or of the others, which are fewer

for n weights. A bitmap stands alone and is known by its length; the others begin with a byte that names them.
At half of the weights the bitmap is best, below a quarter or above three quarters kept the places are, and
2:4 takes 0.65 bits a weight. Elias, Efficient storage and retrieval by content and address of static files,
J. ACM 21 (1974).
"""

import itertools
import math
from functools import cache

import torch
from torch import Tensor

from backend.packing import pack, unpack
from backend.radix import pack_digits, packed_bits, unpack_digits
from backend.sizes import whole_bytes

_PATTERNS = ((1, 4), (2, 4), (4, 8))
# The first byte: this and the lower bits of a place, with _OTHERS where the places are of what is not kept;
# without it, N in the upper half and M in the lower.
_PLACES = 0x80
_OTHERS = 0x40
# Bytes of how many places there are.
_COUNT = 4


def mask_bytes(count: int, kept: int, pattern: str = "free") -> int:
    """Bytes of the mask of `count` weights of which `kept` are kept, in groups of a pattern N:M or freely."""
    sizes = [whole_bytes(count), _places_bytes(count, min(kept, count - kept))[0]]
    if pattern != "free":
        keep, of = (int(number) for number in pattern.split(":"))
        sizes += [
            _pattern_bytes(count, other)
            for other in _PATTERNS
            if other == (keep, of) or (other[1] % of == 0 and other[0] * of == keep * other[1])
            if count % other[1] == 0
        ]
    return min(sizes)


def pack_mask(kept: Tensor) -> Tensor:
    """Bytes [n] uint8 of a mask [out, in] of what is kept."""
    count, flat = kept.numel(), kept.reshape(-1)
    least, packed = whole_bytes(count), None
    fewer = int(flat.sum())
    others = fewer > count - fewer
    fewer = min(fewer, count - fewer)
    size, low = _places_bytes(count, fewer)
    if size < least:
        least, packed = size, (_PLACES | (_OTHERS if others else 0) | low)
    for keep, of in _PATTERNS:
        size = _pattern_bytes(count, (keep, of)) if kept.shape[-1] % of == 0 else least
        if size < least and bool((flat.view(-1, of).sum(dim=1) == keep).all()):
            least, packed = size, keep << 4 | of
    if packed is None:
        return pack(flat, 1)
    head = torch.tensor([packed], dtype=torch.uint8, device=flat.device)
    if not packed & _PLACES:
        return torch.cat([head, _of_patterns(flat, packed >> 4, packed & 15)])
    return torch.cat([head, _of_places((~flat if others else flat).nonzero()[:, 0], count, low)])


def unpack_mask(packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """The mask [out, in] that `pack_mask` packed."""
    count = shape[0] * shape[1]
    if packed.numel() == whole_bytes(count):
        return unpack(packed, 1, count).view(shape).bool()
    head, body = int(packed[0]), packed[1:]
    if not head & _PLACES:
        keep, of = head >> 4, head & 15
        table = _table(keep, of).to(packed.device)
        bits = unpack(body, 1, 8 * body.numel())
        return table[unpack_digits(bits, len(table), count // of)].view(shape)
    found = torch.zeros(count, dtype=torch.bool, device=packed.device)
    found[_places(body, count, head & (_OTHERS - 1))] = True
    return (~found if head & _OTHERS else found).view(shape)


def _pattern_bytes(count: int, pattern: tuple[int, int]) -> int:
    keep, of = pattern
    return 1 + whole_bytes(packed_bits(math.comb(of, keep), count // of))


@cache
def _places_bytes(count: int, fewer: int) -> tuple[int, int]:
    """(bytes, lower bits of a place) for so many places below `count`."""
    bits = [(fewer * (low + 1) + (count >> low) + 1, low) for low in range(count.bit_length())]
    least, low = min(bits)
    return 1 + _COUNT + whole_bytes(least), low


@cache
def _table(keep: int, of: int) -> Tensor:
    """[C(of, keep), of]: the patterns in the order of their ranks."""
    table = torch.zeros(math.comb(of, keep), of, dtype=torch.bool)
    for rank, chosen in enumerate(itertools.combinations(range(of), keep)):
        table[rank, list(chosen)] = True
    return table


def _of_patterns(flat: Tensor, keep: int, of: int) -> Tensor:
    table = _table(keep, of).to(flat.device)
    weights = 1 << torch.arange(of, device=flat.device)
    ranks = torch.zeros(1 << of, dtype=torch.int64, device=flat.device)
    ranks[(table * weights).sum(dim=1)] = torch.arange(len(table), device=flat.device)
    return pack(pack_digits(ranks[(flat.view(-1, of) * weights).sum(dim=1)], len(table)), 1)


def _of_places(places: Tensor, count: int, low: int) -> Tensor:
    """How many, then lower and upper bits of increasing places [c] below `count`."""
    number = torch.tensor([len(places) >> 8 * byte & 255 for byte in range(_COUNT)], dtype=torch.uint8)
    upper = torch.zeros(len(places) + (count >> low) + 1, dtype=torch.bool, device=places.device)
    upper[(places >> low) + torch.arange(len(places), device=places.device)] = True
    lower = (places[:, None] >> torch.arange(low, device=places.device) & 1).bool().reshape(-1)
    return torch.cat([number.to(places.device), pack(torch.cat([lower, upper]), 1)])


def _places(body: Tensor, count: int, low: int) -> Tensor:
    number = sum(byte << 8 * at for at, byte in enumerate(body[:_COUNT].tolist()))
    bits = unpack(body[_COUNT:], 1, number * (low + 1) + (count >> low) + 1)
    order = torch.arange(number, device=body.device)
    lower = bits[: number * low].to(torch.int64).view(number, low)
    upper = bits[number * low :].nonzero()[:, 0] - order
    return (upper << low) + (lower << torch.arange(low, device=body.device)).sum(dim=1)
