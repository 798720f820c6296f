"""Tasks on the real engine: asked twice, answered once; failures, cancel, a worker that is killed."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

from backend.errors import UserError
from backend.jobs import Jobs
from backend.recipe import Recipe
from store import results
from tests.backend.queueing import WorkerProcess, calls, wait


def over(jobs: Jobs, task_id: str) -> dict[str, Any]:
    """The task once it has ended."""

    def row() -> dict[str, Any]:
        found = results.task(jobs.database, task_id)
        assert found is not None
        return found

    wait(lambda: row()["status"] in ("done", "failed", "cancelled"))
    return row()


def test_a_question_is_answered_and_kept(shared: Jobs, ask: Callable[..., Recipe]) -> None:
    model = ask().model
    first = shared.ask("surgery", model, {"answer": 41}, user="ada")
    row = over(shared, first)
    assert (row["status"], row["user"], row["error"]) == ("done", "ada", None)
    assert row["result"] == {"answer": 41, "model": "plain"}
    assert shared.ask("surgery", model, {"answer": 41}) == first
    assert over(shared, first)["attempt"] == 1
    assert calls(shared, "answer-41") == ["surgery"]
    assert shared.ask("surgery", model, {"answer": 42}) != first


def test_a_long_task_is_worked_on_where_runs_are(shared: Jobs, ask: Callable[..., Recipe]) -> None:
    model = ask().model
    pids = [
        over(shared, shared.ask("levels", model, {"answer": number}))["result"]["pid"] for number in (1, 2)
    ]
    assert pids[0] == pids[1]
    quick = shared.ask("surgery", model, {"answer": 3})
    over(shared, quick)
    noted = (shared.host.home / "calls.txt").read_text().splitlines()
    of_surgery = next(line.split()[2] for line in noted if line.startswith("surgery answer-3"))
    assert of_surgery != str(pids[0])


@pytest.mark.parametrize(
    ("behaviour", "number", "told"),
    [("user-error", 71, "48 does not divide"), ("bug", 72, "ZeroDivisionError"), ("killed", 73, "memory")],
)
def test_a_failed_task_says_why_and_can_be_asked_again(
    shared: Jobs, ask: Callable[..., Recipe], behaviour: str, number: int, told: str
) -> None:
    model = ask(behaviour).model
    row = over(shared, shared.ask("surgery", model, {"answer": number}))
    assert row["status"] == "failed"
    assert told in row["error"]
    assert row["result"] == {}
    again = over(shared, shared.ask("surgery", model, {"answer": number}))
    assert (again["id"], again["attempt"], again["status"]) == (row["id"], 2, "failed")


def test_a_running_task_is_cancelled(shared: Jobs, ask: Callable[..., Recipe]) -> None:
    model = ask("slow-compress").model
    task_id = shared.ask("surgery", model, {"answer": 100})
    wait(lambda: (results.task(shared.database, task_id) or {})["status"] == "running")
    shared.cancel_task(task_id)
    assert over(shared, task_id)["status"] == "cancelled"


def test_a_waiting_task_is_cancelled_at_once_and_not_done_later(
    alone: Jobs, ask: Callable[..., Recipe]
) -> None:
    model = ask().model
    task_id = alone.ask("surgery", model, {"answer": 5})
    assert alone.cancel_task(task_id) == "cancelled"
    after = alone.ask("surgery", model, {"answer": 6})
    worker = WorkerProcess(alone.host.home)
    over(alone, after)
    worker.stop()
    assert calls(alone, "answer-5") == []


def test_a_killed_workers_task_is_answered_by_the_next(alone: Jobs, ask: Callable[..., Recipe]) -> None:
    model = ask("slow-compress").model
    task_id = alone.ask("levels", model, {"answer": 9})
    worker = WorkerProcess(alone.host.home, "first")
    wait(lambda: calls(alone, "levels-9") == ["levels"])
    worker.stop(signal.SIGKILL)
    (alone.host.home / "go-9").touch()
    second = WorkerProcess(alone.host.home, "second")
    assert over(alone, task_id)["status"] == "done"
    second.stop()


def test_a_model_that_cannot_be_used_is_refused(shared: Jobs) -> None:
    with pytest.raises(UserError, match="nothing-like-it"):
        shared.ask("surgery", "nothing-like-it", {})
    assert shared.cancel_task("no-such-task") is None
