"""Short floats against their definition, written out value by value."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backend.floating import Float
from backend.parts import rebuild
from backend.solvers.floats import float_codes, float_values, largest, nearest

FORMATS = [(e, w - 1 - e) for w in range(2, 9) for e in range(1, min(w - 1, 5) + 1)]


def all_values(exponent_bits, mantissa_bits):
    """The positive values at scale one by the formulas of the docstring, and zero."""
    top = 2**exponent_bits - 1
    found = []
    for e in range(top + 1):
        for m in range(2**mantissa_bits):
            part = m / 2**mantissa_bits
            found.append(2.0 ** (e - top) * (1 + part) if e else 2.0 ** (1 - top) * part)
    return found


def test_the_four_bit_formats_have_the_known_values():
    e2m1, e1m2, e3m0 = (all_values(*split) for split in ((2, 1), (1, 2), (3, 0)))
    assert [value * 4 for value in e2m1] == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert [value * 4 for value in e1m2] == list(range(8))
    assert [value * 64 for value in e3m0] == [0, 1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize(("exponent_bits", "mantissa_bits"), FORMATS)
def test_every_code_stands_for_its_value_and_comes_back(exponent_bits, mantissa_bits):
    half = 2 ** (exponent_bits + mantissa_bits)
    expected = all_values(exponent_bits, mantissa_bits)
    values = float_values(torch.arange(2 * half), exponent_bits, mantissa_bits)
    assert values.tolist() == expected + [-value for value in expected]
    assert len(set(values.tolist())) == 2 * half - 1
    assert float(values.max()) == largest(mantissa_bits)
    codes = float_codes(values, exponent_bits, mantissa_bits, 1.0)
    assert codes.tolist() == [*range(half), 0, *range(half + 1, 2 * half)]


@given(
    st.sampled_from(FORMATS),
    st.lists(st.floats(-1e5, 1e5, width=32), min_size=1, max_size=30),
    st.floats(2**-10, 2**10, width=32),
)
def test_each_number_gets_the_nearest_value(split, numbers, scale):
    levels = torch.tensor(all_values(*split), dtype=torch.float64) * scale
    levels = torch.cat([levels, -levels])
    x = torch.tensor(numbers)
    made = nearest(x, *split, scale).double()
    least = (x.double()[:, None] - levels).abs().amin(dim=1)
    assert torch.allclose((x.double() - made).abs(), least, rtol=1e-5, atol=1e-6 * scale)
    assert bool(((made[:, None] - levels).abs().amin(dim=1) <= 1e-6 * made.abs()).all())


@pytest.mark.parametrize(("exponent_bits", "mantissa_bits"), FORMATS)
def test_halves_go_to_the_even_mantissa_and_powers_of_two_stay(exponent_bits, mantissa_bits):
    values = torch.tensor(all_values(exponent_bits, mantissa_bits))
    assert torch.equal(nearest(values, exponent_bits, mantissa_bits, 1.0), values)
    for low, high in pairwise(values.tolist()):
        middle = nearest(torch.tensor((low + high) / 2), exponent_bits, mantissa_bits, 1.0)
        assert float(middle) in (low, high)
    if mantissa_bits:
        codes = torch.arange(len(values) - 1)
        middles = (values[1:] + values[:-1]) / 2
        assert torch.equal(float_codes(middles, exponent_bits, mantissa_bits, 1.0), codes + codes % 2)


def test_one_exponent_bit_is_a_uniform_grid():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    step = 0.3 / 4
    assert torch.allclose(nearest(x, 1, 2, 0.3), (x / step).round().clamp(-7, 7) * step, atol=1e-6)


def test_a_power_of_two_moves_between_scale_and_numbers():
    x = torch.randn(64, 9, generator=torch.Generator().manual_seed(0))
    shifts = 2.0 ** torch.arange(9)
    assert torch.equal(nearest(x, 2, 1, 0.7 / shifts), nearest(x * shifts, 2, 1, 0.7) / shifts)


def test_a_real_bias_is_a_real_scale():
    """The paper's rule: p = max(1, floor(log2 |x| + b)), step 2**(p - M - b), clamped to ±c."""
    x = torch.randn(500, generator=torch.Generator().manual_seed(1)).double()
    exponent_bits, mantissa_bits, bias = 2, 1, 1.37
    c = (2 - 2.0**-mantissa_bits) * 2 ** (2**exponent_bits - 1 - bias)
    expected = []
    for value in x.clamp(-c, c).tolist():
        p = max(1, math.floor(math.log2(abs(value)) + bias))
        step = 2 ** (p - mantissa_bits - bias)
        expected.append(step * round(value / step))
    made = nearest(x.float(), exponent_bits, mantissa_bits, 2 ** (2**exponent_bits - 1 - bias))
    assert torch.allclose(made, torch.tensor(expected), atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("width", "exponent_bits"), [(2, 1), (3, 2), (4, 2), (6, 3), (8, 5)])
def test_the_part_stores_packed_codes_and_comes_back_from_its_tensors(width, exponent_bits, masked):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 48, generator=generator)
    kept = torch.rand(5, 48, generator=generator) < 0.5 if masked else None
    scales = (weight.view(5, 3, 16).abs().amax(dim=-1) / 1.5).half()
    part = Float.encode(weight, scales, width, exponent_bits, 16, kept)
    wide = scales.float().repeat_interleave(16, dim=1)
    expected = nearest(weight, exponent_bits, width - 1 - exponent_bits, wide)
    assert torch.equal(part.dense(), expected if kept is None else expected * kept)
    count = 240 if kept is None else int(kept.sum())
    assert part.codes.numel() == (count * width + 7) // 8
    assert torch.equal(rebuild(part.kind, part.settings(), part.tensors()).dense(), part.dense())
