"""The life of a run in the store, and that each change can be seen."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from store import measurements, results, runs
from store.database import Database
from tests.store.conftest import ticket

WORKER = "worker"


def status(database: Database, run_id: str) -> str:
    row = results.run(database, run_id)
    assert row is not None
    return row["status"]


def test_one_digest_is_one_run_and_starts_again_only_after_failing(
    database: Database, add: Callable[..., str]
) -> None:
    asked = {"digest": "a" * 64, "name": "a", "recipe": "{}", "model": "tiny", "chain": "dense"}
    assert runs.create_run(database, **asked) == ("a" * 12, 1, True)
    assert runs.create_run(database, **asked) == ("a" * 12, 1, False)
    runs.start_run(database, "a" * 12, 1, WORKER)
    assert runs.create_run(database, **asked)[2] is False
    runs.finish_run(database, "a" * 12, 1, WORKER, "failed", error="a bug", error_kind="bug")
    assert runs.create_run(database, **asked, user="ada") == ("a" * 12, 2, True)
    row = results.run(database, "a" * 12)
    assert row is not None
    assert (row["status"], row["attempt"], row["error"], row["user"]) == ("queued", 2, None, "ada")


def test_many_threads_asking_at_once_make_one_run(database: Database) -> None:
    made: list[bool] = []
    asked = {"digest": "b" * 64, "name": "b", "recipe": "{}", "model": "tiny", "chain": "dense"}
    threads = [
        threading.Thread(target=lambda: made.append(runs.create_run(database, **asked)[2])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * 7 + [True]


def at_once(*works: Callable[[], None]) -> list[BaseException]:
    """What went wrong when all of these ran at the same time."""
    gate = threading.Barrier(len(works))

    def run(work: Callable[[], None]) -> None:
        gate.wait()
        work()

    with ThreadPoolExecutor(len(works)) as pool:
        ended = [pool.submit(run, work) for work in works]
    return [problem for one in ended if (problem := one.exception()) is not None]


def test_writers_never_wait_for_each_other_in_a_circle(database: Database, start: Callable[..., str]) -> None:
    ids = [start() for _ in range(4)]
    tickets = {run_id: ticket(database, run_id) for run_id in ids}

    def work(run_id: str) -> None:
        for _ in range(25):
            runs.report_progress(database, run_id, tickets[run_id], WORKER, done=1)
            runs.request_cancel(database, run_id)

    before = results.data_version(database)
    assert at_once(*(lambda run_id=run_id: work(run_id) for run_id in ids)) == []  # type: ignore[misc]
    assert results.data_version(database) == before + 4 * 25 * 2


def test_asking_at_once_does_not_slip_past_the_quota(database: Database, add: Callable[..., str]) -> None:
    def ask() -> None:
        add(user="ada", quota=2)

    for _ in range(3):
        assert [type(problem) for problem in at_once(*[ask] * 6)] == [runs.QuotaReached] * 4
        for run in results.queue(database):
            runs.request_cancel(database, run.id)


def test_a_quota_counts_what_is_queued_or_running(database: Database, add: Callable[..., str]) -> None:
    first = add(user="ada", quota=1)
    with pytest.raises(runs.QuotaReached, match="ada already has 1"):
        add(user="ada", quota=1)
    runs.request_cancel(database, first)
    add(user="ada", quota=1)


def test_an_old_ticket_or_another_worker_is_turned_away(database: Database, add: Callable[..., str]) -> None:
    run_id = add()
    assert runs.set_priority(database, run_id, 3) == (run_id, 2, 3, 2)
    assert not runs.start_run(database, run_id, 1, WORKER)
    assert runs.start_run(database, run_id, 2, WORKER)
    assert runs.set_priority(database, run_id, 1) is None
    assert runs.should_stop(database, run_id, 2, WORKER) is False
    assert runs.should_stop(database, run_id, 1, WORKER) is True
    assert runs.report_progress(database, run_id, 2, "another", stage="x") is True
    assert runs.finish_run(database, run_id, 2, "another", "done") is False
    assert runs.finish_run(database, run_id, 2, WORKER, "done") is True
    assert not runs.start_run(database, run_id, 2, WORKER)


def test_cancel_is_at_once_for_queued_and_lost_runs_and_asked_of_running_ones(
    database: Database, add: Callable[..., str], start: Callable[..., str]
) -> None:
    assert runs.request_cancel(database, "nonesuch") is None
    assert runs.request_cancel(database, add()) == "cancelled"
    running = start()
    assert runs.request_cancel(database, running) == "running"
    number = ticket(database, running)
    assert runs.report_progress(database, running, number, WORKER, stage="compress") is True
    assert runs.request_cancel(database, start(), stale_after=-1.0) == "cancelled"


def test_a_silent_workers_runs_go_to_one_other_worker(database: Database, start: Callable[..., str]) -> None:
    run_id = start()
    assert runs.claim_stale(database, "other", 30.0) == []
    time.sleep(0.01)
    assert runs.claim_stale(database, WORKER, 0.0) == []
    assert runs.claim_stale(database, "other", 0.0) == [(run_id, 1)]
    assert runs.claim_stale(database, "third", 30.0) == []
    assert runs.should_stop(database, run_id, ticket(database, run_id), WORKER) is True


def test_removing_takes_everything_but_never_a_running_run(
    database: Database, start: Callable[..., str]
) -> None:
    run_id = start()
    number = {"metric": "perplexity", "value": 2.0, "protocol": {}}
    measurements.save_measurements(database, run_id, measurements=[number])
    runs.append_log(database, run_id, ["line"])
    assert not runs.remove_run(database, run_id)
    runs.finish_run(database, run_id, ticket(database, run_id), WORKER, "done")
    assert runs.remove_run(database, run_id)
    assert results.run(database, run_id) is None
    assert results.measurements(database, [run_id]).empty
    assert results.log_tail(database, run_id).empty


def test_the_log_keeps_its_end_and_cuts_long_lines(
    database: Database, start: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "KEPT_LINES", 3)
    run_id = start()
    runs.append_log(database, run_id, ["one", "two"])
    runs.append_log(database, run_id, ["three\x00", "x" * 5000])
    assert list(results.log_tail(database, run_id)["line"]) == ["two", "three", "x" * runs.LONGEST_LINE]
    assert list(results.log_tail(database, run_id, 1)["line"]) == ["x" * runs.LONGEST_LINE]
    runs.append_log(database, "nonesuch", ["of no run"])


def test_every_visible_write_grows_the_data_version(database: Database, add: Callable[..., str]) -> None:
    seen = [(results.data_version(database), results.results_version(database))]

    def look(point: bool) -> None:
        seen.append((results.data_version(database), results.results_version(database)))
        assert seen[-1][0] > seen[-2][0]
        assert (seen[-1][1] > seen[-2][1]) == point

    run_id = add()
    look(point=True)
    runs.start_run(database, run_id, ticket(database, run_id), WORKER)
    look(point=True)
    runs.report_progress(database, run_id, ticket(database, run_id), WORKER, done=1)
    look(point=False)
    runs.append_log(database, run_id, ["line"])
    look(point=False)
    runs.request_cancel(database, run_id)
    look(point=True)
    runs.finish_run(database, run_id, ticket(database, run_id), WORKER, "cancelled")
    look(point=True)
    runs.retry_run(database, run_id)
    look(point=True)
    runs.remove_run(database, run_id)
    look(point=True)


def line(database: Database) -> list[str]:
    return [run.id for run in results.queue(database) if run.status == "queued"]


def test_neighbours_change_places_and_nobody_else_moves(database: Database, add: Callable[..., str]) -> None:
    a, b, c = (add(priority=10) for _ in range(3))
    d, e = (add(priority=20) for _ in range(2))
    old = {run_id: ticket(database, run_id) for run_id in (a, b, c, d, e)}
    moved, other = runs.swap(database, b, c) or pytest.fail("both wait")
    assert line(database) == [a, c, b, d, e]
    assert (moved.run_id, other.run_id) == (c, b)
    assert min(moved.ticket, other.ticket) > max(old.values())
    # Across priorities the later one takes the earlier one's priority.
    runs.swap(database, b, d)
    assert line(database) == [a, c, d, b, e]
    assert [run.priority for run in results.queue(database)] == [10, 10, 10, 10, 20]
    late = add(priority=10)
    assert line(database) == [a, c, d, b, late, e]
    runs.swap(database, a, c)
    runs.swap(database, c, a)
    assert line(database)[:2] == [a, c]


def test_a_run_goes_to_the_front_as_often_as_it_is_asked(database: Database, add: Callable[..., str]) -> None:
    a, b, c = add(priority=1), add(priority=10), add(priority=20)
    for run_id, expected in ((c, [c, a, b]), (b, [b, c, a]), (b, [b, c, a]), (a, [a, b, c])):
        spot = runs.move_to_front(database, run_id)
        assert spot is not None
        assert spot.ticket == ticket(database, run_id)
        assert line(database) == expected
        first = runs.first_waiting(database)
        assert first is not None
        assert first.run_id == run_id


def test_what_does_not_wait_is_not_moved(
    database: Database, add: Callable[..., str], start: Callable[..., str]
) -> None:
    running, waiting = start(), add()
    assert runs.move_to_front(database, running) is None
    assert runs.swap(database, running, waiting) is None
    assert runs.renew(database, running, ticket(database, running)) is None
    assert line(database) == [waiting]


def test_a_new_ticket_keeps_the_place(database: Database, add: Callable[..., str]) -> None:
    first, second = add(), add()
    old = ticket(database, first)
    spot = runs.renew(database, first, old)
    assert spot is not None
    assert spot.ticket > ticket(database, second)
    assert line(database) == [first, second]
    assert runs.renew(database, first, old) is None
