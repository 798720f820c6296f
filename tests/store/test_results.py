"""What pages read: points, measurements, series, queue, generations."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from store import generations, measurements, results, runs, tasks
from store.database import Database
from tests.store.conftest import ticket

WORKER = "worker"
ENGLISH = {"text": "wikipedia-en", "digest": "e" * 16, "window": 2048, "windows": 24, "tokens": 49128}
FRENCH = {**ENGLISH, "text": "wikipedia-fr", "digest": "f" * 16}


def number(
    metric: str, value: float, protocol: dict[str, Any], stderr: float | None = None
) -> dict[str, Any]:
    return {
        **{"metric": metric, "text": protocol.get("text"), "value": value, "stderr": stderr, "n": 24},
        **{"unit": "", "lower_is_better": True, "protocol": protocol, "seconds": 1.0},
    }


def save(database: Database, run_id: str, *rows: dict[str, Any]) -> None:
    measurements.save_measurements(database, run_id, measurements=rows)


def test_points_have_a_row_a_text_and_spread_what_belongs_to_the_run(
    database: Database, add: Callable[..., str]
) -> None:
    assert results.points(database).empty
    both, sizes, nothing = add(), add(), add()
    save(database, both, number("perplexity", 20.0, ENGLISH, 0.5), number("perplexity", 30.0, FRENCH))
    save(database, both, number("divergence.kl", 0.1, {**ENGLISH, "reference": "dense"}))
    save(database, both, number("size.packed", 1e6, {"what": "tensors"}))
    save(database, sizes, number("size.packed", 2e6, {"what": "tensors"}))
    points = results.points(database)
    assert nothing not in set(points["id"])
    english = points[(points["id"] == both) & (points["text"] == "wikipedia-en")].iloc[0]
    french = points[(points["id"] == both) & (points["text"] == "wikipedia-fr")].iloc[0]
    assert (english["perplexity"], english["perplexity.stderr"], english["size.packed"]) == (20.0, 0.5, 1e6)
    assert english["divergence.kl"] == 0.1
    assert (french["perplexity"], french["size.packed"]) == (30.0, 1e6)
    assert math.isnan(french["divergence.kl"])
    assert english["protocol"] != french["protocol"]
    only = points[points["id"] == sizes].iloc[0]
    assert (only["size.packed"], only["text"], only["protocol"]) == (2e6, "", "")
    assert len(points) == 3


def test_the_same_words_under_another_name_are_comparable_and_other_windows_are_not() -> None:
    same = measurements.protocol_digests({**ENGLISH, "text": "file:copy.txt"})[1]
    assert measurements.protocol_digests(ENGLISH)[1] == same
    assert measurements.protocol_digests({**ENGLISH, "windows": 8})[1] != same
    assert measurements.protocol_digests({"device": "cpu"})[1] == ""


def test_runs_of_different_devices_never_share_a_picture(
    database: Database, start: Callable[..., str]
) -> None:
    on = {device: {**ENGLISH, "device": device} for device in ("cpu", "cuda")}
    for device, speed in (("cpu", 5.0), ("cuda", 80.0)):
        run_id = start()
        save(
            database, run_id, number("perplexity", 20.0, on[device]),
            number("speed.decode", speed, {"device": device}),
        )  # fmt: skip
    points = results.points(database)
    assert points["protocol"].nunique() == 2
    assert sorted(points["speed.decode"]) == [5.0, 80.0]


def test_points_follow_every_change(database: Database, start: Callable[..., str]) -> None:
    first, second = start(), start()
    save(database, first, number("perplexity", 20.0, ENGLISH))
    save(database, second, number("perplexity", 30.0, ENGLISH))
    assert set(results.points(database)["perplexity"]) == {20.0, 30.0}
    save(database, second, number("perplexity", 31.0, ENGLISH), number("size.packed", 5.0, {}))
    points = results.points(database).set_index("id")
    assert list(points.loc[[first, second], "perplexity"]) == [20.0, 31.0]
    assert points.loc[second, "size.packed"] == 5.0
    measurements.save_measurements(database, first, measurements=[], broken="repeats itself")
    runs.finish_run(database, first, ticket(database, first), WORKER, "done")
    assert results.points(database).set_index("id").loc[first, ["broken", "status"]].tolist() == [
        "repeats itself",
        "done",
    ]
    runs.remove_run(database, first)
    assert list(results.points(database)["id"]) == [second]
    changed = results.points(database)
    changed["perplexity"] = 0.0
    assert list(results.points(database)["perplexity"]) == [31.0]


def test_a_step_done_twice_leaves_one_row(database: Database, add: Callable[..., str]) -> None:
    run_id = add()
    for value in (20.0, 21.0):
        measurements.save_measurements(
            database,
            run_id,
            measurements=[number("perplexity", value, ENGLISH)],
            series=[{"name": "perplexity.windows", "protocol": ENGLISH, "values": [value, 3.5]}],
            seconds={"perplexity": value},
        )
        measurements.save_compression(
            database, run_id, artifact="a", layers=[{"layer": "q", "error": value}], seconds={}, report={}
        )
    found = results.measurements(database, [run_id])
    assert list(found["value"]) == [21.0]
    assert "wikipedia-en" in found["stamp"][0]
    windows = results.series(database, [run_id], "perplexity.windows")
    assert np.array_equal(windows["values"][0], [21.0, 3.5])
    assert list(results.layers(database, run_id)["error"]) == [21.0]


def test_what_is_not_a_number_stays_not_a_number(database: Database, add: Callable[..., str]) -> None:
    run_id = add()
    save(
        database, run_id, number("perplexity", math.nan, ENGLISH), number("divergence.kl", math.inf, ENGLISH)
    )
    point = results.points(database).iloc[0]
    assert math.isnan(point["perplexity"])
    assert point["divergence.kl"] == math.inf


def test_numbers_of_a_removed_run_are_dropped(database: Database) -> None:
    save(database, "nonesuch", number("perplexity", 1.0, ENGLISH))
    assert results.measurements(database, ["nonesuch"]).empty


def test_the_first_cause_of_being_broken_stays(database: Database, add: Callable[..., str]) -> None:
    run_id = add()
    for cause in ("NaN in block 3", "repeats itself"):
        measurements.save_measurements(database, run_id, measurements=[], broken=cause)
    row = results.run(database, run_id)
    assert row is not None
    assert row["broken"] == "NaN in block 3"


def test_the_queue_is_in_the_order_in_which_it_runs(
    database: Database, add: Callable[..., str], start: Callable[..., str]
) -> None:
    running, late, first, second = start(), add(priority=20), add(priority=5), add(priority=5)
    queue = results.queue(database)
    assert [(run.position, run.id) for run in queue] == [(0, running), (1, first), (2, second), (3, late)]
    assert results.counts(database) == {"queued": 3, "running": 1}


def test_runs_can_be_narrowed(database: Database, add: Callable[..., str], start: Callable[..., str]) -> None:
    queued, running = add(), start()
    assert set(results.runs(database)["id"]) == {queued, running}
    assert list(results.runs(database, statuses=["running"])["id"]) == [running]
    assert list(results.runs(database, ids=[queued])["name"]) == ["run 1"]
    assert results.runs(database, ids=[]).empty
    assert list(results.runs(database, limit=1)["id"]) == [running]


def test_estimates_learn_from_finished_runs_only(database: Database, start: Callable[..., str]) -> None:
    done, running = start(), start()
    for run_id in (done, running):
        measurements.save_measurements(database, run_id, measurements=[], seconds={"perplexity": 3.0})
    measurements.save_compression(
        database, done, artifact="a", layers=[], seconds={"compress.load": 1.0}, report={"peak_bytes": 1000}
    )
    runs.finish_run(database, done, ticket(database, done), WORKER, "done")
    learnt = results.recent_seconds(database)
    assert dict(zip(learnt["phase"], learnt["seconds"], strict=True)) == {
        "perplexity": 3.0,
        "compress.load": 1.0,
    }
    assert set(learnt["run_id"]) == {done}
    assert set(learnt["peak_bytes"]) == {1000}


def test_the_oldest_of_what_runs_is_known(database: Database, start: Callable[..., str]) -> None:
    assert results.running_since(database) is None
    tasks.ask(database, task_id="t", kind="levels", model="m", arguments={}, user="ada")
    tasks.start(database, "t", 1, WORKER)
    task = results.task(database, "t")
    assert task is not None
    assert results.running_since(database) == task["started"]
    start()
    assert results.running_since(database) == task["started"]
    tasks.finish(database, "t", 1, "done", result={})
    run = results.runs(database, statuses=("running",)).iloc[0]
    assert results.running_since(database) == run["started"]


def test_a_group_of_generations_from_asked_to_done(database: Database, add: Callable[..., str]) -> None:
    ids = generations.create(
        database, group_id="g", model="tiny", run_ids=[None, add()], prompt="Say\x00", settings={"seed": 1}
    )
    assert generations.start(database, ids[0], WORKER)
    assert generations.write(database, ids[0], "one ") is False
    frame = results.generations(database, "g")
    assert list(frame["text"]) == ["one ", ""]
    assert (frame["prompt"][0], frame["settings"][0], frame["tokens"][1]) == ("Say", {"seed": 1}, [])
    assert generations.cancel(database, "g") == [ids[1]]
    assert generations.should_stop(database, ids[0]) is True
    generations.finish(database, ids[0], "cancelled")
    assert not generations.start(database, ids[1], WORKER)
    frame = results.generations(database, "g")
    assert list(frame["status"]) == ["cancelled", "cancelled"]
    assert frame["text"][0] == "one "


def test_a_worker_is_alive_while_its_heart_beats(database: Database) -> None:
    beat = {"pid": 1, "host": "here", "device": "cpu", "started": 0.0}
    runs.write_worker(database, "one", state="idle", **beat)
    runs.write_worker(database, "two", state="stopped", **beat)
    workers = results.workers(database).set_index("id")
    assert workers["alive"].to_dict() == {"one": True, "two": False}
    assert not results.workers(database, stale_after=-1.0)["alive"].any()


@pytest.mark.parametrize("name", ["perplexity.windows", "no such"])
def test_queries_on_an_empty_store_are_empty(database: Database, name: str) -> None:
    assert results.series(database, [], name).empty
    assert results.generations(database, "none").empty
    assert results.workers(database).empty
    assert results.recent_seconds(database).empty
    assert results.queue(database) == []
