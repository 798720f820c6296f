"""Numbers as people read them."""

import math

import pytest

from ui.quantities import (
    MISSING,
    age,
    byte_size,
    difference,
    duration,
    is_number,
    measured,
    share,
    significant,
    with_error,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (134_500_000, "134.5 MB"), (999_960_000, "1.0 GB"),
        (1.2e13, "12.00 TB"), (None, MISSING), (math.nan, MISSING),
    ],
)  # fmt: skip
def test_a_megabyte_is_a_million_bytes(count, text):
    assert byte_size(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (22.412, "22.41"), (48211.0, "48,211"), (0.000512, "0.0005120"), (0, "0"), (1e-7, "1.00e-07"),
        (2.5e9, "2.50e+09"), (-3.14159, "-3.142"), (math.inf, MISSING), ("7", MISSING), (True, MISSING),
    ],
)  # fmt: skip
def test_numbers_keep_four_digits_and_no_needless_exponent(value, text):
    assert significant(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"), (9.8, "9.8 s"), (59.7, "1 min"), (75, "1 min 15 s"), (1800, "30 min"),
        (7500, "2 h 5 min"), (None, MISSING),
    ],
)  # fmt: skip
def test_durations_are_said_in_the_unit_that_matters(seconds, text):
    assert duration(seconds) == text


def test_ages_are_said_in_one_unit():
    assert [age(1000, now) for now in (1001, 1030, 1090, 5000, 1000 + 3 * 86400)] == [
        "just now", "30 seconds ago", "1 minute ago", "1 hour ago", "3 days ago",
    ]  # fmt: skip
    assert age(None) == MISSING


def test_a_measurement_is_shown_in_the_unit_of_its_name():
    assert measured("size.packed", 121.9e6) == "121.9 MB"
    assert measured("size.bits_per_weight", 3.5) == "3.50"
    assert measured("divergence.agreement", 0.861) == "86.10 %"
    assert measured("speed.decode", 11.34) == "11.3 tok/s"
    assert (measured("sanity.finite", 1.0), measured("sanity.finite", 0.0)) == ("yes", "no")
    assert measured("perplexity", math.nan) == MISSING


def test_a_standard_error_stands_behind_its_value_in_the_same_unit():
    assert with_error("perplexity", 22.41, 0.31) == "22.41 ± 0.31"
    assert with_error("divergence.agreement", 0.9, 0.01) == "90.00 % ± 1.00 %"
    assert with_error("perplexity", 22.41, None) == "22.41"
    assert with_error("perplexity", None, 0.3) == MISSING


def test_differences_are_in_points_for_shares_and_in_per_cent_for_scales():
    assert difference("size.packed", 50, 100) == "-50.0 %"
    assert difference("perplexity", 48211, 22.41) == "\N{MULTIPLICATION SIGN} 2,151"
    assert difference("divergence.agreement", 0.7, 1.0) == "-30.00 points"
    assert difference("size.rest", 7, 7) == "same"
    assert difference("divergence.kl", 0.2, 0.0) == ""
    assert difference("perplexity", None, 3) == ""


def test_truth_values_and_text_are_no_numbers():
    assert not any(map(is_number, (True, "3", None, math.nan, math.inf)))
    assert share(0.5) == "50.00 %"
