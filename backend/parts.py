"""What a compressed weight is made of: parts that hold real packed tensors, and the module that adds them up.

A compressed weight is the sum of its parts. Shapes: weights are [out, in]; codes are packed to their width.
"""

import dataclasses
import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from backend.positions import pack_mask, unpack_mask

KINDS: dict[str, type["Part"]] = {}
# Kinds in files of their own: one is imported when a stored part of its kind is opened.
ELSEWHERE = {
    "codedfactors": "backend.factors",
    "codebook": "backend.coded",
    "float": "backend.floating",
    "grid": "backend.coded",
    "rotated": "backend.inputs",
    "rounded": "backend.inputs",
    "mixed": "backend.mixed",
    "planes": "backend.planes",
    "sharedrows": "backend.shared",
    "turnedplanes": "backend.planes",
}


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
    """A mask says which weights are kept (see backend.positions); the kept values follow in row order."""

    mask: Tensor
    values: Tensor

    @classmethod
    def keep(cls, weight: Tensor, kept: Tensor, dtype: torch.dtype) -> Self:
        """The kept entries of `weight` [out, in] (mask `kept`, bool), stored as `dtype`."""
        return cls(shape_of(weight), mask=pack_mask(kept), values=weight[kept].to(dtype))

    def kept(self) -> Tensor:
        """Mask [out, in] of the stored positions."""
        return unpack_mask(self.mask, self.shape)

    def dense(self) -> Tensor:
        out = torch.zeros(self.shape, device=self.values.device)
        out[self.kept()] = self.values.float()
        return out


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
        return cls(shape_of(weight), values=weight[chosen].to(dtype), columns=columns, starts=counts)

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
    def factors(self) -> Tensor | None:
        """What each channel is multiplied by [in], rounding aside, or None where channels mix."""
        return None

    @property
    def moves(self) -> bool:
        """Whether the weight and the second moments are others behind it."""
        return True

    def dense(self) -> Tensor:
        return torch.zeros(self.shape)


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


def shape_of(weight: Tensor) -> tuple[int, int]:
    """(out, in) of a weight."""
    return weight.shape[0], weight.shape[1]
