import itertools
from collections import deque
from dataclasses import asdict

import pytest

from backend import watch
from backend.progress import Update
from backend.watch import RunWatch

RUN = {
    "id": "r", "ticket": 1, "fraction": None,
    "recipe": {"evaluation": {"metrics": ["perplexity"]}},
}  # fmt: skip


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def told(monkeypatch):
    """What the store is told of a run, second by second."""
    clock, rows = Clock(), []
    monkeypatch.setattr(watch, "time", clock)
    monkeypatch.setattr(watch, "flush_log", lambda *given: None)
    monkeypatch.setattr(watch.runs, "report_progress", lambda *ours, **columns: rows.append(columns) or False)
    monkeypatch.setattr(watch.runs, "should_stop", lambda *ours: False)

    class Child:
        def memory_bytes(self):
            return 1

    seen = RunWatch(None, Child(), deque(), RUN, "w", 0)

    def update(seconds, share, stage="compress"):
        clock.now += seconds
        seen.told(asdict(Update(stage, 1, 2, share=share)))
        seen.should_stop()
        return rows[-1]

    return update


def test_only_the_columns_of_a_row_are_written(told):
    assert set(told(2, 0.1)) == {
        "stage", "done", "total", "detail", "fraction", "eta_seconds", "memory_bytes", "tokens_per_second",
    }  # fmt: skip


def test_what_passed_in_a_moment_is_soon_forgotten_in_the_time_left(told):
    # Half of the step was kept from before; the rest takes 1000 s.
    for share in (0.0, 0.25, 0.5):
        row = told(3, share, "levels")
    hasty = row["eta_seconds"]
    for number in range(1, 31):
        row = told(10, 0.5 + number / 200, "search")
    # The whole step takes 2000 s at that speed, and 700 s of it are left; later steps take as much a share.
    step, whole = 2.0, 2.0 + 1.0 + 0.3 + 0.3
    left = 2000 * (0.35 + (whole - step) / step)
    assert row["eta_seconds"] == pytest.approx(left, rel=0.02)
    assert hasty < 0.05 * left
    assert row["fraction"] == pytest.approx(0.65 * step / whole)


def test_between_slow_steps_the_time_left_goes_down_and_not_up(told):
    for number in range(100):
        told(1, 0.003 * number, "levels")
    left = []
    for generation in range(1, 8):
        left += [told(20, 0.3, "search")["eta_seconds"] for _ in range(10)]
        left.append(told(1, 0.3 + 0.01 * generation, "search")["eta_seconds"])
    # A generation takes 201 s and is a hundredth of a step that is two shares of the run's 3.6.
    for number, seconds in enumerate(left[10::11][1:], start=2):
        whole = 201 / 0.01
        assert seconds == pytest.approx(whole * (0.7 - 0.01 * number) + whole * 0.8, rel=0.1)
    steady = left[30:]
    assert all(later <= before + 200 for before, later in itertools.pairwise(steady))


def test_the_time_left_goes_down_while_nothing_is_heard(told):
    told(1, 0.0)
    first = told(10, 0.1)["eta_seconds"]
    assert told(4, None)["eta_seconds"] == pytest.approx(first - 4)
    assert told(10_000, None)["eta_seconds"] == 0
