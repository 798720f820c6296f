"""What happens to a linear's inputs before the product: rotations, and rounding of activations."""

from dataclasses import dataclass
from typing import Literal
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from backend.parts import Input
from backend.solvers.floats import largest, nearest
from backend.solvers.hadamard import hadamard

# The matrices in use, by size, device and type: moving one there costs more than the product of a few tokens.
_MATRICES: WeakValueDictionary[tuple[int, torch.device, torch.dtype], Tensor] = WeakValueDictionary()
# Below it a token is all zeros, whose rounding changes nothing.
_LEAST_RANGE = 1e-12


@dataclass(frozen=True, eq=False)
class Rotated(Input):
    """x H with the orthogonal Hadamard matrix H [in, in] of `hadamard`; it is made from its size, so free."""

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self._kept(x)

    def of_weight(self, weight: Tensor) -> Tensor:
        return (weight.double() @ self._matrix(weight).double()).float()

    def of_gram(self, gram: Tensor) -> Tensor:
        turn = self._matrix(gram)
        return turn.T @ gram @ turn

    def undo(self, weight: Tensor) -> Tensor:
        return (weight.double() @ self._matrix(weight).double().T).float()

    def _kept(self, like: Tensor) -> Tensor:
        """The matrix as one for all that turn inputs like these; it stays as long as one of them does."""
        key = (self.shape[1], like.device, like.dtype)
        matrix = _MATRICES.get(key)
        if matrix is None:
            with torch.inference_mode(False):
                matrix = _MATRICES[key] = self._matrix(like)
        self.__dict__["matrix"] = matrix
        return matrix

    def _matrix(self, like: Tensor) -> Tensor:
        return hadamard(self.shape[1]).to(like.device, like.dtype)


@dataclass(frozen=True, eq=False)
class Rounded(Input):
    """Activations rounded to few bits and back: what hardware of that width would compute, simulated.

    number      `integer`, or `float` with `exponent_bits` and the rest mantissa
    symmetric   the range is centred on zero; else it runs from the smallest to the largest value of a token
                (integers only)
    clip        share of the range that is kept
    range       [1] float32 for all tokens, or None: each token has its own
    doublings   [in] uint8, how often each channel is doubled before rounding, or None; the weight that meets
                it is halved as often (LLM-FP4's exponent biases by channel)
    """

    width: int
    number: Literal["integer", "float"]
    exponent_bits: int
    symmetric: bool
    clip: float
    range: Tensor | None
    doublings: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return self._rounded(x.float() * self._raise(x)).to(x.dtype)

    def of_weight(self, weight: Tensor) -> Tensor:
        return weight / self._raise(weight)

    def of_gram(self, gram: Tensor) -> Tensor:
        up = self._raise(gram).to(gram.dtype)
        return gram * up * (up[:, None] if self.doublings is not None else up)

    def undo(self, weight: Tensor) -> Tensor:
        return weight * self._raise(weight)

    @property
    def keeps_values(self) -> bool:
        return False

    @property
    def factors(self) -> Tensor:
        return self._raise(torch.empty(0) if self.doublings is None else self.doublings)

    @property
    def moves(self) -> bool:
        return self.doublings is not None

    def _raise(self, like: Tensor) -> Tensor:
        if self.doublings is None:
            return torch.ones((), device=like.device)
        return torch.exp2(self.doublings.to(like.device).float())

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
