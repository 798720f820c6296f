"""A part whose columns have different numbers of levels on grids that span the same range in a row."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from backend.coded import stored_scale
from backend.packing import pack, unpack
from backend.parts import Part
from backend.positions import pack_mask, unpack_mask
from backend.radix import pack_digits, packed_bits, unpack_digits
from backend.solvers.grids import range_with_zero

MOST_LEVELS = 256
# Where zero lies in a row's range is stored in steps of one in so many.
_SHARES = 32767


@dataclass(frozen=True, eq=False)
class Ranges:
    """The range of each row, in the form that is stored.

    scales [out] the range of a row divided by `steps`; float16, or float32 where that would lose digits
    shares [out] int16: how much of the range lies below zero, in 1 / 32767
    """

    scales: Tensor
    shares: Tensor
    steps: int

    @classmethod
    def of(cls, weight: Tensor, steps: int) -> Self:
        """Ranges of the rows of `weight` [out, in], widened to hold zero."""
        low, high = range_with_zero(weight)
        scales = stored_scale((high - low) / steps)
        below = -low.double() / (scales.double() * steps)
        return cls(scales, (below * _SHARES).round().clamp(0, _SHARES).to(torch.int16), steps)

    def grids(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point, both [out, n], of grids with `levels` [n] levels across the range.

        A grid of one level has the scale zero.
        """
        gaps = (levels - 1).float()
        widths = torch.where(gaps == 0, 0.0, self.steps / gaps.clamp(min=1))
        zeros = (self.shares.double()[:, None] / _SHARES * gaps).round().float()
        return self.scales.float()[:, None] * widths, zeros

    def rounded(self, weight: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and values [out, n] of `weight` [out, n] on grids with `levels` [n] levels."""
        scales, zeros = self.grids(levels)
        safe = torch.where(scales == 0, 1.0, scales)
        codes = torch.minimum(((weight / safe).round() + zeros).clamp(min=0), (levels - 1).float())
        return codes, (codes - zeros) * scales


@dataclass(frozen=True, eq=False)
class Mixed(Part):
    """Column j has levels_j levels: (c - z) s, s = range / (levels_j - 1), z = round(share * (levels_j - 1)).

    scales [out] and shares [out] give each row's range, see Ranges; levels [in] uint8 hold levels_j - 1.
    codes: columns with equally many levels lie together, packed close to log2(levels) bits, and the tensor is
    filled up to the bytes it was given. Columns of one level are zero. With a mask only the kept codes are
    stored.
    """

    steps: int
    codes: Tensor
    levels: Tensor
    scales: Tensor
    shares: Tensor
    mask: Tensor | None

    @classmethod
    def encode(
        cls, weight: Tensor, ranges: Ranges, levels: Tensor, size: int, kept: Tensor | None = None
    ) -> Self:
        """`weight` [out, in] on grids with `levels` [in] levels (1 .. 256), its codes in `size` bytes."""
        codes, mask = (
            ranges.rounded(weight, levels)[0].T,
            torch.ones_like(weight).bool() if kept is None else kept,
        )
        streams = [pack_digits(codes[where], count) for count, where in _alike(levels, mask)]
        packed = pack(torch.cat(streams), 1) if streams else codes.new_zeros(0, dtype=torch.uint8)
        if len(packed) > size:
            raise ValueError(f"the codes take {len(packed)} bytes, more than the {size} allowed")
        return cls(
            (weight.shape[0], weight.shape[1]),
            steps=ranges.steps,
            codes=functional.pad(packed, (0, size - len(packed))),
            levels=(levels - 1).to(torch.uint8),
            scales=ranges.scales,
            shares=ranges.shares,
            mask=None if kept is None else pack_mask(kept),
        )

    def kept(self) -> Tensor | None:
        if self.mask is None:
            return None
        return unpack_mask(self.mask, self.shape)

    def dense(self) -> Tensor:
        levels, kept = self.levels.long() + 1, self.kept()
        device = self.codes.device
        mask = torch.ones(self.shape, dtype=torch.bool, device=device) if kept is None else kept
        stream = unpack(self.codes, 1, 8 * len(self.codes))
        codes = torch.zeros(self.shape[1], self.shape[0], device=device)
        at = 0
        for count, where in _alike(levels, mask):
            number = int(where.sum())
            codes[where] = unpack_digits(stream[at:], count, number).float()
            at += packed_bits(count, number)
        scales, zeros = Ranges(self.scales, self.shares, self.steps).grids(levels)
        out = (codes.T - zeros) * scales
        return out if kept is None else out * kept


def code_bits(levels: Tensor, counts: Tensor) -> int:
    """Bits of the packed codes of columns with `levels` [in] levels and `counts` [in] codes each."""
    sums = torch.zeros(MOST_LEVELS + 1, dtype=torch.long).index_add_(0, levels.cpu(), counts.long())
    return sum(packed_bits(number, int(sums[number])) for number in sums.nonzero()[:, 0].tolist())


def _alike(levels: Tensor, mask: Tensor) -> list[tuple[int, Tensor]]:
    """(number of levels, where [in, out] they are stored) for each number above one."""
    return [(count, mask.T & (levels == count)[:, None]) for count in levels.unique().tolist() if count > 1]
