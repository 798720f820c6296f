import numpy as np
import pytest
import torch

from backend.methods.prune.magnitude import magnitude
from backend.methods.quantize.hqq import hqq
from backend.methods.quantize.rtn import rtn
from backend.padding import applied
from backend.parts import combined
from backend.registry import discover
from backend.sizes import Matrix
from tests.layers import after, layer_of, random_layer

ROWS = {"axis": "inputs"}


def lost(layer, parts, group=32):
    """The l_0.7 error of each group [out, groups]."""
    error = (layer.weight - combined(parts)).double().abs()
    return error.pow(0.7).view(error.shape[0], -1, group).sum(dim=-1)


def by_hand(weight, bits, group, rounds, round_zero=False):
    """Groups along each row of numpy `weight`, one at a time in float64, the last one as long as it is."""
    out, top = np.zeros_like(weight, dtype=np.float64), 2**bits - 1
    for row in range(len(weight)):
        for start in range(0, weight.shape[1], group):
            w = weight[row, start : start + group].astype(np.float64)
            scale = float(np.float16((w.max() - w.min()) / top))
            zero = float(np.float16(-w.min() / scale))
            zero = float(np.round(zero)) if round_zero else zero
            least, beta = np.inf, 10.0
            for _ in range(rounds + 1):
                codes = np.clip(np.round(w / scale + zero), 0, top)
                error = w - scale * (codes - zero)
                size = np.maximum(np.abs(error), 1e-12)
                if (size**0.7).sum() < least:
                    least = (size**0.7).sum()
                    out[row, start : start + group] = scale * (codes - zero)
                shrunk = np.sign(error) * np.maximum(size - size**-0.3 / beta, 0)
                zero = float(np.float16((codes - (w - shrunk) / scale).mean()))
                beta *= 1.01
    return out


@pytest.mark.parametrize("round_zero", [False, True])
@pytest.mark.parametrize(("rows", "group"), [(64, 32), (50, 20)])
@pytest.mark.parametrize("bits", [2, 4])
def test_along_either_axis_it_is_the_loop_written_out_for_one_group_at_a_time(bits, rows, group, round_zero):
    layer, _ = random_layer(rows=rows, inputs=60 if rows == 50 else 96)
    params = {"bits": bits, "group_size": group, "round_zero": round_zero}
    weight = layer.weight.numpy()
    along_outputs = by_hand(weight.T, bits, group, 20, round_zero).T
    along_inputs = by_hand(weight, bits, group, 20, round_zero)
    for axis, expected in (("outputs", along_outputs), ("inputs", along_inputs)):
        ours = combined(hqq(layer, **params, axis=axis)).double().numpy()
        # Ties of rounding fall differently in float32 and float64, and decide for the rest of a group.
        apart = np.abs(ours - expected) > 1e-4 * np.abs(weight).max()
        assert apart.mean() < 0.02
        assert np.linalg.norm(weight - ours) == pytest.approx(np.linalg.norm(weight - expected), rel=1e-2)
    assert not np.allclose(along_outputs, along_inputs, atol=0.1)


def test_a_shorter_last_group_of_outputs_has_its_own_range():
    layer, _ = random_layer(rows=50, inputs=24)
    weight = layer.weight + 100
    (part,) = hqq(layer_of(weight, torch.eye(24, dtype=torch.float64)), bits=4, group_size=20)
    assert part.scales.shape == (24, 3)
    (alone,) = hqq(layer_of(weight[40:], torch.eye(24, dtype=torch.float64)), bits=4, group_size=-1)
    assert torch.equal(part.dense()[40:], alone.dense())


def test_groups_along_outputs_save_the_softly_heard_inputs():
    layer, _ = random_layer(rows=64, inputs=64)
    weight = layer.weight.clone()
    weight[:, ::8] *= 50
    soft = [j for j in range(64) if j % 8]
    layer = layer_of(weight, torch.eye(64, dtype=torch.float64))
    along = {
        axis: float((weight - combined(hqq(layer, bits=3, group_size=32, axis=axis)))[:, soft].norm())
        for axis in ("outputs", "inputs")
    }
    assert along["outputs"] < along["inputs"] / 3


@pytest.mark.parametrize("axis", ["outputs", "inputs"])
@pytest.mark.parametrize(("rows", "inputs", "group"), [(64, 96, 32), (50, 70, 32), (7, 33, 20), (64, 96, -1)])
@pytest.mark.parametrize("pattern", [None, 0.3])
def test_what_is_stored_is_what_is_counted_beforehand(axis, rows, inputs, group, pattern):
    method = discover().methods["quantize.hqq"]
    params = method.params.model_validate({"bits": 3, "group_size": group, "axis": axis}).model_dump()
    layer, _ = random_layer(rows=rows, inputs=inputs)
    if pattern:
        layer = after(layer, magnitude(layer, sparsity=pattern))
    (part,) = applied(method, layer, params)
    count = rows * inputs if layer.kept is None else int(layer.kept.sum())
    sizes = {name: tensor.nbytes for name, tensor in part.tensors().items() if name != "mask"}
    assert method.stored(Matrix(rows, inputs, count, 32), params) == sum(sizes.values())
    assert part.shape == (rows, inputs)
    if pattern:
        assert bool((part.dense()[~layer.kept] == 0).all())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_group_loses_more_than_rounding_with_a_float_zero_and_the_mean_is_lower(bits):
    layer, _ = random_layer()
    ours = lost(layer, hqq(layer, bits=bits, group_size=32, **ROWS))
    plain = lost(layer, rtn(layer, bits=bits, group_size=32, zero="float"))
    assert bool((ours <= plain * (1 + 1e-5)).all())
    assert float((ours / plain).mean()) < 0.98


def test_no_rounds_are_rounding_with_a_float_zero():
    layer, _ = random_layer()
    ours = hqq(layer, bits=3, group_size=32, rounds=0, **ROWS)
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
    assert torch.equal(combined(hqq(layer, bits=3, group_size=32, **ROWS)), layer.weight)
    turned = layer_of(layer.weight.T.contiguous(), torch.eye(16, dtype=torch.float64))
    assert torch.equal(combined(hqq(turned, bits=3, group_size=32)), turned.weight)


def test_constant_groups_survive():
    layer = layer_of(torch.full((4, 64), 3.0), torch.eye(64, dtype=torch.float64))
    assert torch.allclose(combined(hqq(layer, bits=2, group_size=32)), layer.weight, rtol=1e-3)
