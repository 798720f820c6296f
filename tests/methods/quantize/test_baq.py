import math

import pytest
import torch

from backend.methods.prune.wanda import wanda
from backend.methods.quantize import baq as module
from backend.methods.quantize.baq import allocate, baq
from backend.methods.quantize.gptq import gptq
from backend.mixed import Mixed, Ranges
from backend.parts import combined, rebuild
from backend.solvers.columns import inverse_root, solve_columns
from tests.layers import after, layer_of, output_error, random_layer


def textbook(weight, gram, levels, damping=0.01):
    """Column by column in float64 with the formulas of the docstring: Ŵ and the loss of each column."""
    w = weight.double().clone()
    h = gram.double() + damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    low, high = w.amin(dim=1).clamp(max=0), w.amax(dim=1).clamp(min=0)
    out, losses = torch.zeros_like(w), []
    for j, count in enumerate(levels):
        if count > 1:
            s = (high - low) / (count - 1)
            z = (-low / s).round()
            out[:, j] = (((w[:, j] / s).round() + z).clamp(0, count - 1) - z) * s
        e = (w[:, j] - out[:, j]) / upper[j, j]
        losses.append(float(e.square().sum() / 2))
        w[:, j:] -= e[:, None] * upper[j, j:]
    return out, torch.tensor(losses, dtype=torch.float64)


def planned(losses, mean, theta=1.95):
    """The paper's formula: levels by the geometric mean of the losses, which keeps the mean bits."""
    centred = losses / losses.log().mean().exp()
    return (centred * 2 ** (theta * mean)).pow(1 / theta).round().clamp(min=1)


def levels_of(part):
    return part.levels.long() + 1


def test_equals_two_passes_of_the_textbook_loop_up_to_ties():
    layer, x = random_layer(rows=64, inputs=160, tokens=2000)
    (part,) = baq(layer, bits=2.0)
    gram = layer.statistics.gram
    _, losses = textbook(layer.weight, gram, [4] * 160)
    # The levels are the paper's up to the rounding of the budget to whole levels.
    assert (levels_of(part) - planned(losses, 2.0)).abs().max() <= 1
    reference, _ = textbook(layer.weight, gram, levels_of(part).tolist())
    assert (part.dense() - reference).abs().gt(2e-3).float().mean() < 0.05
    assert output_error(x, layer.weight, part.dense()) == pytest.approx(
        output_error(x, layer.weight, reference), rel=0.03
    )


@pytest.mark.parametrize("bits", [2.0, 3.0, 4.0])
def test_columns_that_lose_alike_get_alike_levels_and_the_result_is_gptq(bits, monkeypatch):
    layer, _ = random_layer(rows=48, inputs=128)
    plain = module.allocate
    monkeypatch.setattr(module, "allocate", lambda losses, *rest: plain(torch.full_like(losses, 3.7), *rest))
    (part,) = baq(layer, bits=bits)
    assert set(levels_of(part).tolist()) == {2**bits}
    assert torch.equal(part.dense(), combined(gptq(layer, bits=int(bits), group_size=-1)))


@pytest.mark.parametrize("bits", [2.0, 2.5, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_mean_bits_are_those_asked_for(bits, seed):
    layer, _ = random_layer(rows=96, inputs=256, seed=seed)
    (part,) = baq(layer, bits=bits)
    mean = float(levels_of(part).double().log2().mean())
    assert bits - 0.05 < mean <= bits
    assert part.codes.numel() == 96 * 256 * bits / 8
    assert part.bits == 96 * 256 * bits + 96 * 32 + 256 * 8


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_loses_less_than_gptq_by_rows_at_equal_bits(bits, act_order, seed):
    layer, x = random_layer(rows=64, inputs=192, seed=seed)
    ours = combined(baq(layer, bits=bits, act_order=act_order))
    plain = combined(gptq(layer, bits=bits, group_size=-1, act_order=act_order))
    assert output_error(x, layer.weight, ours) < 0.95 * output_error(x, layer.weight, plain)


def column_losses(layer, levels):
    upper = inverse_root(layer.statistics, 0.01)
    ranges = Ranges.of(layer.weight, 3)
    losses = []

    def assign(j, column):
        value = ranges.rounded(column[:, None], levels[j : j + 1])[1][:, 0]
        losses.append(float((column - value).square().sum()) / (2 * float(upper[j, j]) ** 2))
        return value

    solve_columns(layer.weight, upper, assign)
    return torch.tensor(losses, dtype=torch.float64)


def test_losses_become_nearly_equal_and_fall_by_the_gain_foretold():
    layer, _ = random_layer(rows=128, inputs=256, tokens=4000)
    (part,) = baq(layer, bits=3.0)
    before = column_losses(layer, torch.full((256,), 8))
    now = column_losses(layer, levels_of(part))
    spread = [float(losses.std() / losses.mean()) for losses in (before, now)]
    assert spread[1] < 0.5 * spread[0]
    gain = float(before.log().mean().exp() / before.mean())
    assert float(now.sum() / before.sum()) == pytest.approx(gain, rel=0.25)


def test_levels_follow_the_formula_and_no_other_plan_of_the_same_bits_is_better():
    losses = torch.tensor([1.0, 2.0, 8.0, 64.0], dtype=torch.float64)
    counts = torch.full((4,), 4096)
    levels = allocate(losses, counts, 4 * 4096 * 4, 2.0).double()
    assert (levels - planned(losses, 4.0, 2.0)).abs().max() <= 1
    assert levels.log2().mean() <= 4.0
    ours = float((losses / levels**2).sum())
    grid = torch.cartesian_prod(*[torch.arange(2.0, 129.0, 3)] * 4).double()
    within = grid[grid.log2().mean(dim=1) <= levels.log2().mean()]
    assert ours <= 1.02 * float((losses / within**2).sum(dim=1).min())


def test_a_dead_column_takes_no_bits():
    layer, x = random_layer(rows=48, inputs=128)
    x = x.clone()
    weight = layer.weight.clone()
    weight[:, 9] = 0
    x[:, 9] = 0
    (part,) = baq(layer_of(weight, x), bits=2.0)
    assert int(levels_of(part)[9]) == 1
    assert bool((part.dense()[:, 9] == 0).all())


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_pruned_weights_stay_zero_and_the_kept_ones_share_the_bits(share):
    layer, x = random_layer(rows=64, inputs=128)
    pruned = after(layer, wanda(layer, sparsity=share))
    (part,) = baq(pruned, bits=2.0)
    assert torch.equal(part.kept(), pruned.kept)
    assert bool((part.dense()[~pruned.kept] == 0).all())
    assert part.codes.numel() == (2 * int(pruned.kept.sum()) + 7) // 8
    plain = combined(gptq(pruned, bits=2, group_size=-1))
    target = pruned.now
    assert output_error(x, target, part.dense()) <= output_error(x, target, plain)


@pytest.mark.parametrize("masked", [False, True])
def test_the_part_holds_any_levels_and_comes_back_from_its_tensors(masked):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 40, generator=generator)
    kept = torch.rand(7, 40, generator=generator) < 0.6 if masked else None
    levels = torch.randint(1, 257, (40,), generator=generator)
    ranges = Ranges.of(weight, 3)
    part = Mixed.encode(weight, ranges, levels, 400, kept)
    expected = torch.zeros_like(weight)
    for i in range(7):
        span = float(ranges.scales[i]) * 3
        for j in range(40):
            if levels[j] > 1 and (kept is None or kept[i, j]):
                s = span / (int(levels[j]) - 1)
                z = round(int(ranges.shares[i]) / 32767 * (int(levels[j]) - 1))
                code = min(max(round(float(weight[i, j]) / s) + z, 0), int(levels[j]) - 1)
                expected[i, j] = (code - z) * s
    assert torch.allclose(part.dense(), expected, atol=1e-5)
    assert torch.equal(rebuild(part.kind, part.settings(), part.tensors()).dense(), part.dense())


def test_codes_that_do_not_fit_are_refused():
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="16 bytes, more than the 15 allowed"):
        Mixed.encode(weight, Ranges.of(weight, 3), torch.full((8,), 16), 15)


def test_one_row_constant_weights_and_outliers_come_out_finite():
    layer, x = random_layer(rows=16, inputs=64, tokens=300)
    weight = layer.weight.bfloat16().float()
    weight[0], weight[1], weight[2, 5] = 0.25, 0.0, 1e4
    made = combined(baq(layer_of(weight, x), bits=3.0))
    assert bool(torch.isfinite(made).all())
    assert bool((made[1].abs() <= 1e-6).all())
    one = combined(baq(layer_of(weight[3:4], x), bits=3.0))
    assert float((one - weight[3:4]).norm() / weight[3:4].norm()) < 0.7
    assert math.isfinite(float(one.sum()))
