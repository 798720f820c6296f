"""A table whose rows are shared: each token has the number of one of few rows."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.packing import pack, unpack
from backend.parts import Part
from backend.sizes import whole_bytes


@dataclass(frozen=True, eq=False)
class SharedRows(Part):
    """rows [k, d] in the model's type; the code of each token: its low byte, and packed what is above it."""

    rows: Tensor
    codes: Tensor
    high: Tensor | None

    @classmethod
    def of(cls, rows: Tensor, codes: Tensor, dtype: torch.dtype) -> Self:
        """Token t has row `codes`[t] of `rows` [k, d], stored as `dtype`."""
        shape, bits = (len(codes), rows.shape[1]), code_bits(len(rows))
        return cls(
            shape,
            rows=rows.to(dtype).contiguous(),
            codes=pack(codes % 256, min(bits, 8)),
            high=pack(codes // 256, bits - 8) if bits > 8 else None,
        )

    def numbers(self) -> Tensor:
        """The row of each token [tokens] int64."""
        bits, count = code_bits(len(self.rows)), self.shape[0]
        low = unpack(self.codes, min(bits, 8), count).long()
        return low if self.high is None else low + 256 * unpack(self.high, bits - 8, count).long()

    def dense(self) -> Tensor:
        return self.rows.float()[self.numbers()]


class SharedHead(nn.Module):
    """Logits of k codes, handed to the tokens that share them: k products instead of one for each token."""

    def __init__(self, part: SharedRows, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("rows", part.rows, persistent=False)
        self.register_buffer("numbers", part.numbers(), persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The table that it stands for [tokens, d]."""
        return self.get_buffer("rows")[self.get_buffer("numbers")]

    def forward(self, x: Tensor) -> Tensor:
        scores = functional.linear(x, self.get_buffer("rows"))
        logits = scores.index_select(-1, self.get_buffer("numbers"))
        return logits if self.bias is None else logits + self.bias


def code_bits(rows: int) -> int:
    """Bits that number so many rows."""
    return max(1, (rows - 1).bit_length())


def shared_bytes(tokens: int, rows: int, width: int, value_bits: int) -> int:
    """Bytes of so many rows of `width` values, and of the numbers of the tokens."""
    bits = code_bits(rows)
    numbers = whole_bytes(tokens * min(bits, 8)) + whole_bytes(tokens * max(0, bits - 8))
    return rows * width * value_bits // 8 + numbers
