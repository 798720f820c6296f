"""Masks that are learned: the choice among patterns, its gradient, and the long run that learns it."""

import math
from itertools import product

import pytest
import torch

from backend.solvers.longrun import descend
from backend.solvers.masks import (
    decided,
    first_logits,
    gumbel,
    hard_mask,
    keep_pattern,
    patterns_of,
    soft_mask,
)
from backend.views import Kept


class Stopped(Exception):
    pass


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def random_mask(rows=256, inputs=1024, pattern="2:4"):
    return keep_pattern(torch.rand(rows, inputs, generator=rng(1)), pattern)


def nothing(done, total, words):
    pass


def memory():
    """A place to save that holds one state."""
    held = {}

    def save(tensors):
        held["state"] = {name: tensor.clone() for name, tensor in tensors.items()}

    return Kept(lambda: held.get("state"), save)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_the_table_holds_every_pattern_once(pattern):
    keep, of = (int(number) for number in pattern.split(":"))
    every = {bits for bits in product((0.0, 1.0), repeat=of) if sum(bits) == keep}
    table = patterns_of(pattern)
    assert {tuple(row.tolist()) for row in table} == every
    assert len(table) == math.comb(of, keep)


def test_the_patterns_of_two_of_four_stand_in_the_order_of_the_paper():
    names = ["".join(str(int(bit)) for bit in row) for row in patterns_of("2:4")]
    assert names == ["1100", "1010", "1001", "0110", "0101", "0011"]


@pytest.mark.parametrize(("alpha", "share"), [(0, 1 / 6), (1, 0.487), (3, 0.946), (5, 0.999), (10, 1.0)])
def test_the_first_logits_agree_with_the_mask_as_often_as_alpha_says(alpha, share):
    mask = random_mask()
    table = patterns_of("2:4")
    found = hard_mask(first_logits(mask, table, alpha, rng()), table, mask.shape)
    same = float((found == mask).view(-1, 4).all(dim=1).float().mean())
    assert same == pytest.approx(share, abs=0.006)
    assert alpha < 10 or torch.equal(found, mask)


def test_a_draw_at_alpha_three_and_scale_hundred_is_the_given_pattern_three_times_in_four():
    mask = random_mask()
    table = patterns_of("2:4")
    logits = 100 * first_logits(mask, table, 3.0, rng())
    found = hard_mask(logits + gumbel(logits, rng(2)), table, mask.shape)
    assert float((found == mask).view(-1, 4).all(dim=1).float().mean()) == pytest.approx(0.73, abs=0.02)


def test_gumbel_noise_makes_the_largest_a_draw_from_the_softmax():
    odds = torch.tensor([0.05, 0.1, 0.15, 0.2, 0.2, 0.3])
    logits = odds.log()[:, None].expand(6, 200_000)
    drawn = (logits + gumbel(logits, rng())).argmax(dim=0).bincount(minlength=6) / 200_000
    assert torch.allclose(drawn, odds, atol=0.005)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
@pytest.mark.parametrize("temperature", [4.0, 0.5, 0.05])
def test_a_soft_mask_lies_between_zero_and_one_and_keeps_n_of_each_group(pattern, temperature):
    keep, of = (int(number) for number in pattern.split(":"))
    table = patterns_of(pattern)
    mask = soft_mask(3 * torch.randn(len(table), 60, generator=rng()), table, temperature, (12, 5 * of))
    assert float(mask.min()) >= 0
    assert float(mask.max()) <= 1 + 1e-6
    torch.testing.assert_close(mask.view(-1, of).sum(dim=1), torch.full((60,), float(keep)))


def test_a_soft_mask_is_the_mix_that_loops_make():
    table, logits = patterns_of("2:4"), torch.randn(6, 6, generator=rng())
    mask = soft_mask(logits, table, 0.7, (3, 8))
    for group in range(6):
        odds = [math.exp(float(logit) / 0.7) for logit in logits[:, group]]
        for place in range(4):
            wanted = sum(o * float(row[place]) for o, row in zip(odds, table, strict=True)) / sum(odds)
            row, column = divmod(4 * group + place, 8)
            assert float(mask[row, column]) == pytest.approx(wanted, rel=1e-5)


def test_a_cold_soft_mask_is_the_hard_one_and_a_decided_choice_heeds_no_noise():
    table, logits = patterns_of("2:4"), torch.randn(6, 500, generator=rng())
    hard = hard_mask(logits, table, (50, 40))
    assert bool((hard.view(-1, 4).sum(dim=1) == 2).all())
    torch.testing.assert_close(soft_mask(logits, table, 1e-4, (50, 40)), hard.float(), atol=0.05, rtol=0)
    noisy = 300 * decided(logits) + 50 * torch.randn(6, 500, generator=rng(1))
    assert torch.equal(soft_mask(noisy, table, 4.0, (50, 40)), hard.float())


def test_the_gradient_of_a_group_is_that_of_finite_differences_under_the_same_noise():
    table = patterns_of("2:4").double()
    weight = torch.randn(1, 4, generator=rng(), dtype=torch.float64).requires_grad_(False)
    x = torch.randn(32, 4, generator=rng(1), dtype=torch.float64)
    target = x @ weight.T
    noise = gumbel(torch.zeros(6, 1, dtype=torch.float64), rng(2))

    def loss(logits):
        made = weight * soft_mask(3 * logits + noise, table, 0.8, (1, 4))
        return (x @ made.T - target).square().mean() - 0.1 * made.square().sum()

    logits = torch.randn(6, 1, generator=rng(3), dtype=torch.float64).requires_grad_()
    loss(logits).backward()
    assert weight.grad is None
    for k in range(6):
        step = torch.zeros(6, 1, dtype=torch.float64)
        step[k] = 1e-6
        slope = float(loss(logits.detach() + step) - loss(logits.detach() - step)) / 2e-6
        assert float(logits.grad[k]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_the_reward_for_large_weights_alone_ends_in_the_magnitude_mask_where_there_is_a_clear_one():
    weight = torch.randn(64, 256, generator=rng())
    table = patterns_of("2:4")
    logits = {"w": first_logits(random_mask(64, 256), table, 0.0, rng(1))}

    def slopes(values, some, share, generator):
        leaf = values["w"].detach().requires_grad_()
        made = weight * soft_mask(100 * leaf + gumbel(leaf, generator), table, 4.0, weight.shape)
        (-made.square().sum()).backward()
        return {"w": leaf.grad}

    descend(
        logits, slopes, lambda values: 0.0, lambda values: {}, torch.arange(1), 1, 1000, 1, 0.002, 0,
        memory(), nothing,
    )  # fmt: skip
    found, wanted = hard_mask(logits["w"], table, weight.shape), keep_pattern(weight.abs(), "2:4")
    rewards = (table @ weight.view(-1, 4).square().T).sort(dim=0, descending=True).values
    # Adam moves two nearly equal patterns alike, so that only a lead counts.
    clear = rewards[1] < 0.8 * rewards[0]
    same = (found == wanted).view(-1, 4).all(dim=1)
    assert float(same[clear].float().mean()) > 0.99
    assert float((weight * found).square().sum() / (weight * wanted).square().sum()) > 0.99


def quadratic(judged=None, kept=None, told=nothing, rate=0.1):
    """A long run on |v - target|² with noisy gradients, and what became of v."""
    target = torch.linspace(-1, 1, 7)
    values = {"v": torch.zeros(7)}

    def slopes(now, some, share, generator):
        return {"v": 2 * (now["v"] - target) + 0.1 * torch.randn(7, generator=generator) + 0.01 * some.sum()}

    found = descend(
        values, slopes, judged or (lambda now: float((now["v"] - target).square().sum())),
        lambda now: {"v": now["v"].clone()}, torch.arange(10), 3, 20, 8, rate, 5, kept or memory(), told,
    )  # fmt: skip
    return found, values["v"]


def test_the_best_judgement_is_kept_and_the_curve_begins_at_the_start():
    found, _ = quadratic()
    assert len(found.losses) == len(found.steps) == 9
    assert (found.steps[0], found.steps[-1]) == (0, 80)
    assert found.losses[0] == pytest.approx(float(torch.linspace(-1, 1, 7).square().sum()))
    assert found.losses[found.at] == min(found.losses) < 0.1 * found.losses[0]
    lost = float((found.best["v"] - torch.linspace(-1, 1, 7)).square().sum())
    assert lost == pytest.approx(min(found.losses))


def test_a_run_that_only_harms_gives_the_start_back():
    found, last = quadratic(judged=lambda now: float(now["v"].square().sum()))
    assert found.at == 0
    assert torch.equal(found.best["v"], torch.zeros(7))
    assert float(last.square().sum()) > 0.5


def test_at_rate_zero_nothing_moves():
    _, last = quadratic(rate=0.0)
    assert torch.equal(last, torch.zeros(7))


def test_a_long_run_that_was_stopped_goes_on_to_the_same_end_without_doing_it_all_again():
    whole, end = quadratic()
    kept, seen = memory(), []

    def stop(done, total, words):
        seen.append(done)
        if done == 57 and seen.count(57) == 1:
            raise Stopped

    with pytest.raises(Stopped):
        quadratic(kept=kept, told=stop)
    again, same = quadratic(kept=kept, told=stop)
    assert torch.equal(same, end)
    assert again.losses == whole.losses
    assert torch.equal(again.best["v"], whole.best["v"])
    assert len(seen) < 80 + 12
