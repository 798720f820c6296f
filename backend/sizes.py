"""Bytes of a linear's stored tensors, counted from shapes and parameters before anything is made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.parameters import GROUPED_ROW, PLAIN_BITS

SCALE_BITS = 16
# Values of a factor that is stored as codes share a scale in such numbers.
FACTOR_GROUP = 64


@dataclass(frozen=True)
class Matrix:
    """A linear [rows, inputs] of which `kept` weights are stored; plain values take `value_bits` bits."""

    rows: int
    inputs: int
    kept: int
    value_bits: int

    def groups(self, group_size: int) -> int:
        """How many groups the matrix has."""
        return self.rows * (1 if group_size == GROUPED_ROW else -(-self.inputs // group_size))


def whole_bytes(bits: int) -> int:
    """Bytes that hold so many bits."""
    return (bits + 7) // 8


def grid_bytes(matrix: Matrix, params: Mapping[str, Any]) -> int:
    """Codes, scales and packed zero points of a uniform grid; a mask of what was pruned is not among them."""
    groups = matrix.groups(params["group_size"])
    zeros = 0 if params.get("symmetric") else whole_bytes(groups * params["bits"])
    return whole_bytes(matrix.kept * params["bits"]) + groups * SCALE_BITS // 8 + zeros


def plane_bytes(matrix: Matrix, planes: int, blocks: int, coefficient_bits: int) -> int:
    """Bit planes and so many bits of coefficients for each block of weights."""
    return planes * whole_bytes(matrix.kept) + whole_bytes(blocks * coefficient_bits)


def kept_by_row(rows: int, inputs: int, params: Mapping[str, Any]) -> int:
    """How many weights are left when each row loses its share."""
    return rows * (inputs - int(inputs * params["sparsity"]))


def kept_by_pattern(count: int, pattern: str) -> int:
    """How many of `count` weights N:M leaves."""
    keep, of = (int(number) for number in pattern.split(":"))
    return count // of * keep


def float_zero_bytes(matrix: Matrix, params: Mapping[str, Any]) -> int:
    """The same with zero points of 16 bits."""
    groups = matrix.groups(params["group_size"])
    return whole_bytes(matrix.kept * params["bits"]) + 2 * groups * SCALE_BITS // 8


def factor_rank(shape: Sequence[int], ratio: float) -> int:
    """The rank of two factors that take `ratio` of the size of a linear [rows, inputs]."""
    rows, inputs = shape
    return max(1, min(int(ratio * rows * inputs / (rows + inputs)), rows, inputs))


def factor_bytes(matrix: Matrix, params: Mapping[str, Any]) -> int:
    """Two factors of the rank that the ratio pays for."""
    rank = factor_rank((matrix.rows, matrix.inputs), params["ratio"])
    return rank * (matrix.rows + matrix.inputs) * matrix.value_bits // 8


def low_rank_bytes(matrix: Matrix, params: Mapping[str, Any]) -> int:
    """Two factors of `rank`, in the type of the values, or as codes with a scale and zero for each group."""
    rank = min(params["rank"], matrix.rows, matrix.inputs)
    bits = params.get("factor_bits", PLAIN_BITS)
    if bits == PLAIN_BITS:
        return rank * (matrix.rows + matrix.inputs) * matrix.value_bits // 8
    groups = {length: rank * -(-length // FACTOR_GROUP) for length in (matrix.rows, matrix.inputs)}
    return sum(
        whole_bytes(rank * length * bits)
        + groups[length] * SCALE_BITS // 8
        + whole_bytes(groups[length] * bits)
        for length in (matrix.rows, matrix.inputs)
    )
