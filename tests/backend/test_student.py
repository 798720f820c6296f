import math

import numpy as np
import pytest

from backend.solvers.student import reach

# Two-sided 95 % points of Student's t by degrees of freedom, as printed tables have them.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 7: 2.365, 10: 2.228, 23: 2.069, 30: 2.042, 120: 1.980}


@pytest.mark.parametrize(("freedom", "expected"), TABLE.items())
def test_the_reach_is_that_of_the_printed_table(freedom, expected):
    assert reach(freedom + 1) == pytest.approx(expected, abs=6e-4)


def test_one_value_tells_nothing_and_many_are_normal():
    assert reach(1) == math.inf
    assert reach(5000) == pytest.approx(1.960, abs=1e-3)


@pytest.mark.parametrize("values", [3, 8])
def test_means_of_noise_lie_beyond_it_in_one_of_twenty_cases(values):
    drawn = np.random.default_rng(0).normal(size=(40_000, values))
    errors = drawn.std(axis=1, ddof=1) / np.sqrt(values)
    beyond = (np.abs(drawn.mean(axis=1)) > reach(values) * errors).mean()
    assert beyond == pytest.approx(0.05, abs=0.004)
