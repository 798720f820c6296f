"""What a compressed weight is made of: parts that hold real packed tensors, and the module that adds them up.

A compressed weight is the sum of its parts. Shapes: weights are [out, in]; codes are packed to their width.
"""

import dataclasses
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.parameters import GROUPED_ROW

KINDS: dict[str, type["Part"]] = {}
# Kinds in files of their own: one is imported when a stored part of its kind is opened.
ELSEWHERE = {
    "codedfactors": "backend.factors",
    "float": "backend.floating",
    "rotated": "backend.inputs",
    "rounded": "backend.inputs",
    "mixed": "backend.mixed",
    "planes": "backend.planes",
    "sharedrows": "backend.shared",
    "turnedplanes": "backend.planes",
}
# Smallest and largest scale that float16 holds with all its digits.
_FLOAT16_NORMAL = (2.0**-14, 65504.0)
# How many quantized scales of a Codebook share a step.
SCALES_A_STEP = 256


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack integers 0 <= code < 2**bits, of any shape, into ceil(n * bits / 8) bytes, lowest bit first."""
    flat = codes.reshape(-1).to(torch.int64)
    padded = functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    shifts = torch.arange(8, device=codes.device) * bits
    # Codes do not overlap, so the sum of the shifted codes is their bitwise or: eight codes are `bits` bytes.
    words = (padded << shifts).sum(dim=1)
    in_bytes = (words[:, None] >> (torch.arange(bits, device=codes.device) * 8)) & 255
    return in_bytes.to(torch.uint8).reshape(-1)[: (flat.numel() * bits + 7) // 8].clone()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Undo `pack`: `count` codes as uint8."""
    padded = functional.pad(packed, (0, -packed.numel() % bits)).view(-1, bits).to(torch.int64)
    words = (padded << (torch.arange(bits, device=packed.device) * 8)).sum(dim=1)
    shifts = torch.arange(8, device=packed.device) * bits
    codes = (words[:, None] >> shifts) & (2**bits - 1)
    return codes.to(torch.uint8).reshape(-1)[:count]


def stored_scale(scale: Tensor) -> Tensor:
    """The scale as it will be stored: float16, or float32 where float16 would lose digits."""
    lowest, highest = _FLOAT16_NORMAL
    fits = bool(((scale >= lowest) & (scale <= highest)).all())
    return scale.to(torch.float16 if fits else torch.float32)


@dataclass(frozen=True, eq=False)
class Part(ABC):
    """A term of the sum; `dense()` is what it adds, `bits` the size of the tensors it stores."""

    shape: tuple[int, int]
    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        cls.kind = cls.__name__.lower()
        if not cls.kind.startswith("_"):
            KINDS[cls.kind] = cls

    def kept(self) -> Tensor | None:
        """Mask [out, in] of what pruning left, or None where the part knows of no pruning."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name."""
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    def settings(self) -> dict[str, Any]:
        """All that is not a tensor, fit for JSON."""
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in named.items() if not isinstance(value, Tensor)}

    @property
    def bits(self) -> int:
        """Bits of all stored tensors, padding included."""
        return sum(tensor.numel() * tensor.element_size() * 8 for tensor in self.tensors().values())

    @abstractmethod
    def dense(self) -> Tensor:
        """The full matrix [out, in] in float32."""

    def to(self, device: torch.device | str) -> Self:
        """The same part on another device."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return dataclasses.replace(self, **moved)


@dataclass(frozen=True, eq=False)
class Dense(Part):
    """Plain values [out, in] in the model's type."""

    values: Tensor

    def dense(self) -> Tensor:
        return self.values.float()


@dataclass(frozen=True, eq=False)
class Sparse(Part):
    """One bit per weight says which are kept; the kept values follow in row order.

    For 2:4 one bit per weight is also what the hardware's two 2-bit indices per group of four take.
    """

    mask: Tensor
    values: Tensor

    @classmethod
    def keep(cls, weight: Tensor, kept: Tensor, dtype: torch.dtype) -> Self:
        """The kept entries of `weight` [out, in] (mask `kept`, bool), stored as `dtype`."""
        return cls(_shape(weight), mask=pack(kept, 1), values=weight[kept].to(dtype))

    def kept(self) -> Tensor:
        """Mask [out, in] of the stored positions."""
        return _bitmap(self.mask, self.shape)

    def dense(self) -> Tensor:
        out = torch.zeros(self.shape, device=self.values.device)
        out[self.kept()] = self.values.float()
        return out


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
        return None if self.mask is None else _bitmap(self.mask, self.shape)

    def plain_codes(self) -> Tensor:
        """The code of every weight [out, in] uint8; 0 where none is stored."""
        return self._decoded(Tensor.float).to(torch.uint8)

    def in_groups(self, matrix: Tensor) -> Tensor:
        """[rows, groups, group] of a matrix [rows, inputs], a shorter last group filled with zeros."""
        lacks = 0 if self.group_size == GROUPED_ROW else -matrix.shape[1] % self.group_size
        groups = groups_of(matrix.shape[1] + lacks, self.group_size)
        return functional.pad(matrix, (0, lacks)).reshape(len(matrix), groups, -1)

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
        rows, inputs = _shape(weight)
        turned = weight.T if transposed else weight
        codes = grid_codes(turned.reshape(*scales.shape, -1), scales, zeros, width).view_as(turned)
        codes = codes.T if transposed else codes
        return cls(
            (rows, inputs),
            width=width,
            group_size=group_size,
            codes=pack(codes if kept is None else codes[kept], width),
            scales=scales,
            zeros=zeros if zeros is None or zeros.dtype == torch.float16 else pack(zeros, width),
            mask=None if kept is None else pack(kept, 1),
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
        rows, inputs = _shape(weight)
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
            mask=None if kept is None else pack(kept, 1),
        )

    def dense(self) -> Tensor:
        size = _decoded_scales(self.scales, self.centre, self.steps)
        levels = self._decoded(lambda codes: self.table[codes.long()])
        return flat(self.in_groups(levels) * size[..., None], self.shape[1]).contiguous()


@dataclass(frozen=True, eq=False)
class Outliers(Part):
    """Single weights in the model's type, added where they stand: columns and values row by row.

    columns [n] int16 (int32 where a row has more than 32767 inputs); starts [out + 1] int32.
    """

    values: Tensor
    columns: Tensor
    starts: Tensor

    @classmethod
    def at(cls, weight: Tensor, chosen: Tensor, dtype: torch.dtype) -> Self:
        """The entries of `weight` [out, in] where the mask `chosen` is true, stored as `dtype`."""
        counts = functional.pad(chosen.sum(dim=1).cumsum(0), (1, 0)).to(torch.int32)
        short = torch.int16 if weight.shape[1] <= 2**15 - 1 else torch.int32
        columns = chosen.nonzero()[:, 1].to(short)
        return cls(_shape(weight), values=weight[chosen].to(dtype), columns=columns, starts=counts)

    def dense(self) -> Tensor:
        out = torch.zeros(self.shape, device=self.values.device)
        rows = torch.repeat_interleave(self.starts.diff().long())
        out[rows, self.columns.long()] = self.values.float()
        return out


class Factors(Part):
    """B A with B [out, rank] and A [rank, in], applied beside the other parts, never merged into them."""

    @abstractmethod
    def factors(self) -> tuple[Tensor, Tensor]:
        """B and A as they are stored, or decoded in float32."""

    @property
    def rank(self) -> int:
        """How many columns B has."""
        return self.factors()[0].shape[1]

    def dense(self) -> Tensor:
        left, right = self.factors()
        return left.float() @ right.float()


@dataclass(frozen=True, eq=False)
class LowRank(Factors):
    """Two factors in the model's type."""

    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, left: Tensor, right: Tensor, dtype: torch.dtype) -> Self:
        """Factors B [out, rank] and A [rank, in], stored as `dtype`."""
        shape = (left.shape[0], right.shape[1])
        return cls(shape, left=left.to(dtype).contiguous(), right=right.to(dtype).contiguous())

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.left, self.right


class Input(Part):
    """What happens to the inputs x [.., in] before the product; it adds nothing to the weight.

    The parts beside it are the weight of what comes out: y = input(x) Ŵᵀ. `of_weight`, `of_gram` and `undo`
    carry a weight [out, in] and second moments [in, in] over, and a weight back.
    """

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The changed inputs [.., in], in the type of x."""

    @abstractmethod
    def of_weight(self, weight: Tensor) -> Tensor:
        """The weight that makes the same outputs of the changed inputs, rounding aside."""

    @abstractmethod
    def of_gram(self, gram: Tensor) -> Tensor:
        """XᵀX of the changed inputs."""

    @abstractmethod
    def undo(self, weight: Tensor) -> Tensor:
        """The inverse of `of_weight`."""

    @property
    def keeps_values(self) -> bool:
        """Whether a plain linear can do the same: false for rounding."""
        return True

    @property
    def moves(self) -> bool:
        """Whether the weight and the second moments are others behind it."""
        return True

    def dense(self) -> Tensor:
        return torch.zeros(self.shape)


class CompressedLinear(nn.Module):
    """y = x Ŵᵀ + bias with Ŵ the sum of the parts; stands in for nn.Linear and for GPT-2's Conv1D.

    Low-rank parts are applied as two thin products. The others are decoded once into a weight of the
    model's type, or, with `packed=True`, anew in each call, so that only the packed tensors stay in memory.
    """

    def __init__(
        self, parts: tuple[Part, ...], bias: Tensor | None, dtype: torch.dtype, packed: bool = False
    ) -> None:
        super().__init__()
        self.parts = parts
        self.out_features, self.in_features = parts[0].shape
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.dtype = dtype
        self.inputs = inputs_of(parts)
        self.factors = tuple(part for part in parts if isinstance(part, Factors) and part.rank)
        self.only_factors = all(isinstance(part, Factors | Input) for part in parts)
        self.thin = None if packed else self.decode_factors()
        weight = None if packed or self.only_factors else self.decode()
        self.weight: Tensor | None
        self.register_buffer("weight", weight, persistent=False)

    def decode(self) -> Tensor:
        """The sum of all parts but the low-rank ones [out, in], rounded to the model's type."""
        return combined(tuple(part for part in self.parts if not isinstance(part, Factors))).to(self.dtype)

    def decode_factors(self) -> list[tuple[Tensor, Tensor]]:
        """B and A of the low-rank parts, rounded to the model's type."""
        found = [part.factors() for part in self.factors]
        return [(left.to(self.dtype), right.to(self.dtype)) for left, right in found]

    def forward(self, x: Tensor) -> Tensor:
        for change in self.inputs:
            x = change(x)
        if self.only_factors:
            y = x.new_zeros(*x.shape[:-1], self.out_features)
            y = y if self.bias is None else y + self.bias
        else:
            y = functional.linear(x, self.decode() if self.weight is None else self.weight, self.bias)
        for left, right in self.decode_factors() if self.thin is None else self.thin:
            y = y + functional.linear(functional.linear(x, right), left)
        return y

    @property
    def bits(self) -> int:
        """Bits of the stored parts, the bias left out."""
        return sum(part.bits for part in self.parts)


def combined(parts: tuple[Part, ...]) -> Tensor:
    """The sum of the parts [out, in] in float32, as it meets the inputs that the parts before it changed."""
    first, *rest = (part for part in parts if not isinstance(part, Input))
    total = first.dense()
    for part in rest:
        total = total + part.dense()
    return total


def gone(parts: tuple[Part, ...]) -> bool:
    """Whether nothing is left of a weight: no stage has anything to do there."""
    own = [part for part in parts if not isinstance(part, Input)]
    return bool(own) and all(isinstance(part, Factors) and not part.rank for part in own)


def inputs_of(parts: tuple[Part, ...]) -> tuple[Input, ...]:
    """What the parts do to the inputs, in order."""
    return tuple(part for part in parts if isinstance(part, Input))


def before_inputs(parts: tuple[Part, ...]) -> Tensor:
    """The sum of the parts [out, in] as it meets the inputs as they come; rounding of these is left out."""
    weight = combined(parts)
    for change in reversed(inputs_of(parts)):
        weight = change.undo(weight)
    return weight


def rebuild(kind: str, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Part:
    """The part that `settings()` and `tensors()` describe."""
    if kind in ELSEWHERE:
        importlib.import_module(ELSEWHERE[kind])
    return KINDS[kind](**{**settings, "shape": tuple(settings["shape"]), **tensors})


def grid_codes(grouped: Tensor, scales: Tensor, zeros: Tensor | None, width: int) -> Tensor:
    """Nearest codes 0 .. 2**width - 1 of weights [out, groups, group] on grids [out, groups]."""
    zero = float(2 ** (width - 1)) if zeros is None else zeros.float()[..., None]
    units = grouped / scales.float()[..., None]
    codes = (
        (units + zero).round() if zeros is not None and zeros.dtype == torch.float16 else units.round() + zero
    )
    return codes.clamp(0, 2**width - 1)


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


def _bitmap(mask: Tensor, shape: tuple[int, int]) -> Tensor:
    return unpack(mask, 1, shape[0] * shape[1]).view(shape).bool()


def _shape(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], weight.shape[1]
