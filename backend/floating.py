"""A part of short floats with a real scale for each row and group of inputs."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from backend.coded import Coded, flat
from backend.packing import pack
from backend.positions import pack_mask
from backend.solvers.floats import float_codes, float_values


@dataclass(frozen=True, eq=False)
class Float(Coded):
    """Codes of a sign, `exponent_bits` and the rest mantissa, times a scale: see backend/solvers/floats.py.

    scales [out, groups] float16, or float32 where that would lose digits. With a mask only the kept codes are
    stored, and the other weights are exactly zero.
    """

    exponent_bits: int

    @classmethod
    def encode(
        cls,
        weight: Tensor,
        scales: Tensor,
        width: int,
        exponent_bits: int,
        group_size: int,
        kept: Tensor | None = None,
    ) -> Self:
        """Each weight [out, in] as the nearest float of `width` bits at `scales` [out, groups] as stored."""
        grouped = weight.reshape(*scales.shape, -1)
        codes = float_codes(grouped, exponent_bits, width - 1 - exponent_bits, scales.float()[..., None])
        codes = codes.view_as(weight)
        return cls(
            (weight.shape[0], weight.shape[1]),
            width=width,
            group_size=group_size,
            codes=pack(codes if kept is None else codes[kept], width),
            scales=scales,
            mask=None if kept is None else pack_mask(kept),
            exponent_bits=exponent_bits,
        )

    def dense(self) -> Tensor:
        mantissa_bits = self.width - 1 - self.exponent_bits
        units = self._decoded(lambda codes: float_values(codes, self.exponent_bits, mantissa_bits))
        return flat(self.in_groups(units) * self.scales.float()[..., None], self.shape[1]).contiguous()
