"""A low-rank part whose factors are codes on uniform grids."""

import dataclasses
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from backend.coded import grid_codes
from backend.packing import pack, unpack
from backend.parts import Factors
from backend.sizes import FACTOR_GROUP
from backend.solvers.grids import range_with_zero

# Half a step of bfloat16: a scale rounded after this much more does not cut the range.
_ABOVE = 1 + 2**-8


@dataclass(frozen=True, eq=False)
class CodedFactors(Factors):
    """B A with each column of B [out, rank] and each row of A [rank, in] on grids of its own.

    A scale and zero point serve 64 neighbours in a column of B or a row of A, the last ones maybe fewer, and
    never two columns or rows: these differ in size as the singular values do.
    left_codes, right_codes    codes of Bᵀ and A row by row, packed to `width` bits
    left_scales, right_scales  [rank, groups] bfloat16: the last of many columns can be smaller than float16
                               holds, and codes are taken from the scale as stored, so digits matter little
    left_zeros, right_zeros    packed to `width` bits
    """

    width: int
    left_codes: Tensor
    left_scales: Tensor
    left_zeros: Tensor
    right_codes: Tensor
    right_scales: Tensor
    right_zeros: Tensor

    @classmethod
    def of(cls, left: Tensor, right: Tensor, width: int) -> Self:
        """Factors B [out, rank] and A [rank, in], each value as its nearest code."""
        one, other = _encoded(left.T, width), _encoded(right, width)
        return cls(
            (left.shape[0], right.shape[1]), width=width,
            left_codes=one[0], left_scales=one[1], left_zeros=one[2],
            right_codes=other[0], right_scales=other[1], right_zeros=other[2],
        )  # fmt: skip

    def with_left(self, left: Tensor) -> Self:
        """The same A with another B [out, rank]."""
        codes, scales, zeros = _encoded(left.T, self.width)
        return dataclasses.replace(self, left_codes=codes, left_scales=scales, left_zeros=zeros)

    @property
    def rank(self) -> int:
        return self.left_scales.shape[0]

    def factors(self) -> tuple[Tensor, Tensor]:
        rows, inputs = self.shape
        left = _decoded(self.left_codes, self.left_scales, self.left_zeros, rows, self.width)
        right = _decoded(self.right_codes, self.right_scales, self.right_zeros, inputs, self.width)
        return left.T.contiguous(), right


def _encoded(values: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Packed codes, scales [rank, groups] and packed zeros of values [rank, n]."""
    rank, count = values.shape
    groups = -(-count // FACTOR_GROUP)
    # Zeros at the end change no range, for each holds zero anyway.
    padded = functional.pad(values.float(), (0, groups * FACTOR_GROUP - count))
    grouped = padded.view(rank, groups, FACTOR_GROUP)
    low, high = range_with_zero(grouped)
    scales = ((high - low) / (2**width - 1) * _ABOVE).to(torch.bfloat16)
    zeros = (-low / scales.float()).round().clamp(0, 2**width - 1)
    codes = grid_codes(grouped, scales, zeros, width).view(rank, groups * FACTOR_GROUP)[:, :count]
    return pack(codes, width), scales, pack(zeros, width)


def _decoded(codes: Tensor, scales: Tensor, zeros: Tensor, count: int, width: int) -> Tensor:
    """Values [rank, count] float32."""
    rank, groups = scales.shape
    plain = unpack(codes, width, rank * count).view(rank, count).float()
    padded = functional.pad(plain, (0, groups * FACTOR_GROUP - count)).view(rank, groups, FACTOR_GROUP)
    zero = unpack(zeros, width, scales.numel()).view(rank, groups, 1).float()
    return ((padded - zero) * scales.float()[..., None]).view(rank, groups * FACTOR_GROUP)[:, :count]
