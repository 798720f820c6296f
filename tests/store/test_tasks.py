"""Questions in the store: asked by many at once, answered once, asked again after a failure."""

from concurrent.futures import ThreadPoolExecutor

from store import results, tasks
from store.database import Database

ASKED = {"kind": "levels", "model": "m", "arguments": {"text": "a\x00b"}, "user": "ada"}


def ask(database: Database, task_id: str = "t") -> int | None:
    return tasks.ask(database, task_id=task_id, **ASKED)


def test_a_question_that_many_ask_at_once_is_queued_once(database: Database) -> None:
    with ThreadPoolExecutor(8) as people:
        attempts = list(people.map(lambda _: ask(database), range(16)))
    assert sorted(attempts, key=str) == [1, *[None] * 15]
    assert tasks.waiting(database) == [("t", "levels", 1)]


def test_a_failed_question_starts_anew_without_what_the_last_attempt_left(database: Database) -> None:
    ask(database)
    tasks.start(database, "t", 1, "worker")
    tasks.report_progress(database, "t", 1, stage="levels", done=3, total=9)
    tasks.finish(database, "t", 1, "failed", error="no room")
    assert ask(database) == 2
    row = results.task(database, "t")
    assert row is not None
    assert (row["status"], row["stage"], row["error"], row["worker"]) == ("queued", None, None, None)
    assert row["arguments"] == {"text": "a\x00b"}


def test_an_attempt_that_is_over_writes_nothing_any_more(database: Database) -> None:
    ask(database)
    tasks.start(database, "t", 1, "worker")
    tasks.finish(database, "t", 1, "cancelled")
    assert tasks.report_progress(database, "t", 1, stage="late") is True
    tasks.finish(database, "t", 1, "done", result={"late": True})
    assert not tasks.start(database, "t", 1, "worker")
    ask(database)
    tasks.start(database, "t", 2, "worker")
    assert tasks.report_progress(database, "t", 1) is True
    row = results.task(database, "t")
    assert row is not None
    assert (row["status"], row["attempt"], row["result"]) == ("running", 2, {})


def test_only_what_a_silent_worker_left_is_claimed(database: Database) -> None:
    for name in ("left", "mine", "waits"):
        ask(database, name)
    tasks.start(database, "left", 1, "gone")
    tasks.start(database, "mine", 1, "here")
    assert tasks.claim_stale(database, "here", 60.0) == []
    assert tasks.claim_stale(database, "here", -1.0) == [("left", "levels", 1)]
    row = results.task(database, "left")
    assert row is not None
    assert row["worker"] == "here"
