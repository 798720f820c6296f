"""The durable queue on the real engine and SQLite, with steps that stand in for the model work."""

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from backend.compute import Interrupted
from backend.errors import UserError
from backend.host import Host
from backend.jobs import Jobs
from backend.recipe import Recipe
from backend.worker import Worker
from store import results, runs
from tests.backend.queueing import WorkerProcess, calls, let_go, status, wait, wait_for


def test_a_run_that_is_handed_to_a_closing_worker_stays_queued(
    alone: Jobs, ask: Callable[..., Recipe]
) -> None:
    run_id = alone.submit(ask()).run_id
    row = results.run(alone.database, run_id)
    assert row is not None
    worker = Worker(alone.host, "tests.backend.fake_steps")
    worker._stopping.set()
    with pytest.raises(Interrupted):
        worker._work(run_id, row["ticket"])
    worker.database.close()
    assert status(alone, run_id) == "queued"


def test_a_run_is_compressed_measured_and_stored(shared: Jobs, ask: Callable[..., Recipe]) -> None:
    submitted = shared.submit(ask(), user="ada")
    assert submitted.created
    row = wait_for(shared, submitted.run_id, "done", "failed")
    assert (row["status"], row["error"], row["user"], row["fraction"]) == ("done", None, "ada", 1.0)
    assert calls(shared, submitted.run_id) == ["compress", "perplexity", "divergence", "size", "sanity"]
    assert Path(row["artifact"]).read_bytes() == b"packed"
    assert row["seconds"]["compress.compress"] == 2.0
    assert set(row["seconds"]) > {"perplexity", "divergence", "size", "sanity"}
    found = results.measurements(shared.database, [submitted.run_id])
    assert set(found["metric"]) == {"perplexity", "divergence", "size", "sanity"}
    windows = results.series(shared.database, [submitted.run_id], "perplexity.windows")
    assert list(windows["values"][0]) == [1.0, 2.0, 3.0]
    assert list(results.layers(shared.database, submitted.run_id)["projection"]) == ["q_proj"]
    point = results.points(shared.database).set_index("id").loc[submitted.run_id]
    assert point["perplexity"] == 2.0


def test_a_run_is_told_what_the_runs_before_it_took(shared: Jobs, ask: Callable[..., Recipe]) -> None:
    first, second = (shared.submit(ask()).run_id for _ in range(2))
    wait_for(shared, second, "done")
    told = {run: json.loads((shared.host.home / f"told-{run}.json").read_text()) for run in (first, second)}
    assert first in told[second]
    assert not {first, second} & set(told[first])


def test_the_same_recipe_asked_twice_is_one_run(shared: Jobs, ask: Callable[..., Recipe]) -> None:
    recipe = ask()
    first, again = shared.submit(recipe), shared.submit(recipe)
    assert (first.run_id, first.created, again.created) == (again.run_id, True, False)
    wait_for(shared, first.run_id, "done")
    assert not shared.submit(recipe).created
    assert Counter(calls(shared, first.run_id)) == Counter(set(calls(shared, first.run_id)))


def test_two_people_asking_at_once_get_one_run(shared: Jobs, ask: Callable[..., Recipe]) -> None:
    recipe, got = ask(), []
    gate = threading.Barrier(4)

    def submit() -> None:
        gate.wait()
        got.append(shared.submit(recipe))

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({submitted.run_id for submitted in got}) == 1
    assert [submitted.created for submitted in got].count(True) == 1
    wait_for(shared, got[0].run_id, "done")
    assert calls(shared, got[0].run_id).count("compress") == 1


def test_lower_priorities_run_first_and_a_queued_run_can_be_moved(
    shared: Jobs, ask: Callable[..., Recipe]
) -> None:
    blocker = shared.submit(ask("slow-compress"))
    wait_for(shared, blocker.run_id, "running")
    late, soon, moved = (shared.submit(ask(), priority=number).run_id for number in (30, 20, 40))
    assert shared.set_priority(moved, 5)
    waiting = [run.id for run in results.queue(shared.database)]
    assert waiting == [blocker.run_id, moved, soon, late]
    let_go(shared, blocker.run_id)
    rows = [wait_for(shared, run_id, "done") for run_id in (moved, soon, late)]
    assert rows[0]["started"] < rows[1]["started"] < rows[2]["started"]
    assert calls(shared, moved).count("compress") == 1


def test_runs_of_one_priority_run_in_the_order_they_were_asked_for(
    shared: Jobs, ask: Callable[..., Recipe]
) -> None:
    blocker = shared.submit(ask("slow-compress"))
    wait_for(shared, blocker.run_id, "running")
    _, asked = shared.submit_sweep([ask() for _ in range(6)])
    let_go(shared, blocker.run_id)
    rows = [wait_for(shared, submitted.run_id, "done") for submitted in asked]
    assert [row["started"] for row in rows] == sorted(row["started"] for row in rows)


def test_a_removed_run_can_be_asked_for_again(shared: Jobs, ask: Callable[..., Recipe]) -> None:
    recipe = ask()
    run_id = shared.submit(recipe).run_id
    wait_for(shared, run_id, "done")
    shared.remove(run_id)
    assert shared.submit(recipe).created
    wait_for(shared, run_id, "done")
    assert calls(shared, run_id).count("compress") == 2


@pytest.mark.parametrize("behaviour", ["slow-compress", "deaf-compress", "slow-divergence"])
def test_cancelling_a_running_run_takes_less_than_two_seconds(
    shared: Jobs, ask: Callable[..., Recipe], behaviour: str
) -> None:
    run_id = shared.submit(ask(behaviour)).run_id
    wait(
        lambda: (
            behaviour.split("-")[1] in (calls(shared, run_id) if status(shared, run_id) == "running" else [])
        )
    )
    began = time.monotonic()
    assert shared.cancel(run_id) == "running"
    wait_for(shared, run_id, "cancelled", seconds=2)
    assert time.monotonic() - began < 2
    following = shared.submit(ask()).run_id
    wait_for(shared, following, "done")


def test_a_queued_run_is_cancelled_at_once_and_never_starts(shared: Jobs, ask: Callable[..., Recipe]) -> None:
    blocker = shared.submit(ask("slow-compress")).run_id
    wait_for(shared, blocker, "running")
    run_id = shared.submit(ask(), user="bob").run_id
    assert shared.cancel_mine("bob") == 1
    assert status(shared, run_id) == "cancelled"
    let_go(shared, blocker)
    wait_for(shared, blocker, "done")
    wait_for(shared, shared.submit(ask()).run_id, "done")
    assert calls(shared, run_id) == []


def test_a_cancelled_run_runs_again_on_retry_and_when_asked_again(
    shared: Jobs, ask: Callable[..., Recipe]
) -> None:
    recipe = ask("slow-compress")
    run_id = shared.submit(recipe).run_id
    wait_for(shared, run_id, "running")
    shared.cancel(run_id)
    wait_for(shared, run_id, "cancelled")
    assert shared.retry(run_id)
    assert not shared.retry(run_id)
    wait_for(shared, run_id, "running")
    shared.cancel(run_id)
    wait_for(shared, run_id, "cancelled")
    let_go(shared, run_id)
    assert shared.submit(recipe).created
    assert wait_for(shared, run_id, "done")["attempt"] == 3


@pytest.mark.parametrize(
    ("behaviour", "kind", "says"),
    [
        ("user-error", "user", "group 48 does not divide 576"),
        ("full-disk", "user", "the disk is full"),
        ("bug", "bug", "ZeroDivisionError: a bug"),
        ("killed", "killed", "memory ran out"),
    ],
)
def test_a_failed_run_says_why_and_the_next_one_works(
    shared: Jobs, ask: Callable[..., Recipe], behaviour: str, kind: str, says: str
) -> None:
    failing, following = shared.submit(ask(behaviour)).run_id, shared.submit(ask()).run_id
    row = wait_for(shared, failing, "failed", "done")
    assert (row["status"], row["error_kind"]) == ("failed", kind)
    assert says in row["error"]
    assert ("Traceback" in row["error"]) == (kind == "bug")
    assert (row["suggestion"] is not None) == (kind == "killed")
    wait_for(shared, following, "done")


def test_progress_and_log_are_told_while_it_runs(shared: Jobs, ask: Callable[..., Recipe]) -> None:
    run_id = shared.submit(ask("slow-compress")).run_id
    wait(lambda: any(run.id == run_id and run.stage == "compress" for run in results.queue(shared.database)))
    run = next(run for run in results.queue(shared.database) if run.id == run_id)
    assert (run.position, run.done, run.total, run.detail) == (0, 1, 4, "waiting")
    assert 0 < (run.fraction or 0) < 0.5
    assert (run.memory_bytes or 0) > 1_000_000
    assert time.time() - (run.heartbeat or 0) < 5
    let_go(shared, run_id)
    wait_for(shared, run_id, "done")
    assert results.log_tail(shared.database, run_id)["line"][0] == "compress: compress waiting"


def test_a_run_under_way_tells_how_many_tokens_it_scores_a_second(
    shared: Jobs, ask: Callable[..., Recipe]
) -> None:
    run_id = shared.submit(ask("counted-perplexity")).run_id
    wait(lambda: (results.run(shared.database, run_id) or {})["tokens_per_second"] is not None)
    run = next(run for run in results.queue(shared.database) if run.id == run_id)
    assert run.stage == "evaluate"
    # 100 tokens take 0.05 s of sleep and whatever the machine adds.
    assert 50 < (run.tokens_per_second or 0) <= 2000
    let_go(shared, run_id)
    wait_for(shared, run_id, "done")


def test_a_broken_model_is_marked_with_its_cause(shared: Jobs, ask: Callable[..., Recipe]) -> None:
    run_id = shared.submit(ask("broken")).run_id
    assert wait_for(shared, run_id, "done")["broken"] == "collapse"


def test_a_sweep_is_queued_under_one_id_and_a_bad_recipe_queues_nothing(
    shared: Jobs, ask: Callable[..., Recipe]
) -> None:
    bad = ask(evaluation={"text": "no-such-text"})
    with pytest.raises(UserError, match="no-such-text"):
        shared.submit_sweep([ask(), bad])
    sweep_id, submitted = shared.submit_sweep([ask(), ask()])
    for one in submitted:
        assert wait_for(shared, one.run_id, "done")["sweep_id"] == sweep_id


def test_generations_stream_side_by_side_and_can_be_stopped(
    shared: Jobs, model: Path, ask: Callable[..., Recipe]
) -> None:
    run_id = shared.submit(ask()).run_id
    wait_for(shared, run_id, "done")
    group = shared.generate(str(model.parent / "plain"), [None, run_id], "20", {"max_tokens": 8})
    wait(lambda: 0 < len(results.generations(shared.database, group)["text"][0]) < 40, 15)
    wait(lambda: list(results.generations(shared.database, group)["status"]) == ["done", "done"], 15)
    answers = results.generations(shared.database, group)
    assert answers["tokens"][1][3] == [3, "3 "]
    endless = shared.generate(str(model), None, "2000", {})
    wait(lambda: len(results.generations(shared.database, endless)["text"][0]) > 10, 15)
    shared.cancel_generation(endless)
    wait(lambda: results.generations(shared.database, endless)["status"][0] == "cancelled", 2)
    assert len(results.generations(shared.database, endless)["text"][0]) > 10


def test_bad_requests_are_refused_in_one_sentence(
    shared: Jobs, model: Path, ask: Callable[..., Recipe]
) -> None:
    with pytest.raises(UserError, match="no run"):
        shared.cancel("nonesuch")
    with pytest.raises(UserError, match="priority 0"):
        shared.set_priority("nonesuch", 0)
    with pytest.raises(UserError, match="the prompt has 0 characters"):
        shared.generate(str(model), None, "", {})
    with pytest.raises(UserError, match="temperature"):
        shared.generate(str(model), None, "1", {"temperature": -1})
    with pytest.raises(UserError, match="4096 tokens"):
        shared.submit(ask(evaluation={"text": "wikipedia-en", "length": 8192}))


def test_removing_a_run_takes_its_numbers_and_its_artifact(shared: Jobs, ask: Callable[..., Recipe]) -> None:
    run_id = shared.submit(ask()).run_id
    artifact = Path(wait_for(shared, run_id, "done")["artifact"])
    shared.remove(run_id)
    assert status(shared, run_id) == "removed"
    assert not artifact.exists()
    assert results.measurements(shared.database, [run_id]).empty
    assert run_id not in set(results.points(shared.database)["id"])
    running = shared.submit(ask("slow-compress")).run_id
    wait_for(shared, running, "running")
    with pytest.raises(UserError, match="cancel it"):
        shared.remove(running)
    shared.cancel(running)
    wait_for(shared, running, "cancelled")


def test_a_second_worker_of_the_same_name_is_refused(shared: Jobs) -> None:
    wait(lambda: bool(results.workers(shared.database, 3)["alive"].any()))
    twin = WorkerProcess(shared.host.home)
    assert twin.process.wait(40) != 0


def test_a_quota_bounds_what_one_person_has_queued(
    alone: Jobs, ask: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETOSCOPE_QUOTA", "2")
    jobs = Jobs(Host.at(alone.host.home))
    jobs.submit(ask(), user="ada")
    jobs.submit(ask(), user="ada")
    with pytest.raises(UserError, match="ada already has 2 runs queued or running"):
        jobs.submit(ask(), user="ada")
    assert jobs.submit(ask(), user="bob").created
    jobs.close()


def test_with_a_log_in_only_the_owner_may_change_a_run(
    alone: Jobs, ask: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETOSCOPE_AUTH", "ada:secret,bob:secret")
    jobs = Jobs(Host.at(alone.host.home))
    run_id = jobs.submit(ask(), user="ada").run_id
    for change in (jobs.cancel, jobs.retry, jobs.remove):
        with pytest.raises(UserError, match="belongs to ada"):
            change(run_id, user="bob")
    assert jobs.cancel(run_id, user="ada") == "cancelled"
    jobs.close()


def test_a_killed_worker_resumes_without_doing_finished_steps_again(
    alone: Jobs, ask: Callable[..., Recipe]
) -> None:
    worker = WorkerProcess(alone.host.home)
    run_id = alone.submit(ask("slow-divergence")).run_id
    waiting = alone.submit(ask()).run_id
    wait(lambda: status(alone, run_id) == "running" and "divergence" in calls(alone, run_id))
    worker.stop(signal.SIGKILL)
    assert status(alone, run_id) == "running"
    let_go(alone, run_id)
    worker = WorkerProcess(alone.host.home)
    wait_for(alone, run_id, "done")
    assert Counter(calls(alone, run_id)) == {
        **{"compress": 1, "perplexity": 1, "divergence": 2, "size": 1, "sanity": 1},
    }
    assert len(results.measurements(alone.database, [run_id])) == 4
    wait_for(alone, waiting, "done")
    worker.stop()


def test_a_stopped_worker_leaves_quickly_and_its_run_goes_on_next_time(
    alone: Jobs, ask: Callable[..., Recipe]
) -> None:
    worker = WorkerProcess(alone.host.home)
    run_id = alone.submit(ask("slow-perplexity")).run_id
    wait(lambda: status(alone, run_id) == "running" and "perplexity" in calls(alone, run_id))
    assert worker.stop(signal.SIGINT) < 5
    row = results.run(alone.database, run_id)
    assert row is not None
    assert (row["status"], row["stage"]) == ("running", "paused")
    assert list(results.workers(alone.database)["state"]) == ["stopped"]
    let_go(alone, run_id)
    worker = WorkerProcess(alone.host.home)
    wait_for(alone, run_id, "done")
    assert calls(alone, run_id).count("compress") == 1
    worker.stop()


def test_another_worker_takes_over_what_a_lost_one_left(alone: Jobs, ask: Callable[..., Recipe]) -> None:
    lost = WorkerProcess(alone.host.home, "first")
    run_id = alone.submit(ask("slow-divergence")).run_id
    wait(lambda: status(alone, run_id) == "running" and "divergence" in calls(alone, run_id))
    lost.stop(signal.SIGKILL)
    let_go(alone, run_id)
    other = WorkerProcess(alone.host.home, "second")
    row = wait_for(alone, run_id, "done")
    assert row["worker"] == "second"
    assert calls(alone, run_id).count("compress") == 1
    other.stop()


def test_a_worker_trims_the_caches_but_not_what_a_run_under_way_has_used(
    alone: Jobs, ask: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETOSCOPE_CACHE_GB", "0")
    old, used = (alone.host.cache / "hidden" / name for name in ("old", "used"))
    for folder in (old, used):
        folder.mkdir(parents=True)
        (folder / "window-0000.safetensors").write_bytes(b"states")
    os.utime(old, (1, 1))
    run_id = alone.submit(ask("slow-compress")).run_id
    row = results.run(alone.database, run_id)
    assert row is not None
    runs.start_run(alone.database, run_id, row["ticket"], "another")
    os.utime(used)
    worker = WorkerProcess(alone.host.home)
    wait(lambda: not old.exists())
    assert used.exists()
    let_go(alone, run_id)
    wait_for(alone, run_id, "done")
    worker.stop()


def test_a_run_that_the_queue_lost_is_found_again(alone: Jobs, ask: Callable[..., Recipe]) -> None:
    recipe = ask()
    asked = {
        "digest": "f" * 64,
        "name": "lost",
        "recipe": recipe.to_json(),
        "model": recipe.model,
        "chain": "dense",
    }
    run_id, _, _ = runs.create_run(alone.database, **asked)
    worker = WorkerProcess(alone.host.home)
    wait_for(alone, run_id, "done")
    worker.stop()
