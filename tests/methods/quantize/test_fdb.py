from itertools import pairwise

import pytest
import torch

from backend.methods.prune.wanda import wanda
from backend.methods.quantize.fdb import fdb
from backend.methods.quantize.hlq import hlq
from backend.methods.quantize.rtn import rtn
from backend.parts import combined
from backend.sizes import Matrix
from tests.layers import after, layer_of, random_layer


def lost(layer, parts):
    """Squared weight error of each group of 64."""
    rows = layer.weight.shape[0]
    return (layer.weight - combined(parts)).double().square().view(rows, -1, 64).sum(dim=-1)


def by_thresholds(weight, a, c):
    """The two planes by the paper's thresholds, which are the nearest levels while a + c > 0."""
    first = (weight >= (a + c) / 2).float()
    second = (-(weight - a * first - c / 2) >= 0).float()
    return first, second


def test_the_papers_start_is_a_clipped_grid_of_minus_one_to_two():
    layer, _ = random_layer(rows=16, inputs=128)
    step = (layer.weight.view(16, 2, 64).abs().amax(dim=-1) / 2)[..., None]
    grid = (layer.weight.view(16, 2, 64) / step).round().clamp(-1, 2) * step
    # Scales are stored in float16.
    assert torch.allclose(combined(fdb(layer, start="range")).view(16, 2, 64), grid, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("start", ["range", "least_squares"])
def test_planes_are_those_of_the_papers_thresholds(start):
    layer, _ = random_layer(rows=16, inputs=128)
    (part,) = fdb(layer, start=start)
    scales = part.coefficients().view(16, 2, 2)
    a, c = scales[..., :1], scales[..., 1:]
    assert bool((a > 0).all() and (c < 0).all() and (a + c > 0).all())
    first, second = by_thresholds(layer.weight.view(16, 2, 64), a, c)
    assert torch.equal(part.bits_of(0).view(16, 2, 64).float(), first)
    assert torch.equal(part.bits_of(1).view(16, 2, 64).float(), second)
    assert torch.allclose(part.dense().view(16, 2, 64), a * first + c * second)


def test_least_squares_is_the_papers_normal_equations_in_turn():
    layer, _ = random_layer(rows=10, inputs=64)
    (part,) = fdb(layer, rounds=8)
    for row in range(10):
        values = layer.weight[row].double()
        a, c = values.abs().max(), -values.abs().max() / 2
        least = torch.inf
        for _ in range(9):
            first, second = by_thresholds(values, a, c)
            design = torch.stack([first, second], dim=1).double()
            least = min(least, float((values - design @ torch.stack([a, c])).square().sum()))
            a, c = torch.linalg.solve(design.T @ design, design.T @ values)
        assert float((values - part.dense()[row]).square().sum()) == pytest.approx(least, rel=5e-3)


def test_least_squares_loses_less_than_the_papers_start_in_each_group_and_than_rounding():
    layer, _ = random_layer(rows=96, inputs=256)
    fitted, begun = lost(layer, fdb(layer)), lost(layer, fdb(layer, start="range"))
    assert bool((fitted <= begun).all())
    assert float(fitted.sum()) < 0.85 * float(begun.sum())
    assert float(begun.sum()) < float(lost(layer, rtn(layer, bits=2, group_size=64)).sum())
    # One more scale and free levels do better still.
    assert float(lost(layer, hlq(layer, bits=2, feedback=False)).sum()) < float(fitted.sum())


def test_more_rounds_never_lose_more():
    layer, _ = random_layer(rows=48, inputs=128)
    each = [lost(layer, fdb(layer, rounds=rounds)) for rounds in (1, 2, 4, 8, 16)]
    assert all(bool((b <= a * (1 + 1e-6)).all()) for a, b in pairwise(each))


def test_planes_of_bell_shaped_weights_are_mostly_zero():
    layer, _ = random_layer(rows=192, inputs=576)
    (part,) = fdb(layer, start="range")
    ones = [float(part.bits_of(plane).float().mean()) for plane in (0, 1)]
    assert ones[0] == pytest.approx(0.26, abs=0.02)
    assert ones[1] == pytest.approx(0.49, abs=0.02)
    assert sum(ones) / 2 < 0.4


def test_zeros_constants_outliers_and_one_sided_groups_are_held():
    weight = random_layer(rows=6, inputs=128)[0].weight.clone()
    weight[0], weight[1], weight[2], weight[3] = 0.0, 0.25, -0.25, weight[3].abs()
    weight[4, 5] = 1e4
    layer = layer_of(weight, torch.eye(128, dtype=torch.float64))
    made = combined(fdb(layer))
    assert bool(torch.isfinite(made).all())
    assert torch.equal(made[0], weight[0])
    assert torch.allclose(made[1], weight[1], rtol=1e-3)
    assert torch.allclose(made[2], weight[2], rtol=1e-3)
    assert float(made[4, 5]) == pytest.approx(1e4, rel=1e-3)
    (part,) = fdb(layer)
    assert bool((part.coefficients()[:, 0] >= 0).all() and (part.coefficients()[:, 1] <= 0).all())


def test_scales_of_a_pruned_layer_are_fitted_to_what_was_kept():
    layer, _ = random_layer(rows=24, inputs=128)
    pruned = after(layer, wanda(layer, pattern="2:4"))
    (part,) = fdb(pruned)
    assert bool((part.dense()[~pruned.kept] == 0).all())
    assert part.planes.shape == (2, 24 * 64 // 8)
    error = (part.dense() - pruned.now)[pruned.kept]
    for row in range(24):
        here = pruned.kept[row].nonzero()[:, 0]
        for group in (here[here < 64], here[here >= 64]):
            planes = torch.stack([part.bits_of(0)[row, group], part.bits_of(1)[row, group]], dim=1).double()
            values = pruned.now[row, group].double()
            best = planes @ torch.linalg.lstsq(planes, values[:, None], driver="gelsd").solution[:, 0]
            own = part.dense()[row, group].double()
            assert float((own - values).square().sum()) < 1.1 * float((best - values).square().sum()) + 1e-9
    assert float(error.square().mean()) < 0.2 * float(pruned.now[pruned.kept].square().mean())


@pytest.mark.parametrize("group", [64, -1])
def test_the_estimate_counts_the_bytes_exactly(group):
    layer, _ = random_layer(rows=10, inputs=192)
    (part,) = fdb(layer, group_size=group)
    counted = fdb.__dict__["method"]["stored"](Matrix(10, 192, 1920, 16), {"group_size": group})
    assert counted * 8 == part.bits == 1920 * 2 + 32 * 10 * (3 if group == 64 else 1)
