"""The module that stands in for a linear whose weight is a sum of parts."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.parts import Factors, Input, Part, combined, inputs_of


class CompressedLinear(nn.Module):
    """y = x Ŵᵀ + bias with Ŵ the sum of the parts; stands in for nn.Linear and for GPT-2's Conv1D.

    Low-rank parts are applied as two thin products. The others are decoded once into a weight of the
    model's type, or, with `packed=True`, anew in each call, so that only the packed tensors stay in memory.
    Products are in the type of the inputs.
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
            weight = self.decode() if self.weight is None else self.weight
            y = functional.linear(x, weight.to(x.dtype), self.bias)
        for left, right in self.decode_factors() if self.thin is None else self.thin:
            y = y + functional.linear(functional.linear(x, right.to(x.dtype)), left.to(x.dtype))
        return y

    @property
    def bits(self) -> int:
        """Bits of the stored parts, the bias left out."""
        return sum(part.bits for part in self.parts)
