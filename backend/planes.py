"""A part made of bit planes: one bit a weight and plane, and for each block of weights a scale per plane."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from backend.mixing import mixed
from backend.packing import pack, unpack
from backend.parts import Part
from backend.positions import pack_mask, unpack_mask

# Smallest and largest coefficient of a block that float16 holds with all its digits.
_FLOAT16 = (2.0**-14, 65504.0)
# A power of two is stored as its sign and how far it lies below the largest one; the last code means none.
POWER_BITS = 6
_FURTHEST = 30


@dataclass(frozen=True, eq=False)
class Planes(Part):
    """offset + sum over planes of scale_k * b_k, with the same coefficients for a block of weights.

    planes  [planes, ceil(stored weights / 8)] uint8: the bits b_k of all stored weights, row by row; a bit is
            0 or 1, or with `signed` -1 or +1
    scales  [blocks, planes], or [blocks, planes + 1] with the offset last where there is `offset`: float16
            (float32 where float16 would lose digits), or with `terms` sums of so many signed powers of two,
            packed to 6 bits each: the sign and the exponent below 2**`largest`
    Blocks are `tall` rows by `wide` inputs, smaller at the lower and right edge, and numbered along the rows.
    With a mask only the kept weights have bits, and the others are exactly zero.
    """

    tall: int
    wide: int
    signed: bool
    offset: bool
    terms: int
    largest: int
    planes: Tensor
    scales: Tensor
    mask: Tensor | None

    @classmethod
    def encode(
        cls,
        weight: Tensor,
        coefficients: Tensor,
        block: tuple[int, int],
        signed: bool,
        offset: bool,
        kept: Tensor | None = None,
        terms: int = 0,
    ) -> Self:
        """The nearest level for each weight [out, in]; coefficients [blocks, n] of blocks (tall, wide)."""
        stored, largest = powers_of(coefficients, terms) if terms else (stored_coefficients(coefficients), 0)
        count = coefficients.shape[1] - offset
        shape = (weight.shape[0], weight.shape[1])
        exact = _sums(stored, coefficients.shape, terms, largest) if terms else stored.float()
        table = exact @ patterns(count, signed, offset, weight.device).T
        codes = unblocked(nearest(blocked(weight, block), table), shape, block)
        chosen = codes.reshape(-1) if kept is None else codes[kept]
        planes = torch.stack([pack((chosen >> k) & 1, 1) for k in range(count)])
        return cls(
            shape, tall=block[0], wide=block[1], signed=signed, offset=offset, terms=terms, largest=largest,
            planes=planes, scales=stored, mask=None if kept is None else pack_mask(kept),
        )  # fmt: skip

    def kept(self) -> Tensor | None:
        """Mask [out, in] of the stored positions, or None when all are stored."""
        if self.mask is None:
            return None
        return unpack_mask(self.mask, self.shape)

    def coefficients(self) -> Tensor:
        """Scales [blocks, planes (+ 1)] float32, the offset last."""
        blocks = blocks_of(self.shape, (self.tall, self.wide))
        return _sums(self.scales, (blocks, len(self.planes) + self.offset), self.terms, self.largest)

    def bits_of(self, plane: int) -> Tensor:
        """The bits of one plane [out, in] as 0 and 1; 0 where nothing is stored."""
        kept = self.kept()
        count = self.shape[0] * self.shape[1] if kept is None else int(kept.sum())
        stored = unpack(self.planes[plane], 1, count)
        if kept is None:
            return stored.view(self.shape)
        return torch.zeros(self.shape, dtype=torch.uint8, device=stored.device).masked_scatter_(kept, stored)

    def dense(self) -> Tensor:
        block, kept = (self.tall, self.wide), self.kept()
        codes = torch.zeros(self.shape, dtype=torch.int64, device=self.planes.device)
        for plane in range(len(self.planes)):
            codes |= self.bits_of(plane).long() << plane
        table = self.coefficients() @ patterns(len(self.planes), self.signed, self.offset, codes.device).T
        levels = unblocked(table.gather(1, blocked(codes, block)), self.shape, block)
        return levels if kept is None else levels * kept


@dataclass(frozen=True, eq=False)
class TurnedPlanes(Planes):
    """Planes of U W D Vᵀ in place of W, with U and V orthogonal mixings and D a diagonal.

    row_signs, input_signs  the signs of U and V, a bit each; stretch [in] float16 the diagonal of D
    """

    row_signs: Tensor
    input_signs: Tensor
    stretch: Tensor

    @classmethod
    def around(cls, planes: Planes, row_signs: Tensor, input_signs: Tensor, stretch: Tensor) -> Self:
        """`planes` of the turned weight with what turns it back; signs [out], [in] of -1 and 1."""
        own = {field.name: getattr(planes, field.name) for field in dataclasses.fields(planes)}
        return cls(
            **own, row_signs=pack(row_signs > 0, 1), input_signs=pack(input_signs > 0, 1), stretch=stretch
        )

    def dense(self) -> Tensor:
        rows, inputs = self.shape
        row_signs, input_signs = (
            unpack(packed, 1, count).float() * 2 - 1
            for packed, count in ((self.row_signs, rows), (self.input_signs, inputs))
        )
        unmixed = mixed(mixed(super().dense().T, row_signs, back=True).T, input_signs, back=True)
        return unmixed / self.stretch.float()


def patterns(planes: int, signed: bool, offset: bool, device: torch.device) -> Tensor:
    """What each code adds up [2**planes, planes (+ 1)]: 0 or 1 (-1 or 1) a plane, and 1 for the offset."""
    codes = torch.arange(2**planes, device=device)
    bits = ((codes[:, None] >> torch.arange(planes, device=device)) & 1).float()
    if signed:
        bits = 2 * bits - 1
    return functional.pad(bits, (0, 1), value=1.0) if offset else bits


def nearest(values: Tensor, table: Tensor) -> Tensor:
    """Codes int64 [blocks, weights] of the nearest of each block's levels, `table` [blocks, levels]."""
    levels, order = table.sort(dim=1)
    places = torch.searchsorted((levels[:, 1:] + levels[:, :-1]) / 2, values.contiguous())
    return order.gather(1, places)


def blocks_of(shape: Sequence[int], block: tuple[int, int]) -> int:
    """How many blocks (tall, wide) a matrix [out, in] has."""
    return -(-shape[0] // block[0]) * -(-shape[1] // block[1])


def blocked(values: Tensor, block: tuple[int, int]) -> Tensor:
    """Values [out, in] block by block [blocks, tall * wide], filled up with zeros at the edges."""
    (rows, inputs), (tall, wide) = values.shape, block
    padded = functional.pad(values, (0, -inputs % wide, 0, -rows % tall))
    down, across = padded.shape[0] // tall, padded.shape[1] // wide
    return padded.view(down, tall, across, wide).transpose(1, 2).reshape(down * across, tall * wide)


def unblocked(values: Tensor, shape: tuple[int, int], block: tuple[int, int]) -> Tensor:
    """Undo `blocked`."""
    (rows, inputs), (tall, wide) = shape, block
    down, across = -(-rows // tall), -(-inputs // wide)
    full = values.view(down, across, tall, wide).transpose(1, 2).reshape(down * tall, across * wide)
    return full[:rows, :inputs].contiguous()


def stored_coefficients(values: Tensor) -> Tensor:
    """Coefficients [blocks, n] as stored: float16, or float32 where a block's largest one does not fit it.

    A small coefficient beside a large one may lose digits: what it adds is then below the large one's.
    """
    return values.to(torch.float16 if bool(_fits_float16(values)) else torch.float32)


def coefficient_values(values: Tensor) -> Tensor:
    """Coefficients [blocks, n] float32 as `stored_coefficients` rounds them, without asking the device which
    type that is."""
    return torch.where(_fits_float16(values), values.half().float(), values)


def _fits_float16(values: Tensor) -> Tensor:
    lowest, highest = _FLOAT16
    top = values.abs().amax(dim=1)
    return ((top == 0) | ((top >= lowest) & (top <= highest))).all()


def powers_of(values: Tensor, terms: int) -> tuple[Tensor, int]:
    """Packed codes of sums of `terms` signed powers of two, and the exponent of the largest power.

    Powers that differ in exponent by two at least add up to any sum of as many powers, so that one is stored
    exactly: 2**e stands for what lies in (2/3, 4/3) of it.
    """
    rest, signs, exponents = values.double().reshape(-1, 1), [], []
    for _ in range(terms):
        power = (rest.abs() * 0.75).log2().ceil()
        signs.append(rest.sign())
        exponents.append(power)
        rest = rest - torch.where(rest == 0, 0.0, rest.sign() * power.exp2())
    sign, exponent = torch.cat(signs, dim=1), torch.cat(exponents, dim=1)
    used = sign != 0
    largest = int(exponent[used].max()) if bool(used.any()) else 0
    below = torch.where(used, largest - exponent, _FURTHEST + 1).clamp(max=_FURTHEST + 1).long()
    return pack(below | ((sign < 0).long() << 5), POWER_BITS), largest


def _sums(stored: Tensor, shape: Sequence[int], terms: int, largest: int) -> Tensor:
    if not terms:
        return stored.float()
    codes = unpack(stored, POWER_BITS, shape[0] * shape[1] * terms).long().view(*shape, terms)
    below, sign = codes & 31, 1 - 2 * (codes >> 5).double()
    powers = torch.where(below > _FURTHEST, 0.0, sign * (largest - below).double().exp2())
    return powers.sum(dim=-1).float()
