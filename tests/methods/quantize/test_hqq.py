import numpy as np
import pytest
import torch

from backend.methods.quantize.hqq import hqq
from backend.methods.quantize.rtn import rtn
from backend.parts import combined
from tests.layers import layer_of, random_layer


def lost(layer, parts, group=32):
    """The l_0.7 error of each group [out, groups]."""
    error = (layer.weight - combined(parts)).double().abs()
    return error.pow(0.7).view(error.shape[0], -1, group).sum(dim=-1)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_group_loses_more_than_rounding_with_a_float_zero_and_the_mean_is_lower(bits):
    layer, _ = random_layer()
    ours = lost(layer, hqq(layer, bits=bits, group_size=32))
    plain = lost(layer, rtn(layer, bits=bits, group_size=32, zero="float"))
    assert bool((ours <= plain * (1 + 1e-5)).all())
    assert float((ours / plain).mean()) < 0.98


def test_no_rounds_are_rounding_with_a_float_zero():
    layer, _ = random_layer()
    ours = hqq(layer, bits=3, group_size=32, rounds=0)
    assert torch.equal(combined(ours), combined(rtn(layer, bits=3, group_size=32, zero="float")))


def test_float_zero_rounding_is_the_formula_written_out_in_numpy():
    layer, _ = random_layer(rows=6)
    w = layer.weight.numpy().reshape(6, 4, 32)
    low, high = w.min(-1, keepdims=True), w.max(-1, keepdims=True)
    scale = ((high - low) / np.float32(7)).astype(np.float16).astype(np.float32)
    zero = (-low / scale).astype(np.float16).astype(np.float32)
    codes = np.clip(np.round(w / scale + zero), 0, 7)
    expected = torch.from_numpy((codes - zero) * scale).view(6, 128)
    assert torch.allclose(combined(rtn(layer, bits=3, group_size=32, zero="float")), expected, atol=1e-6)


def test_weights_on_a_grid_come_back_exactly():
    codes = torch.randint(0, 8, (16, 64), generator=torch.Generator().manual_seed(0)).float()
    codes[:, 0], codes[:, 1] = 0, 7
    codes[:, 32], codes[:, 33] = 0, 7
    layer = layer_of((codes - 2.5) * 0.25, torch.eye(64, dtype=torch.float64))
    assert torch.equal(combined(hqq(layer, bits=3, group_size=32)), layer.weight)


def test_constant_groups_survive():
    layer = layer_of(torch.full((4, 64), 3.0), torch.eye(64, dtype=torch.float64))
    assert torch.allclose(combined(hqq(layer, bits=2, group_size=32)), layer.weight, rtol=1e-3)
