"""Evolutionary search on losses whose best plan is known by trying all."""

import itertools

import pytest
import torch

from backend.solvers.evolution import Selection, evolve, flips
from backend.views import NOTHING_KEPT, Kept

# Two linears cost 10 a level, three cost 4: levels are switched within each of the two.
SIZES = ((10, 20, 30), (10, 20, 30), (4, 8, 12), (4, 8, 12), (4, 8, 12))
START = (1, 1, 1, 1, 1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rugged(plan, windows=()):
    """Neither additive nor monotone, different for any two plans."""
    single = (3.0, 1.0, 0.5, 2.0, 0.25)
    alone = sum(weight * (2 - level) ** 2 for weight, level in zip(single, plan, strict=True))
    return (
        alone
        - 4.5 * plan[0] * plan[3]
        + 0.7 * plan[1] * plan[4]
        + 1e-3 * sum(k * p for k, p in enumerate(plan))
    )


def allowed():
    for plan in itertools.product(range(3), repeat=5):
        if sum(plan[:2]) == 2 and sum(plan[2:]) == 3:
            yield plan


def search(loss=rugged, generations=60, seed=0, offspring=4, windows=3, rounds=None, told=None, start=START,
           kept=NOTHING_KEPT):  # fmt: skip
    return evolve(
        start, SIZES, loss, windows=windows, generations=generations, offspring=offspring,
        rounds=rounds or (Selection(1, 2), Selection(windows, 1)), rng=generator(seed),
        told=told or (lambda generation, plan, losses: None), kept=kept,
    ).plan  # fmt: skip


def test_flips_come_one_two_and_three_at_the_odds_of_the_paper():
    rng = generator()
    drawn = [flips(rng) for _ in range(10_000)]
    for count, share in ((1, 5 / 9), (2, 3 / 9), (3, 1 / 9)):
        # Four standard errors of a share among 10000.
        assert drawn.count(count) / 10_000 == pytest.approx(
            share, abs=4 * (share * (1 - share) / 10_000) ** 0.5
        )


def test_finds_what_trying_all_plans_finds():
    best = min(allowed(), key=rugged)
    assert rugged(best) < rugged(START)
    for seed in range(5):
        assert tuple(search(seed=seed)) == best


def test_one_generation_with_all_single_switches_is_their_brute_force():
    # Three linears of one size: so many children hold all that one, two and three flips can reach.
    sizes = SIZES[2:]

    def reachable(plan, left):
        yield tuple(plan)
        if left:
            for down, up in itertools.permutations(range(3), 2):
                if plan[down] > 0 and plan[up] < 2:
                    moved = list(plan)
                    moved[down] -= 1
                    moved[up] += 1
                    yield from reachable(moved, left - 1)

    def lost(plan, windows):
        return rugged((1, 1, *plan))

    found = evolve(
        (1, 1, 1), sizes, lost, windows=1, generations=1, offspring=100,
        rounds=(Selection(1, 1),), rng=generator(),
    ).plan  # fmt: skip
    assert tuple(found) == min(reachable((1, 1, 1), 3), key=lambda plan: lost(plan, ()))


def test_every_plan_that_is_measured_costs_what_the_start_costs():
    seen = []

    def lost(plan, windows):
        seen.append(tuple(plan))
        return rugged(plan)

    search(lost, start=(2, 1, 0, 1, 2))
    assert len(set(seen)) > 10
    for plan in seen:
        assert sum(plan[:2]) == 3
        assert sum(plan[2:]) == 3
        assert all(0 <= level <= 2 for level in plan)


def test_where_levels_are_not_evenly_spaced_nothing_costs_more_than_the_start():
    sizes = ((1, 2, 9), (1, 2, 9), (1, 2, 9))
    seen = []

    def lost(plan, windows):
        seen.append(sum(size[level] for size, level in zip(sizes, plan, strict=True)))
        return float(sum(plan))

    evolve((1, 1, 1), sizes, lost, windows=1, generations=5, offspring=3,
           rounds=(Selection(1, 1),), rng=generator())  # fmt: skip
    assert all(size <= 6 for size in seen)


def test_on_fixed_windows_the_parent_never_gets_worse():
    told = []
    search(
        told=lambda generation, plan, losses: told.append((generation, rugged(plan), losses[-1])),
        generations=25,
    )
    assert [generation for generation, _, _ in told] == list(range(25))
    losses = [loss for _, loss, _ in told]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    assert all(loss == lost for _, loss, lost in told)


def test_all_children_of_a_round_see_the_same_windows_and_rounds_draw_their_own():
    seen = []

    def lost(plan, windows):
        seen.append((tuple(plan), tuple(windows)))
        return rugged(plan)

    search(lost, generations=1, windows=50, rounds=(Selection(2, 2), Selection(7, 1)))
    first, last = seen[:4], seen[4:]
    assert {len(windows) for _, windows in first} == {2}
    assert len({windows for _, windows in first}) == 1
    assert len(last) == 3, "two children and the parent"
    assert {len(windows) for _, windows in last} == {7}
    assert len({windows for _, windows in last}) == 1
    assert last[-1][0] == START
    assert len({plan for plan, _ in first}) == 4
    assert START not in {plan for plan, _ in first}
    best = sorted(first, key=lambda pair: rugged(pair[0]))[:2]
    assert [plan for plan, _ in last[:2]] == [plan for plan, _ in best]


def test_a_plan_that_breaks_the_model_is_never_a_parent():
    def lost(plan, windows):
        return float("nan") if plan[0] == 2 else rugged(plan)

    best = min((plan for plan in allowed() if plan[0] != 2), key=rugged)
    assert tuple(search(lost)) == best


def test_the_same_seed_walks_the_same_way():
    ways = []
    for seed in (3, 3, 4):
        way = []
        search(
            told=lambda generation, plan, lost, way=way: way.append(tuple(plan)), seed=seed, generations=10
        )
        ways.append(way)
    assert ways[0] == ways[1] != ways[2]


def test_where_nothing_can_be_switched_the_start_stays():
    assert search(start=(0, 0, 2, 2, 2)) == [0, 0, 2, 2, 2]


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been():
    class Stopped(Exception):
        pass

    left: dict = {}
    told = []

    def stop(generation, plan, losses):
        told.append(list(losses))
        if generation == 7 and len(told) == 8:
            raise Stopped

    kept = Kept(lambda: left or None, left.update)
    with pytest.raises(Stopped):
        search(generations=20, told=stop, kept=kept)
    measured = []

    def lost(plan, windows):
        measured.append(plan)
        return rugged(plan)

    whole = search(generations=20)
    assert search(lost, generations=20, told=stop, kept=kept) == whole
    # Where it goes on it tells first how far it is.
    assert [len(losses) for losses in told] == [*range(1, 9), *range(8, 21)]
    # Twelve generations of four children, two of them and the parent again.
    assert len(measured) <= 12 * (4 + 3)


@pytest.mark.parametrize("seed", range(5))
def test_where_nothing_differs_in_loss_no_plan_takes_more_bytes_than_the_one_before(seed):
    sizes, taken = ((0, 1, 9, 10),) * 6, []

    def told(generation, plan, losses):
        taken.append(sum(row[level] for row, level in zip(sizes, plan, strict=True)))

    evolve(
        (2, 2, 1, 1, 1, 1), sizes, lambda plan, windows: 1.0, windows=1, generations=30, offspring=6,
        rounds=(Selection(1, 1),), rng=generator(seed), told=told, budget=60,
    )  # fmt: skip
    assert taken == sorted(taken, reverse=True)
    assert taken[-1] < 22
