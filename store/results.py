"""Read-only queries for pages, the command line and the estimator, mostly as DataFrames (missing is NaN)."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sqlalchemy import Select, func, select

from store.database import Database
from store.measurements import computed_as_stored
from store.tables import (
    Counter,
    Generation,
    Layer,
    Log,
    Measurement,
    Protocol,
    Run,
    Series,
    Story,
    Switch,
    Task,
    Worker,
)

# What a point on a plot tells of its run; the rest is on the run's card.
_POINT_COLUMNS = (
    *(Run.id, Run.digest, Run.name, Run.model, Run.chain, Run.status, Run.broken, Run.user, Run.source),
    *(Run.sweep_id, Run.created, Run.started, Run.finished, Run.recipe, Run.artifact),
)
# Reading all numbers of 2,000 runs takes a quarter of a second, so pages only read what is new.
_kept_points: WeakKeyDictionary[Database, tuple[int, pd.DataFrame]] = WeakKeyDictionary()
_kept_windows: WeakKeyDictionary[
    Database, dict[str, tuple[int, dict[tuple[str, str], NDArray[np.float64]]]]
] = WeakKeyDictionary()
_points_lock = Lock()
_SIMULATED, _REAL = "simulated", "real"
_PHASES = ["run_id", "model", "chain", "recipe", "worker", "finished", "peak_bytes", "phase", "seconds"]


@dataclass(frozen=True)
class QueuedRun:
    """A run that waits or works; `position` counts from 1, and is 0 while it runs."""

    position: int
    id: str
    name: str
    model: str
    chain: str
    status: str
    user: str
    source: str
    sweep_id: str | None
    priority: int
    attempt: int
    created: float
    started: float | None
    worker: str | None
    heartbeat: float | None
    stage: str | None
    done: int | None
    total: int | None
    detail: str | None
    fraction: float | None
    eta_seconds: float | None
    memory_bytes: int | None
    tokens_per_second: float | None
    cancel_requested: bool


def versions(database: Database) -> dict[str, int]:
    """Numbers that grow with writes: all with every one, results and questions with those of their own."""
    with database.read() as connection:
        rows = connection.execute(select(Counter.name, Counter.value)).all()
    there = {name: value for name, value in rows}
    return {name: there.get(name, 0) for name in ("all", "results", "questions")}


def data_version(database: Database) -> int:
    """A number that grows with every write that a page could show."""
    return _counter(database, "all")


def results_version(database: Database) -> int:
    """A number that grows when a point appears, changes or goes; progress does not touch it."""
    return _counter(database, "results")


def runs(
    database: Database,
    ids: Sequence[str] | None = None,
    statuses: Sequence[str] | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """All columns of the runs, newest first."""
    query = select(*Run.__table__.columns).order_by(Run.created.desc(), Run.id)
    if ids is not None:
        query = query.where(Run.id.in_(ids))
    if statuses is not None:
        query = query.where(Run.status.in_(statuses))
    return _frame(database, query.limit(limit))


def run(database: Database, run_id: str) -> dict[str, Any] | None:
    """All columns of one run, with its recipe, seconds and report read from JSON."""
    with database.read() as connection:
        row = connection.execute(select(*Run.__table__.columns).where(Run.id == run_id)).mappings().first()
    if row is None:
        return None
    return {**row, **{key: json.loads(row[key] or "{}") for key in ("recipe", "seconds", "report")}}


def points(database: Database) -> pd.DataFrame:
    """One row a run and text protocol that has numbers, with a column `METRIC` and `METRIC.stderr` a metric.

    `speeds` says of a run's tokens per second that they are `simulated` or `real`, and nothing without any.
    `protocol` is equal where numbers may be compared. Sizes, memory and speed, which belong to the run, stand
    in each of its rows. Newest runs first.
    """
    with _points_lock:
        version, frame = _kept_points.get(database, (-1, pd.DataFrame()))
        newest = results_version(database)
        if newest != version:
            frame = _newer_points(database, frame, version)
            _kept_points[database] = (newest, frame)
        return frame.copy()


def measurements(database: Database, run_ids: Sequence[str]) -> pd.DataFrame:
    """Every number of these runs in long format, with its whole stamp as JSON and what it compares with."""
    columns = (*Measurement.__table__.columns, Protocol.comparable, Protocol.stamp)
    query = select(*columns).join(Protocol, Protocol.digest == Measurement.protocol)
    order = (Measurement.run_id, Measurement.metric, Measurement.protocol)
    return _frame(database, query.where(Measurement.run_id.in_(run_ids)).order_by(*order))


def series(database: Database, run_ids: Sequence[str], name: str) -> pd.DataFrame:
    """One row a run and protocol: run_id, protocol, comparable, and `values` as an array."""
    query = select(Series.run_id, Series.protocol, Protocol.comparable, Series.numbers)
    query = query.join(Protocol, Protocol.digest == Series.protocol)
    query = query.where(Series.run_id.in_(run_ids), Series.name == name).order_by(
        Series.run_id, Series.protocol
    )
    frame = _frame(database, query)
    lists = [np.array(json.loads(numbers)) for numbers in frame["numbers"]]
    return frame.drop(columns="numbers").assign(values=pd.Series(lists, dtype=object))


def windows(database: Database, name: str) -> dict[tuple[str, str], NDArray[np.float64]]:
    """{(run, comparable): the value on each window} of a series, of all finished runs; do not write to it."""
    with _points_lock:
        version, found = _kept_windows.setdefault(database, {}).get(name, (-1, {}))
        newest = results_version(database)
        if newest != version:
            query = select(Series.run_id, Protocol.comparable, Series.numbers)
            query = query.join(Protocol, Protocol.digest == Series.protocol).join(
                Run, Run.id == Series.run_id
            )
            with database.read() as connection:
                fresh = connection.execute(query.where(Series.name == name, Run.version > version)).all()
            found = {**found, **{(run, key): np.array(json.loads(told)) for run, key, told in fresh}}
            _kept_windows[database][name] = (newest, found)
        return found


def layers(database: Database, run_id: str) -> pd.DataFrame:
    """One row a linear and stage, in the order of the model."""
    query = select(*Layer.__table__.columns).where(Layer.run_id == run_id)
    return _frame(database, query.order_by(Layer.block, Layer.layer, Layer.stage))


def log_tail(database: Database, run_id: str, lines: int = 200) -> pd.DataFrame:
    """The last lines that a run's work printed, oldest first: id, time, line."""
    query = (
        select(Log.id, Log.time, Log.line).where(Log.run_id == run_id).order_by(Log.id.desc()).limit(lines)
    )
    return _frame(database, query).iloc[::-1].reset_index(drop=True)


def queue(database: Database) -> list[QueuedRun]:
    """What runs, then what waits in the order in which it will run."""
    fields = [name for name in QueuedRun.__dataclass_fields__ if name != "position"]
    columns = [getattr(Run, name) for name in fields]
    with database.read() as connection:
        running = connection.execute(
            select(*columns).where(Run.status == "running").order_by(Run.started)
        ).all()
        waiting = connection.execute(
            select(*columns).where(Run.status == "queued").order_by(Run.priority, Run.place, Run.id)
        ).all()
    placed = [(0, row) for row in running] + list(enumerate(waiting, start=1))
    return [QueuedRun(position, **row._mapping) for position, row in placed]


def running_since(database: Database) -> float | None:
    """When the oldest of the runs and tasks under way began; None when nothing runs."""
    oldest = [
        select(func.min(table.started)).where(table.status == "running").scalar_subquery()
        for table in (Run, Task)
    ]
    with database.read() as connection:
        begun = connection.execute(select(*oldest)).one()
    return min((moment for moment in begun if moment is not None), default=None)


def recent_seconds(database: Database, limit: int = 200) -> pd.DataFrame:
    """Seconds of each phase of the last finished runs, one row a phase, with the run's peak memory."""
    query = select(
        Run.id, Run.model, Run.chain, Run.recipe, Run.worker, Run.finished, Run.report, Run.seconds
    )
    query = (
        query.where(Run.status == "done", Run.seconds.is_not(None)).order_by(Run.finished.desc()).limit(limit)
    )
    with database.read() as connection:
        found = connection.execute(query).all()
    rows = [
        (*row[:-2], json.loads(row.report or "{}").get("peak_bytes"), phase, value)
        for row in found
        for phase, value in json.loads(row.seconds).items()
    ]
    return pd.DataFrame(rows, columns=_PHASES)


def generations(database: Database, *group_ids: str) -> pd.DataFrame:
    """The answers of groups in their order; `tokens` is a list of [id, piece], empty until the end."""
    query = select(*Generation.__table__.columns).where(Generation.group_id.in_(group_ids))
    frame = _frame(database, query.order_by(Generation.group_id, Generation.position))
    frame["tokens"] = [[] if pd.isna(tokens) else json.loads(tokens) for tokens in frame["tokens"]]
    frame["settings"] = [json.loads(settings) for settings in frame["settings"]]
    return frame


def task(database: Database, task_id: str) -> dict[str, Any] | None:
    """All columns of a task, its arguments and result read from JSON; the result is empty until the end."""
    with database.read() as connection:
        row = connection.execute(select(*Task.__table__.columns).where(Task.id == task_id)).mappings().first()
    if row is None:
        return None
    return {**row, **{key: json.loads(row[key] or "{}") for key in ("arguments", "result")}}


def workers(database: Database, stale_after: float = 30.0) -> pd.DataFrame:
    """The workers, the liveliest first; `alive`: the heartbeat is fresh and the worker has not stopped."""
    frame = _frame(database, select(*Worker.__table__.columns).order_by(Worker.heartbeat.desc()))
    fresh = frame["heartbeat"].astype(float) > time.time() - stale_after
    frame["alive"] = fresh & (frame["state"] != "stopped")
    return frame


def switch(database: Database, name: str) -> dict[str, Any] | None:
    """What was said when a switch was turned on; None while it is off."""
    with database.read() as connection:
        value = connection.execute(select(Switch.value).where(Switch.name == name)).scalar()
    return None if value is None else json.loads(value)


def stories(database: Database) -> list[dict[str, Any]]:
    """All stories, the one changed last first, their views read from JSON."""
    with database.read() as connection:
        found = connection.execute(
            select(*Story.__table__.columns).order_by(Story.changed.desc(), Story.id)
        ).mappings()
        return [{**row, "views": json.loads(row["views"])} for row in found]


def story(database: Database, story_id: str) -> dict[str, Any] | None:
    """One story, its views read from JSON."""
    with database.read() as connection:
        query = select(*Story.__table__.columns).where(Story.id == story_id)
        row = connection.execute(query).mappings().first()
    return None if row is None else {**row, "views": json.loads(row["views"])}


def counts(database: Database) -> dict[str, int]:
    """How many runs there are in each status."""
    with database.read() as connection:
        rows = connection.execute(select(Run.status, func.count()).group_by(Run.status)).all()
    return {status: number for status, number in rows}


def _counter(database: Database, name: str) -> int:
    with database.read() as connection:
        return connection.execute(select(Counter.value).where(Counter.name == name)).scalar_one()


def _frame(database: Database, query: Select[*tuple[Any, ...]]) -> pd.DataFrame:
    with database.read() as connection:
        found = connection.execute(query)
        return pd.DataFrame(found.all(), columns=list(found.keys()))


def _newer_points(database: Database, frame: pd.DataFrame, version: int) -> pd.DataFrame:
    """The kept points, without the runs that are gone and with those that changed after `version`."""
    described = _frame(database, select(*_POINT_COLUMNS).where(Run.version > version))
    names = list(described.columns)
    if not frame.empty:
        there = set(_frame(database, select(Run.id))["id"]) - set(described["id"])
        frame = frame[frame["id"].isin(there)]
    fresh = _wide(database, version).merge(described, on="id", how="inner")
    found = fresh if frame.empty else frame if fresh.empty else pd.concat([frame, fresh])
    described_by = [*names, "protocol", "text", "computed", "speeds"]
    metrics = set(found.columns) - set(described_by)
    ordered = sorted(metrics, key=lambda name: (name.endswith(".stderr"), name))
    found = found.sort_values(["created", "id", "protocol"], ascending=[False, True, True], ignore_index=True)
    return found[[*described_by, *ordered]]


def _wide(database: Database, version: int) -> pd.DataFrame:
    """The numbers of runs changed after `version`, long to wide by hand: pandas' pivot takes far longer."""
    with database.read() as connection:
        protocols = connection.execute(select(Protocol.digest, Protocol.comparable, Protocol.stamp)).all()
        columns = (
            Measurement.run_id,
            Measurement.protocol,
            Measurement.metric,
            Measurement.value,
            Measurement.stderr,
        )
        changed = select(*columns).join(Run, Run.id == Measurement.run_id).where(Run.version > version)
        found = connection.execute(changed).all()
    comparable = {row.digest: row.comparable for row in protocols}
    stamps = {
        row.comparable: computed_as_stored(json.loads(row.stamp)) for row in protocols if row.comparable
    }
    run_ids, digests, metrics, values, errors = zip(*found, strict=True) if found else ((),) * 5
    kinds = {row.digest: json.loads(row.stamp).get("simulated") for row in protocols}
    speeds: dict[str, str] = {}
    for run_id, digest, metric, *_ in found:
        if metric.startswith("speed."):
            # Of several measurements one that is simulated makes the run's row so.
            speeds[run_id] = _SIMULATED if kinds[digest] else speeds.get(run_id, _REAL)
    runs_of, run_names = pd.factorize(np.array(run_ids, dtype=object))
    groups_of, groups = pd.factorize(np.array([comparable[digest] for digest in digests], dtype=object))
    metrics_of, metric_names = pd.factorize(np.array(metrics, dtype=object), sort=True)
    numbers = np.array([values, errors], dtype=float)

    # One row a run and text; a run that has no text measured yet still gets one for its sizes.
    with_text = np.array([bool(group) for group in groups])[groups_of] if found else np.zeros(0, bool)
    keys = runs_of * max(len(groups), 1) + groups_of
    textless = np.setdiff1d(runs_of, runs_of[with_text])
    own = np.isin(runs_of, textless) | with_text
    row_keys, rows_of_own = np.unique(keys[own], return_inverse=True)
    row_runs, row_groups = np.divmod(row_keys, max(len(groups), 1))
    table = np.full((2, len(row_keys), len(metric_names)), np.nan)
    table[:, rows_of_own, metrics_of[own]] = numbers[:, own]

    # What belongs to a run as a whole is spread over the rows of its texts.
    spread = np.full((2, len(run_names), len(metric_names)), np.nan)
    spread[:, runs_of[~own], metrics_of[~own]] = numbers[:, ~own]
    table = np.where(np.isnan(table), spread[:, row_runs], table)

    names = [str(name) for name in metric_names]
    wide = pd.DataFrame(table[0], columns=names)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "id": run_names[row_runs],
                    "protocol": groups[row_groups],
                    "text": [stamps.get(group, {}).get("text", "") for group in groups[row_groups]],
                    "computed": [
                        stamps.get(group, {}).get("compute_dtype", "") for group in groups[row_groups]
                    ],
                    "speeds": [speeds.get(run_id, "") for run_id in run_names[row_runs]],
                },
                dtype=object,
            ),
            wide,
            pd.DataFrame(table[1], columns=[f"{name}.stderr" for name in names]),
        ],
        axis=1,
    )
