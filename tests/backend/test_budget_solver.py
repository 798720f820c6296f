"""Plans within a budget, against all plans there are."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.solvers.budget import ladder, lower_hull

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
