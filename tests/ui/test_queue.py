"""What the Queue page shows and does."""

import os
import time

import pytest

from backend.errors import UserError
from backend.recipe import parse_recipe
from store import results, runs
from tests.ui import made_up
from ui.pages import explore, queue


def queued(jobs, count=3):
    return [
        made_up.add_run(jobs.database, made_up.RUNS[1], status="queued", recipe={"seed": seed})
        for seed in range(count)
    ]


def order(jobs):
    return [run.id for run in results.queue(jobs.database) if run.status == "queued"]


def alive(jobs):
    runs.write_worker(
        jobs.database, "local", pid=os.getpid(), host="lab", device="cpu", state="working",
        started=time.time(), memory_bytes=1_200_000_000,
    )  # fmt: skip


def test_without_a_worker_the_page_says_how_to_start_one(jobs):
    assert "python app.py worker" in queue.overview(jobs)
    alive(jobs)
    page = queue.overview(jobs)
    assert "No worker" not in page
    assert "1.2 GB" in page


def test_an_idle_queue_says_so(jobs):
    assert "Nothing is running" in queue.overview(jobs)


def test_a_running_run_shows_stage_progress_and_time_left(jobs):
    alive(jobs)
    run_id = made_up.add_run(jobs.database, made_up.RUNS[2], status="running")
    runs.report_progress(
        jobs.database, run_id, 1, "local", stage="compress", done=12, total=30, detail="block 13 of 30",
        fraction=0.42, eta_seconds=75.0, memory_bytes=900_000_000, tokens_per_second=512.0,
    )  # fmt: skip
    page = queue.overview(jobs)
    for told in (
        "42 %",
        "1 min 15 s",
        "block 13 of 30",
        "512 tok/s",
        "900.0 MB",
        "compress",
        "gptq 3-bit g64",
        "<b>cpu</b><span>device</span>",
    ):
        assert told in page


def test_queued_runs_show_their_place_and_ended_ones_their_cause(jobs):
    waiting = queued(jobs)
    failed = made_up.add_run(
        jobs.database, made_up.RUNS[3], status="failed", error="Traceback ...\nValueError: <b>bad</b>",
        error_kind="bug", suggestion="try again", 
    )  # fmt: skip
    page = queue.overview(jobs)
    assert "3 queued" in page
    assert all(run_id in page for run_id in [*waiting, failed])
    assert "ValueError: &lt;b&gt;bad&lt;/b&gt; try again" in page
    assert "Traceback" not in page
    log = queue.log(jobs, {"run": failed})
    assert "Traceback" in log
    assert "A bug" in log


def test_the_log_shows_what_was_printed_escaped(jobs):
    run_id = made_up.add_run(jobs.database, made_up.RUNS[2], status="running")
    assert "Nothing has been printed" in queue.log(jobs, {"run": run_id})
    runs.append_log(jobs.database, run_id, ["loading <model>", "block 1"])
    assert "loading &lt;model&gt;\nblock 1" in queue.log(jobs, {"run": run_id})
    assert "There is no run &lt;i&gt;" in queue.log(jobs, {"run": "<i>"})
    assert queue.log(jobs, {"run": ""}) == ""


@pytest.fixture
def real(jobs, tiny):
    """Three runs that the queue engine knows."""
    recipe = {"model": tiny.model, "evaluation": {"text": tiny.text, "length": 64, "windows": 2}}
    recipe["calibration"] = {"text": tiny.text, "samples": 4, "length": 32}
    return [jobs.submit(parse_recipe(recipe | {"seed": seed})).run_id for seed in range(3)]


def test_runs_move_one_place_or_to_the_front(jobs, real):
    first, second, third = real
    assert order(jobs) == real
    for action, run_id, expected in (
        ("up", third, [first, third, second]), ("down", first, [third, first, second]),
        ("up", third, [third, first, second]), ("front", second, [second, third, first]),
    ):  # fmt: skip
        queue.act(jobs, action, run_id, "anonymous")
        assert order(jobs) == expected


def test_a_pause_is_told_on_every_page_that_shows_work_until_it_is_resumed(jobs, filled):
    assert "Pause the queue" in queue.overview(jobs)
    queue.act(jobs, "pause", "", "<ada>")
    page = queue.overview(jobs)
    assert "Paused by &lt;ada&gt;, just now" in page
    assert "Resume" in page
    assert "Pause the queue" not in page
    told = explore.activity(jobs)
    assert "Paused by &lt;ada&gt;" in told
    assert "Resume" not in told
    queue.act(jobs, "resume", "", "bob")
    assert "Paused" not in queue.overview(jobs) + explore.activity(jobs)


def test_all_failed_runs_of_one_person_are_queued_again(jobs, real):
    for run_id in real[:2]:
        row = results.run(jobs.database, run_id)
        runs.start_run(jobs.database, run_id, row["ticket"], "local")
        runs.finish_run(jobs.database, run_id, row["ticket"], "local", "failed", error="no", error_kind="bug")
    assert order(jobs) == real[2:]
    assert "Retry all failed of mine" in queue.overview(jobs)
    queue.act(jobs, "retry-mine", "", "somebody else")
    assert order(jobs) == real[2:]
    queue.act(jobs, "retry-mine", "", "anonymous")
    assert order(jobs) == [real[2], real[0], real[1]]


def test_a_cancelled_run_can_be_retried(jobs, real):
    queue.act(jobs, "cancel", real[1], "anonymous")
    assert real[1] not in order(jobs)
    queue.act(jobs, "retry", real[1], "anonymous")
    assert real[1] in order(jobs)
    queue.act(jobs, "cancel-mine", "", "anonymous")
    assert order(jobs) == []
    with pytest.raises(UserError, match="not waiting any more"):
        queue.act(jobs, "up", real[0], "anonymous")
