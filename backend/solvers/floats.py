"""Short floats: a sign, a few exponent bits, a few mantissa bits, and a real scale in place of a whole bias.

With E exponent and M mantissa bits and the scale s the values are, in both signs,

    normal      s 2**(e - top) (1 + m / 2**M)     e = 1 .. top, top = 2**E - 1
    subnormal   s 2**(1 - top) (m / 2**M)         e = 0

with m = 0 .. 2**M - 1, so the largest is s (2 - 2**-M). No code is spent on infinity or NaN. With one
exponent bit that is a uniform grid, with no mantissa bits the values are powers of two. A real bias of the
exponent is a scale that is no power of two (Liu et al., LLM-FP4, arXiv 2310.16836, section 3).
"""

import torch
from torch import Tensor


def largest(mantissa_bits: int) -> float:
    """The largest value at scale one."""
    return 2 - 2.0**-mantissa_bits


def nearest(x: Tensor, exponent_bits: int, mantissa_bits: int, scale: Tensor | float) -> Tensor:
    """The nearest float for each entry of `x`, float32 of any shape; `scale` > 0 broadcasts against it.

    What lies beyond the largest value becomes the largest value; in the middle the even mantissa wins.
    """
    top = largest(mantissa_bits)
    units = (x / scale).clamp_(-top, top)
    step = _steps(units, exponent_bits, mantissa_bits)[0]
    return units.div_(step).round_().mul_(step).mul_(scale)


def float_codes(x: Tensor, exponent_bits: int, mantissa_bits: int, scale: Tensor | float) -> Tensor:
    """Codes of `nearest(x)`: sign, exponent and mantissa from the highest bit down; zero has no sign."""
    units = nearest(x / scale, exponent_bits, mantissa_bits, 1.0)
    step, raised = _steps(units, exponent_bits, mantissa_bits)
    # A normal value has 2**M steps or more, so the leading one counts up the exponent by itself.
    size = (units.abs() / step).long() + (raised.long() << mantissa_bits)
    return size + ((units < 0).long() << (exponent_bits + mantissa_bits))


def float_values(codes: Tensor, exponent_bits: int, mantissa_bits: int) -> Tensor:
    """What codes stand for at scale one, float32."""
    codes = codes.long()
    mantissa = codes & (2**mantissa_bits - 1)
    exponent = (codes >> mantissa_bits) & (2**exponent_bits - 1)
    negative = (codes >> (exponent_bits + mantissa_bits)).bool()
    digits = torch.where(exponent > 0, mantissa + 2**mantissa_bits, mantissa).float()
    size = torch.ldexp(digits, exponent.clamp(min=1) - (2**exponent_bits - 1) - mantissa_bits)
    return torch.where(negative, -size, size)


def _steps(units: Tensor, exponent_bits: int, mantissa_bits: int) -> tuple[Tensor, Tensor]:
    """The distance between neighbours at each of `units`, and how many doublings lie below it (int32)."""
    lowest = 2 - 2**exponent_bits
    # From the bits of a float32: a logarithm would put powers of two on the wrong side, and frexp takes five
    # times as long. Zero has the lowest exponent of all.
    exponent = (units.view(torch.int32) >> 23 & 255) - 127
    raised = (exponent - lowest).clamp(min=0)
    return (raised + (lowest - mantissa_bits + 127) << 23).view(torch.float32), raised
