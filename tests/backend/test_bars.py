"""A curve in a line of bars."""

import math

from backend.solvers.bars import bars


def test_bars_go_from_the_lowest_to_the_highest_of_the_last_values():
    assert bars([3.0, 1.0, 2.0]) == "█▁▅"
    assert bars([9.0, 1.0, 2.0], most=2) == "▁█"
    assert bars([1.0, 1.0]) == "▁▁"


def test_one_value_or_none_is_no_curve_and_what_is_not_finite_is_left_out():
    assert bars([]) == bars([1.0]) == ""
    assert bars([1.0, math.inf, 2.0]) == "▁█"
