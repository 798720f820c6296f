"""The limit of a test without the mark `slow`."""

import pytest

from tests import pace


def test_a_test_may_take_twenty_seconds_of_an_idle_core_and_longer_where_all_is_slower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pace, "slowness", lambda: 3.0)
    assert pace.too_long(19.9) is None
    assert pace.too_long(59.0) is None
    assert "took 61.0 s" in str(pace.too_long(61.0))
    monkeypatch.setattr(pace, "slowness", lambda: 1.0)
    assert "make it shorter, or mark it" in str(pace.too_long(21.0))


def test_no_machine_counts_as_faster_than_the_one_of_the_limit() -> None:
    assert pace.slowness() >= 1
