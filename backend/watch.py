"""Between the child that computes and the store: progress as it comes, and whether to stop."""

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from backend.compute import Compute
from store import generations, runs, tasks
from store.database import Database

LOOK_SECONDS = 0.4
_ALWAYS_MEASURED = ("size", "sanity")
_PROGRESS_SECONDS, _TEXT_SECONDS = 1.0, 0.2
# The time left is told from the speed of the last so many seconds, once there are so many.
_SPEED_SECONDS, _FIRST_SECONDS = 120.0, 5.0
# What share of a run a step is, roughly; only the progress bar knows it.
_WEIGHTS = {"compress": 2.0, "perplexity": 1.0, "divergence": 1.0}
_EVALUATION = "evaluate"


class RunWatch:
    """Between the child's updates and the store: progress once a second, and whether to stop."""

    def __init__(
        self,
        database: Database,
        compute: Compute,
        lines: deque[str],
        run: Mapping[str, Any],
        worker: str,
        number: int,
    ) -> None:
        self._database, self._compute, self._lines = database, compute, lines
        self._ours = (run["id"], run["ticket"], worker)
        self._step = steps_of(run["recipe"])[number]
        weights = [_WEIGHTS.get(step, 0.3) for step in steps_of(run["recipe"])]
        self._base, self._share = sum(weights[:number]) / sum(weights), weights[number] / sum(weights)
        self._fraction = max(run["fraction"] or 0.0, self._base)
        self._ends: float | None = None
        self._began = self._written = self._looked = time.monotonic()
        self._columns: dict[str, Any] = {}
        self._passed: deque[tuple[float, float]] = deque()
        self._tokens_from: tuple[int, float] = (0, 0.0)
        self._tokens_per_second: float | None = None

    def told(self, update: Mapping[str, Any]) -> None:
        """Keep the newest update; the log gets each stage's first."""
        tokens, now = update["tokens"], time.monotonic()
        if update["stage"] != self._columns.get("stage"):
            self._lines.append(f"{self._step}: {update['stage']} {update['detail']}".rstrip())
            self._tokens_from, self._tokens_per_second = (tokens, now), None
        elif tokens > self._tokens_from[0]:
            self._tokens_per_second = (tokens - self._tokens_from[0]) / (now - self._tokens_from[1])
        self._columns = _shown(update)
        if update["share"] is not None:
            self._estimate(update["share"])
        elif update["stage"] == _EVALUATION and update["total"] > 0:
            self._estimate(update["done"] / update["total"])

    def should_stop(self) -> bool:
        """Asked several times a second."""
        now = time.monotonic()
        if now - self._written >= _PROGRESS_SECONDS:
            self._written = self._looked = now
            flush_log(self._database, self._ours[0], self._lines)
            left = None if self._ends is None else max(self._ends - now, 0.0)
            measured = {"fraction": self._fraction, "eta_seconds": left}
            measured["memory_bytes"] = self._compute.memory_bytes()
            measured["tokens_per_second"] = self._tokens_per_second
            return runs.report_progress(self._database, *self._ours, **{**self._columns, **measured})
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            return runs.should_stop(self._database, *self._ours)
        return False

    def _estimate(self, inner: float) -> None:
        """How far this step is tells how long it takes, and with that the steps after it."""
        now = time.monotonic()
        self._fraction = max(self._fraction, self._base + self._share * inner)
        if self._passed and inner <= self._passed[-1][1]:
            return
        # What was kept passes in a moment, and a step may begin in its middle: the last while has a speed.
        self._passed.append((now, inner))
        while len(self._passed) > 2 and now - self._passed[1][0] > _SPEED_SECONDS:
            self._passed.popleft()
        since, was = self._passed[0]
        if now - since > _FIRST_SECONDS:
            whole = (now - since) / (inner - was)
            left = whole * (1 - inner) + whole / self._share * (1 - self._base - self._share)
            self._ends = now + left


class AnswerWatch:
    """Shows an answer as it is written, and listens for a stop."""

    def __init__(self, database: Database, generation_id: str) -> None:
        self._database, self._id, self._written = database, generation_id, 0.0

    def told(self, update: Mapping[str, Any]) -> None:
        """Write the text so far, a few times a second."""
        if update["stage"] == "generate" and time.monotonic() - self._written >= _TEXT_SECONDS:
            self._written = time.monotonic()
            generations.write(self._database, self._id, update["detail"])

    def should_stop(self) -> bool:
        """Asked twice a second."""
        return generations.should_stop(self._database, self._id)


class TaskWatch:
    """Progress of a task once a second, and whether it is still wanted."""

    def __init__(self, database: Database, task_id: str, attempt: int) -> None:
        self._database, self._ours = database, (task_id, attempt)
        self._columns: dict[str, Any] = {}
        self._written = 0.0

    def told(self, update: Mapping[str, Any]) -> None:
        """Keep the newest update."""
        self._columns = _shown(update)

    def should_stop(self) -> bool:
        """Asked several times a second."""
        if time.monotonic() - self._written < _PROGRESS_SECONDS:
            return tasks.report_progress(self._database, *self._ours)
        self._written = time.monotonic()
        return tasks.report_progress(self._database, *self._ours, **self._columns)


def _shown(update: Mapping[str, Any]) -> dict[str, Any]:
    """What of an update stands in a row of its own columns."""
    return {key: update[key] for key in ("stage", "done", "total", "detail")}


def steps_of(recipe: Mapping[str, Any]) -> list[str]:
    """The steps of a run in order: perplexity is what people wait for, size and sanity are never left out."""
    metrics = dict.fromkeys([*recipe["evaluation"]["metrics"], *_ALWAYS_MEASURED])
    return ["compress", *sorted(metrics, key=lambda metric: metric != "perplexity")]


def flush_log(database: Database, run_id: str, lines: deque[str]) -> None:
    """Append the lines that came since the last time to the run's log."""
    waiting = [lines.popleft() for _ in range(len(lines))]
    runs.append_log(database, run_id, waiting)
