"""Plans within a budget, against all plans there are."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.solvers.budget import around, budget_of_mean, exact, ladder, lower_hull, nearly_uniform

TABLE = st.integers(1, 4).flatmap(
    lambda levels: st.lists(
        st.tuples(
            st.lists(st.integers(1, 40), min_size=levels, max_size=levels),
            st.lists(st.floats(0, 10), min_size=levels, max_size=levels),
        ),
        min_size=1,
        max_size=4,
    )
)


@given(TABLE)
def test_every_plan_of_the_walk_is_the_best_of_its_size(table):
    sizes, losses = [row[0] for row in table], [row[1] for row in table]
    walk = ladder(sizes, losses)
    plans = list(itertools.product(*(range(len(row)) for row in sizes)))
    totals = [
        (sum(sizes[n][k] for n, k in enumerate(plan)), sum(losses[n][k] for n, k in enumerate(plan)))
        for plan in plans
    ]
    for price, loss in zip(walk.bytes, walk.losses, strict=True):
        assert loss <= min(other for size, other in totals if size <= price) + 1e-9


@given(TABLE, st.integers(0, 200))
def test_a_plan_fits_its_budget_and_is_no_worse_than_the_walk_before_it(table, budget):
    sizes, losses = [row[0] for row in table], [row[1] for row in table]
    walk = ladder(sizes, losses)
    plan = walk.plan(budget)
    price, loss = walk.totals(plan)
    if budget < walk.bytes[0]:
        assert plan == list(walk.start)
        return
    assert price <= budget
    # What the last step that did not fit left over is not wasted.
    stopped = next((at for at, size in enumerate(walk.bytes) if size > budget), len(walk.bytes))
    assert loss <= walk.losses[stopped - 1] + 1e-9


def test_the_hull_falls_and_bends_upwards():
    prices, values = np.array([1.0, 2, 3, 4, 5, 5]), np.array([10.0, 9, 4, 4.5, 1, 0.5])
    assert lower_hull(prices, values) == [0, 2, 5]


def test_a_linear_whose_larger_levels_gain_nothing_stays_small():
    walk = ladder([[8, 4], [8, 4]], [[1.0, 1.0], [0.0, 3.0]])
    assert walk.plan(100) == [1, 0]
    assert walk.totals([1, 0]) == (12, pytest.approx(1.0))


def brute(sizes, losses, budget):
    plans = itertools.product(*(range(len(row)) for row in sizes))
    fits = [p for p in plans if sum(row[k] for row, k in zip(sizes, p, strict=True)) <= budget]
    return min(sum(row[k] for row, k in zip(losses, p, strict=True)) for p in fits)


@pytest.mark.parametrize("seed", range(8))
def test_dynamic_programming_is_what_trying_all_plans_finds(seed):
    rng = np.random.default_rng(seed)
    sizes = np.sort(rng.integers(1, 40, (6, 3)) * int(rng.integers(1, 7)), axis=1)
    losses = rng.random((6, 3))
    for share in (0.0, 0.3, 0.7, 1.0):
        budget = sizes.min(axis=1).sum() + share * (sizes.max(axis=1) - sizes.min(axis=1)).sum() + 0.5
        plan = exact(sizes.tolist(), losses.tolist(), budget)
        assert sum(sizes[i, k] for i, k in enumerate(plan)) <= budget
        assert sum(losses[i, k] for i, k in enumerate(plan)) == pytest.approx(brute(sizes, losses, budget))


def test_in_rough_units_the_plan_is_within_the_budget_and_nearly_the_best():
    rng = np.random.default_rng(0)
    sizes = np.sort(rng.integers(10_000, 99_999, (6, 3)), axis=1)
    losses = -np.sort(-rng.random((6, 3)), axis=1)
    budget = int(sizes[:, 1].sum())
    plan = exact(sizes.tolist(), losses.tolist(), budget, most=300)
    assert sum(sizes[i, k] for i, k in enumerate(plan)) <= budget
    lost = sum(losses[i, k] for i, k in enumerate(plan))
    rough = brute(sizes, losses, budget - 6 * (budget - sizes[:, 0].sum()) / 300 - 6)
    assert brute(sizes, losses, budget) <= lost <= rough


def test_a_budget_too_small_gives_the_smallest_plan():
    assert exact([[3, 5], [2, 9]], [[1.0, 0.0], [1.0, 0.0]], 1) == [0, 0]


def test_levels_lie_around_the_mean_within_what_grids_have():
    assert around({"over": "bits", "bits": 3.0, "reach": 1}) == (2, 3, 4)
    assert around({"over": "bits", "bits": 3.4, "reach": 1}) == (2, 3, 4, 5)
    assert around({"over": "bits", "bits": 2.0, "reach": 1}) == (2, 3)
    assert around({"over": "bits", "bits": 7.5, "reach": 2}) == (5, 6, 7, 8)


def test_the_budget_of_a_mean_is_that_of_the_same_bits_everywhere_and_a_line_between():
    sizes = [[20, 30, 45], [2, 3, 4]]
    assert budget_of_mean(sizes, (2, 3, 4), 3.0) == 33
    assert budget_of_mean(sizes, (2, 3, 4), 3.5) == 37.5 + 3.5


def test_nearly_the_same_bits_everywhere_is_exactly_that_at_a_whole_mean():
    sizes = [[20, 30, 40], [2, 3, 4], [20, 30, 40]]
    assert nearly_uniform(sizes, (2, 3, 4), 3.0, [2, 1, 0]) == [1, 1, 1]
    # Half a bit of 42 bytes is 10.5 bytes more: the last linear's step takes 10 of them, and no other fits.
    assert nearly_uniform(sizes, (2, 3, 4), 2.5, [2, 1, 0]) == [0, 0, 1]
    assert nearly_uniform(sizes, (2, 3, 4), 4.0, [2, 1, 0]) == [2, 2, 2]
