import numpy as np
import pytest
import torch

from backend.methods.quantize.rtn import rtn
from backend.parts import combined
from tests.layers import random_layer


def plain_rounding(weight, bits, group, symmetric):
    """The formulas of the docstring in numpy, with the scale kept in float16 as it is stored."""
    w = weight.numpy().astype(np.float32)
    out = np.empty_like(w)
    for row in range(w.shape[0]):
        for start in range(0, w.shape[1], group):
            values = w[row, start : start + group]
            levels = 2**bits - 1
            if symmetric:
                scale, zero = (
                    np.float32(np.float16(2 * np.abs(values).max() / np.float32(levels))),
                    2 ** (bits - 1),
                )
            else:
                low, high = min(values.min(), 0), max(values.max(), 0)
                scale = np.float32(np.float16((high - low) / np.float32(levels)))
                zero = np.clip(np.round(-low / scale), 0, levels)
            codes = np.clip(np.round(values / scale) + zero, 0, levels)
            out[row, start : start + group] = (codes - zero) * scale
    return torch.from_numpy(out)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [32, 128])
def test_equals_the_formula_written_out_in_numpy(bits, symmetric, group):
    layer, _ = random_layer(rows=8)
    ours = combined(rtn(layer, bits=bits, group_size=group, symmetric=symmetric))
    assert torch.allclose(ours, plain_rounding(layer.weight, bits, group, symmetric), atol=1e-6)


def test_the_error_of_a_weight_is_at_most_one_step():
    layer, _ = random_layer()
    (part,) = rtn(layer, bits=3, group_size=32)
    steps = part.scales.float().repeat_interleave(32, dim=1)
    assert bool(((part.dense() - layer.weight).abs() <= 1.01 * steps).all())


def test_each_further_bit_quarters_the_squared_error():
    layer, _ = random_layer()
    errors = [
        float((layer.weight - combined(rtn(layer, bits=bits, group_size=32))).square().sum())
        for bits in (3, 4, 5)
    ]
    assert 3 < errors[0] / errors[1] < 6
    assert 3 < errors[1] / errors[2] < 6


def test_whole_rows_lose_more_than_groups():
    layer, _ = random_layer()
    lost = [
        float((layer.weight - combined(rtn(layer, bits=3, group_size=g))).square().sum())
        for g in (-1, 64, 32)
    ]
    assert lost[0] > lost[1] > lost[2]


def test_stored_bits_follow_the_formula():
    layer, _ = random_layer(rows=48, inputs=128)
    (part,) = rtn(layer, bits=3, group_size=64)
    assert part.bits == 48 * 128 * 3 + 48 * 2 * (16 + 3)
