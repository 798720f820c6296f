"""What happens to a linear's inputs before the product: rotations, and rounding of activations."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from backend.parts import Input
from backend.solvers.floats import largest, nearest
from backend.solvers.hadamard import hadamard

# Below it a token is all zeros, whose rounding changes nothing.
_LEAST_RANGE = 1e-12


@dataclass(frozen=True, eq=False)
class Rotated(Input):
    """x H with the orthogonal Hadamard matrix H [in, in] of `hadamard`; it is made from its size, so free."""

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self._matrix(x)

    def of_weight(self, weight: Tensor) -> Tensor:
        return (weight.double() @ self._matrix(weight).double()).float()

    def of_gram(self, gram: Tensor) -> Tensor:
        turn = self._matrix(gram)
        return turn.T @ gram @ turn

    def undo(self, weight: Tensor) -> Tensor:
        return (weight.double() @ self._matrix(weight).double().T).float()

    def _matrix(self, like: Tensor) -> Tensor:
        return hadamard(self.shape[1]).to(like.device, like.dtype)


@dataclass(frozen=True, eq=False)
class Rounded(Input):
    """Activations rounded to few bits and back: what hardware of that width would compute, simulated.

    number      `integer`, or `float` with `exponent_bits` and the rest mantissa
    per         `token`: the range of each token, `tensor`: one range for all, kept in `range` [1] float32
    symmetric   the range is centred on zero; else it runs from the smallest to the largest value (integers
                per token only)
    clip        share of the range that is kept
    shift       [in] float32 that each channel is divided by, or None (LLM-FP4's per-channel bias, folded into
                the weight by `of_weight`)
    """

    width: int
    number: Literal["integer", "float"]
    exponent_bits: int
    per: Literal["token", "tensor"]
    symmetric: bool
    clip: float
    range: Tensor | None
    shift: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        values = x.float() if self.shift is None else x.float() / self.shift
        return self._rounded(values).to(x.dtype)

    def of_weight(self, weight: Tensor) -> Tensor:
        return weight if self.shift is None else weight * self.shift

    def of_gram(self, gram: Tensor) -> Tensor:
        if self.shift is None:
            return gram
        shift = self.shift.to(gram.dtype)
        return gram / shift / shift[:, None]

    def undo(self, weight: Tensor) -> Tensor:
        return weight if self.shift is None else weight / self.shift

    @property
    def keeps_values(self) -> bool:
        return False

    def _rounded(self, x: Tensor) -> Tensor:
        if not self.symmetric:
            low, high = x.amin(dim=-1, keepdim=True).clamp(max=0), x.amax(dim=-1, keepdim=True).clamp(min=0)
            low, high = low * self.clip, high * self.clip
            step = ((high - low) / (2**self.width - 1)).clamp(min=_LEAST_RANGE)
            zero = (-low / step).round()
            return ((x / step).round() + zero).clamp(0, 2**self.width - 1).sub(zero) * step
        top = x.abs().amax(dim=-1, keepdim=True) if self.range is None else self.range
        top = (top * self.clip).clamp(min=_LEAST_RANGE)
        if self.number == "float":
            mantissa_bits = self.width - 1 - self.exponent_bits
            return nearest(x, self.exponent_bits, mantissa_bits, top / largest(mantissa_bits))
        steps = 2 ** (self.width - 1) - 1
        return (x * (steps / top)).round().clamp(-steps, steps) * (top / steps)
