from itertools import pairwise

import pytest
import torch

from backend.methods.prune.wanda import wanda
from backend.methods.quantize.gptq import gptq
from backend.methods.quantize.hlq import hlq
from backend.methods.quantize.rtn import rtn
from backend.parts import combined
from backend.sizes import Matrix
from tests.layers import after, layer_of, output_error, random_layer


def lost(layer, parts):
    """Squared weight error of each group of 32."""
    rows = layer.weight.shape[0]
    return (layer.weight - combined(parts)).double().square().view(rows, -1, 32).sum(dim=-1)


def plain(layer, **params):
    return hlq(layer, **{"group_size": 32, "feedback": False, **params})


def two_means(group):
    """The least squared error of two levels: every split of the sorted values tried, in float64."""
    ordered = group.double().sort().values
    return min(
        float(sum((half - half.mean()).square().sum() for half in (ordered[:cut], ordered[cut:])))
        for cut in range(1, len(ordered))
    )


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_without_rounds_it_is_rounding_with_a_float_zero(bits):
    layer, _ = random_layer()
    ours, known = plain(layer, bits=bits, rounds=0), rtn(layer, bits=bits, group_size=32, zero="float")
    assert float(lost(layer, ours).sum()) == pytest.approx(float(lost(layer, known).sum()), rel=3e-3)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_no_group_loses_more_with_more_rounds_and_all_together_far_less(bits):
    layer, _ = random_layer()
    each = [lost(layer, plain(layer, bits=bits, rounds=rounds)) for rounds in (0, 1, 2, 5, 10)]
    assert all(bool((later <= before * (1 + 1e-5)).all()) for before, later in pairwise(each))
    assert float(each[-1].sum()) < 0.8 * float(each[0].sum())


def test_the_scales_are_least_squares_for_the_codes_that_were_chosen():
    layer, _ = random_layer(rows=12, inputs=64)
    (part,) = plain(layer, bits=2, rounds=100)
    planes = torch.stack([part.bits_of(0), part.bits_of(1), torch.ones(12, 64)], dim=-1).double()
    for row in range(12):
        for group in (slice(0, 32), slice(32, 64)):
            design, values = planes[row, group], layer.weight[row, group].double()
            best = design @ torch.linalg.lstsq(design, values[:, None], driver="gelsd").solution[:, 0]
            ours = float((values - part.dense()[row, group]).square().sum())
            assert ours == pytest.approx(float((values - best).square().sum()), rel=1e-3)


def test_one_bit_comes_near_the_best_two_levels_and_never_below():
    layer, _ = random_layer(rows=16, inputs=64)
    ours = lost(layer, plain(layer, bits=1, rounds=50)).view(-1)
    best = torch.tensor([two_means(group) for group in layer.weight.view(-1, 32)])
    assert bool((ours >= best * (1 - 1e-3)).all())
    assert float(ours.sum()) < 1.1 * float(best.sum())


@pytest.mark.parametrize("bits", [2, 3])
def test_with_feedback_it_loses_less_than_gptq_and_than_itself_without(bits):
    layer, x = random_layer(rows=48, inputs=256)
    own = {"bits": bits, "group_size": 64}
    ours, alone, grid = (
        output_error(x, layer.weight, combined(made))
        for made in (hlq(layer, **own), hlq(layer, **own, feedback=False), gptq(layer, **own))
    )
    assert ours < grid
    assert ours < 0.5 * alone


@pytest.mark.parametrize("bits", [2, 3])
def test_codes_chosen_in_turn_lose_less_than_codes_chosen_at_once(bits):
    layer, x = random_layer(rows=48, inputs=256)
    fresh, frozen = (combined(hlq(layer, bits=bits, group_size=64, refresh=flag)) for flag in (True, False))
    assert output_error(x, layer.weight, fresh) < 0.9 * output_error(x, layer.weight, frozen)


@pytest.mark.parametrize("bits", [1, 3])
def test_feedback_is_the_textbook_loop_on_the_stored_levels(bits):
    layer, x = random_layer(rows=10, inputs=96)
    (part,) = hlq(layer, bits=bits, group_size=-1)
    scales = part.coefficients().double()
    codes = torch.arange(2**bits)
    levels = scales[:, -1:] + sum(scales[:, k : k + 1] * ((codes >> k) & 1) for k in range(bits))
    gram = layer.statistics.gram
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(96, dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    now, out = layer.weight.double().clone(), torch.zeros(10, 96, dtype=torch.float64)
    for j in range(96):
        out[:, j] = levels.gather(1, (now[:, j : j + 1] - levels).abs().argmin(dim=1, keepdim=True))[:, 0]
        now[:, j:] -= ((now[:, j] - out[:, j]) / upper[j, j])[:, None] * upper[j, j:]
    # Single precision flips a rare tie, after which a row goes another, equally good way.
    assert (part.dense() - out.float()).abs().gt(1e-5).float().mean() < 0.02
    assert output_error(x, layer.weight, part.dense()) == pytest.approx(
        output_error(x, layer.weight, out), rel=0.05
    )


def test_without_correlations_feedback_changes_nothing():
    layer = layer_of(random_layer()[0].weight, torch.diag(torch.linspace(1, 3, 128, dtype=torch.float64)))
    assert torch.allclose(combined(hlq(layer, group_size=32)), combined(plain(layer)), atol=1e-6)


@pytest.mark.parametrize("feedback", [False, True])
def test_constant_groups_zeros_and_outliers_are_held(feedback):
    layer, x = random_layer(rows=8, inputs=64)
    weight = layer.weight.clone()
    weight[1], weight[2], weight[3, 7] = 0.25, 0.0, 1e4
    made = combined(hlq(layer_of(weight, x), group_size=32, feedback=feedback))
    assert bool(torch.isfinite(made).all())
    assert torch.allclose(made[1], weight[1])
    assert torch.equal(made[2], weight[2])
    assert float(made[3, 7]) == pytest.approx(1e4, rel=1e-3)
    assert float((made[3, 32:] - weight[3, 32:]).abs().max()) < 3


@pytest.mark.parametrize("feedback", [False, True])
def test_levels_of_a_pruned_group_are_fitted_to_what_was_kept(feedback):
    layer, _ = random_layer(rows=24, inputs=128)
    layer = layer_of(layer.weight + 6, torch.eye(128, dtype=torch.float64))
    pruned = after(layer, wanda(layer, pattern="2:4"))
    made = combined(hlq(pruned, bits=3, group_size=32, feedback=feedback))
    assert bool((made[~pruned.kept] == 0).all())
    # Zeros among the values would stretch the levels over six units that hold nothing.
    assert float((made - pruned.now)[pruned.kept].square().mean()) < 0.03


@pytest.mark.parametrize("group", [32, -1])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_estimate_counts_the_bytes_exactly(bits, group):
    from_shape = hlq.__dict__["method"]["stored"]
    layer, _ = random_layer()
    (part,) = hlq(layer, bits=bits, group_size=group)
    matrix = Matrix(48, 128, 48 * 128, 32)
    assert from_shape(matrix, {"bits": bits, "group_size": group}) * 8 == part.bits
    assert part.bits / (48 * 128) == bits + 16 * (bits + 1) / (128 if group == -1 else group)
