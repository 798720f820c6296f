"""Weights as packed codes: on uniform grids, or into a table of levels, in groups that share a scale."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from backend.packing import pack, unpack
from backend.parameters import GROUPED_ROW
from backend.parts import Part, shape_of
from backend.positions import pack_mask, unpack_mask

# Smallest and largest scale that float16 holds with all its digits.
_FLOAT16_NORMAL = (2.0**-14, 65504.0)
# How many quantized scales of a Codebook share a step.
SCALES_A_STEP = 256


@dataclass(frozen=True, eq=False)
class Coded(Part):
    """Codes packed to `width` bits; with a mask only those of the kept weights are stored."""

    width: int
    group_size: int
    codes: Tensor
    scales: Tensor
    mask: Tensor | None

    def kept(self) -> Tensor | None:
        """Mask [out, in] of the stored positions, or None when all are stored."""
        return None if self.mask is None else unpack_mask(self.mask, self.shape)

    def plain_codes(self) -> Tensor:
        """The code of every weight [out, in] uint8; 0 where none is stored."""
        return self._decoded(Tensor.float).to(torch.uint8)

    def in_groups(self, matrix: Tensor) -> Tensor:
        """[rows, groups, group] of a matrix [rows, inputs], a shorter last group filled with zeros."""
        return in_groups(matrix, self.group_size)

    def _decoded(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """`value` of every stored code, in place [out, in] float32; zero where nothing is stored."""
        kept = self.kept()
        count = self.shape[0] * self.shape[1] if kept is None else int(kept.sum())
        values = value(unpack(self.codes, self.width, count))
        if kept is None:
            return values.view(self.shape)
        full = torch.zeros(self.shape, device=values.device)
        full[kept] = values
        return full


@dataclass(frozen=True, eq=False)
class Grid(Coded):
    """Integer codes c on uniform grids scale * (c - zero), one grid per row and group of inputs.

    scales [out, groups]; zeros are packed to `width` bits, or float16 [out, groups] where the zero point is
    no whole number, or absent on a symmetric grid, whose zero is 2**(width-1). With a mask only the kept
    codes are stored, and the other weights are exactly zero. When `transposed`, groups run along a column:
    one grid per input and group of outputs, scales and zeros [in, groups].
    """

    zeros: Tensor | None
    transposed: bool = False

    @classmethod
    def encode(
        cls,
        weight: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        width: int,
        group_size: int,
        kept: Tensor | None = None,
        transposed: bool = False,
    ) -> Self:
        """Round `weight` [out, in] to the grids `scales`, `zeros` [out, groups] ([in, groups] transposed).

        Zeros are whole numbers, unless they are float16.
        """
        rows, inputs = shape_of(weight)
        turned = weight.T if transposed else weight
        codes = flat(grid_codes(in_groups(turned, group_size), scales, zeros, width), turned.shape[1])
        codes = codes.T if transposed else codes
        return cls(
            (rows, inputs),
            width=width,
            group_size=group_size,
            codes=pack(codes if kept is None else codes[kept], width),
            scales=scales,
            zeros=zeros if zeros is None or zeros.dtype == torch.float16 else pack(zeros, width),
            mask=None if kept is None else pack_mask(kept),
            transposed=transposed,
        )

    def dense(self) -> Tensor:
        zeros, kept = self.zero_points(), self.kept()
        zero = float(2 ** (self.width - 1)) if zeros is None else zeros.float()[..., None]
        codes = self._decoded(Tensor.float)
        turned = codes.T if self.transposed else codes
        grouped = self.in_groups(turned)
        out = flat((grouped - zero) * self.scales.float()[..., None], turned.shape[1])
        out = out.T if self.transposed else out
        return out.contiguous() if kept is None else out * kept

    def zero_points(self) -> Tensor | None:
        """Zeros [out, groups] as `encode` takes them, or None on a symmetric grid."""
        if self.zeros is None or self.zeros.is_floating_point():
            return self.zeros
        return unpack(self.zeros, self.width, self.scales.numel()).float().view_as(self.scales)


@dataclass(frozen=True, eq=False)
class Codebook(Coded):
    """Codes into one table of levels, times a scale for each row and group of inputs: scale * table[code].

    table [levels] float32; scales [out, groups] in a float type, or uint8 codes where the scales are
    quantized too: then scale = centre + step * (code - 127), with a step for each block of 256 scales
    (`steps`, float32). With a mask only the kept codes are stored, and the other weights are exactly zero.
    """

    table: Tensor
    centre: Tensor | None
    steps: Tensor | None

    @classmethod
    def encode(
        cls,
        weight: Tensor,
        table: Tensor,
        scales: Tensor,
        group_size: int,
        kept: Tensor | None = None,
        double: bool = False,
    ) -> Self:
        """Each weight [out, in] as its nearest level; `double` quantizes `scales` [out, groups] too."""
        rows, inputs = shape_of(weight)
        stored, centre, steps = _quantized_scales(scales) if double else (stored_scale(scales), None, None)
        size = _decoded_scales(stored, centre, steps)
        units = weight.view(rows, scales.shape[1], -1) / torch.where(size == 0, 1.0, size)[..., None]
        codes = torch.bucketize(units, (table[1:] + table[:-1]) / 2).view(rows, inputs)
        width = max(1, (len(table) - 1).bit_length())
        return cls(
            (rows, inputs),
            width=width,
            group_size=group_size,
            codes=pack(codes if kept is None else codes[kept], width),
            table=table,
            scales=stored,
            centre=centre,
            steps=steps,
            mask=None if kept is None else pack_mask(kept),
        )

    def dense(self) -> Tensor:
        size = _decoded_scales(self.scales, self.centre, self.steps)
        levels = self._decoded(lambda codes: self.table[codes.long()])
        return flat(self.in_groups(levels) * size[..., None], self.shape[1]).contiguous()


def stored_scale(scale: Tensor) -> Tensor:
    """The scale as it will be stored: float16, or float32 where float16 would lose digits."""
    lowest, highest = _FLOAT16_NORMAL
    fits = bool(((scale >= lowest) & (scale <= highest)).all())
    return scale.to(torch.float16 if fits else torch.float32)


def stored_value(scale: Tensor) -> Tensor:
    """The scale float32 as `stored_scale` rounds it, without asking the device which type that is."""
    lowest, highest = _FLOAT16_NORMAL
    fits = ((scale >= lowest) & (scale <= highest)).all()
    return torch.where(fits, scale.half().float(), scale)


def grid_codes(grouped: Tensor, scales: Tensor, zeros: Tensor | None, width: int) -> Tensor:
    """Nearest codes 0 .. 2**width - 1 of weights [out, groups, group] on grids [out, groups]."""
    zero = float(2 ** (width - 1)) if zeros is None else zeros.float()[..., None]
    units = grouped / scales.float()[..., None]
    codes = (
        (units + zero).round() if zeros is not None and zeros.dtype == torch.float16 else units.round() + zero
    )
    return codes.clamp(0, 2**width - 1)


def in_groups(matrix: Tensor, group_size: int) -> Tensor:
    """[rows, groups, group] of a matrix [rows, inputs], a shorter last group filled with zeros."""
    lacks = 0 if group_size == GROUPED_ROW else -matrix.shape[1] % group_size
    groups = groups_of(matrix.shape[1] + lacks, group_size)
    return functional.pad(matrix, (0, lacks)).reshape(len(matrix), groups, -1)


def flat(grouped: Tensor, inputs: int) -> Tensor:
    """The matrix [rows, inputs] of its groups [rows, groups, group], without what fills the last one."""
    return grouped.flatten(1)[:, :inputs]


def groups_of(inputs: int, group_size: int) -> int:
    """How many groups a row of `inputs` weights has."""
    return 1 if group_size == GROUPED_ROW else inputs // group_size


def _quantized_scales(scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 [out, groups], their centre [1] and a step for each block of scales, both float32."""
    centre = scales.float().mean().view(1)
    blocks = functional.pad((scales.float() - centre).reshape(-1), (0, -scales.numel() % SCALES_A_STEP))
    blocks = blocks.view(-1, SCALES_A_STEP)
    steps = blocks.abs().amax(dim=1) / 127
    codes = (blocks / torch.where(steps == 0, 1.0, steps)[:, None]).round() + 127
    return codes.to(torch.uint8).reshape(-1)[: scales.numel()].view_as(scales), centre, steps


def _decoded_scales(stored: Tensor, centre: Tensor | None, steps: Tensor | None) -> Tensor:
    if centre is None or steps is None:
        return stored.float()
    each = steps.repeat_interleave(SCALES_A_STEP)[: stored.numel()].view_as(stored)
    return centre + each * (stored.float() - 127)
