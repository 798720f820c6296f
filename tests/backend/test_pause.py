"""A paused queue starts nothing, and a moved run runs when its place says, on the real engine."""

import signal
import time
from collections.abc import Callable

import pytest

from backend.errors import UserError
from backend.host import Host
from backend.jobs import Jobs
from backend.recipe import Recipe
from store import results, switches
from tests.backend.queueing import WorkerProcess, calls, let_go, status, wait, wait_for


def line(jobs: Jobs) -> list[str]:
    return [run.id for run in results.queue(jobs.database) if run.status == "queued"]


def held(jobs: Jobs, workers: int = 1) -> None:
    """Until so many workers live, and have had the time to take something off the queue."""
    wait(lambda: int(results.workers(jobs.database, 3)["alive"].sum()) >= workers)
    time.sleep(1.5)


def test_a_paused_queue_lets_the_run_under_way_finish_and_starts_no_other(
    alone: Jobs, ask: Callable[..., Recipe]
) -> None:
    worker = WorkerProcess(alone.host.home)
    under_way = alone.submit(ask("slow-compress")).run_id
    wait_for(alone, under_way, "running")
    waiting = alone.submit(ask()).run_id
    assert alone.pause("ada")
    assert not alone.pause("bob")
    assert (results.switch(alone.database, switches.PAUSED) or {})["by"] == "ada"
    let_go(alone, under_way)
    wait_for(alone, under_way, "done")
    held(alone)
    assert status(alone, waiting) == "queued"
    assert alone.resume()
    wait_for(alone, waiting, "done")
    worker.stop()


def test_what_was_moved_to_the_front_during_a_pause_starts_first_and_what_was_cancelled_never(
    alone: Jobs, ask: Callable[..., Recipe]
) -> None:
    alone.pause("ada")
    first, second, third, fourth = (alone.submit(ask()).run_id for _ in range(4))
    worker = WorkerProcess(alone.host.home)
    held(alone)
    alone.move_to_front(third)
    alone.move(fourth, -1)
    assert alone.cancel(second) == "cancelled"
    assert line(alone) == [third, first, fourth]
    held(alone)
    assert {status(alone, run_id) for run_id in (first, third, fourth)} == {"queued"}
    alone.resume()
    rows = [wait_for(alone, run_id, "done") for run_id in (third, first, fourth)]
    assert rows[0]["started"] < rows[1]["started"] < rows[2]["started"]
    assert calls(alone, second) == []
    assert all(calls(alone, run_id).count("compress") == 1 for run_id in (first, third, fourth))
    worker.stop()


def test_a_pause_outlives_its_workers_and_what_a_lost_one_held_is_run_by_another(
    alone: Jobs, ask: Callable[..., Recipe]
) -> None:
    alone.pause("ada")
    waiting = [alone.submit(ask()).run_id for _ in range(2)]
    lost = WorkerProcess(alone.host.home, "first")
    held(alone)
    lost.stop(signal.SIGKILL)
    other = WorkerProcess(alone.host.home, "second")
    held(alone)
    assert line(alone) == waiting
    alone.resume()
    assert [wait_for(alone, run_id, "done")["worker"] for run_id in waiting] == ["second", "second"]
    other.stop()


def test_a_worker_that_holds_a_run_of_a_paused_queue_stops_at_once(
    alone: Jobs, ask: Callable[..., Recipe]
) -> None:
    alone.pause("ada")
    run_id = alone.submit(ask()).run_id
    worker = WorkerProcess(alone.host.home)
    held(alone)
    assert worker.stop(signal.SIGINT) < 5
    alone.resume()
    worker = WorkerProcess(alone.host.home)
    wait_for(alone, run_id, "done")
    worker.stop()


def test_neighbours_of_one_priority_change_places_and_run_in_the_new_order(
    shared: Jobs, ask: Callable[..., Recipe]
) -> None:
    blocker = shared.submit(ask("slow-compress")).run_id
    wait_for(shared, blocker, "running")
    a, b, c, d = (shared.submit(ask()).run_id for _ in range(4))
    shared.move(d, -1)
    assert line(shared) == [a, b, d, c]
    shared.move(a, 1)
    shared.move(a, 1)
    assert line(shared) == [b, d, a, c]
    shared.move(b, -1)
    shared.move(c, 1)
    assert line(shared) == [b, d, a, c]
    let_go(shared, blocker)
    rows = [wait_for(shared, run_id, "done") for run_id in (b, d, a, c)]
    assert [row["started"] for row in rows] == sorted(row["started"] for row in rows)
    with pytest.raises(UserError, match="not waiting any more"):
        shared.move(a, 1)
    with pytest.raises(UserError, match="not waiting any more"):
        shared.move_to_front(a)


def test_all_failed_runs_of_a_person_are_retried_and_nobody_elses(
    shared: Jobs, ask: Callable[..., Recipe]
) -> None:
    eve = [shared.submit(ask("user-error"), user="eve").run_id for _ in range(2)]
    other = shared.submit(ask("user-error"), user="bob").run_id
    for run_id in (*eve, other):
        wait_for(shared, run_id, "failed")
    assert shared.retry_mine("eve") == 2
    for run_id in eve:
        wait(lambda run_id=run_id: calls(shared, run_id) == ["compress", "compress"])
        wait_for(shared, run_id, "failed")
    assert calls(shared, other) == ["compress"]


def test_with_a_log_in_only_the_owner_moves_a_run(
    alone: Jobs, ask: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETOSCOPE_AUTH", "ada:secret,bob:secret")
    jobs = Jobs(Host.at(alone.host.home))
    first, second = (jobs.submit(ask(), user=name).run_id for name in ("ada", "bob"))
    for change in (lambda: jobs.move(first, 1, "bob"), lambda: jobs.move_to_front(first, "bob")):
        with pytest.raises(UserError, match="belongs to ada"):
            change()
    jobs.move(second, -1, "bob")
    assert line(jobs) == [second, first]
    jobs.close()
