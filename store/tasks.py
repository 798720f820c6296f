"""Questions to a model that are no runs: asked, answered once, kept."""

import json
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, select, update

from store.database import Database
from store.tables import Task
from store.writes import bump, clean, insert_new

_ACTIVE = ("queued", "running")
# What a new attempt does not inherit from the last one.
_CLEARED = (
    *("stage", "done", "total", "detail", "result", "error", "started", "finished", "worker", "heartbeat"),
)


def ask(
    database: Database,
    *,
    task_id: str,
    kind: str,
    model: str,
    arguments: Mapping[str, Any],
    user: str,
    anew: bool = False,
) -> int | None:
    """The attempt to queue; None when the same question is queued, being answered, or answered already.

    With `anew` it is asked again though it was answered.
    """
    fresh = {"status": "queued", "user": user, "created": time.time(), "cancel_requested": False}
    told = clean(json.dumps(dict(arguments), sort_keys=True))
    with database.write() as connection:
        made = insert_new(
            connection,
            Task,
            {"id": task_id, "kind": kind, "model": model, "arguments": told, "attempt": 1, **fresh},
        )
        if made:
            bump(connection, question=True)
            return 1
        over = (Task.id == task_id) & Task.status.in_(("failed", "cancelled", *(["done"] if anew else [])))
        attempt = connection.execute(
            update(Task)
            .where(over)
            .values(attempt=Task.attempt + 1, **dict.fromkeys(_CLEARED), **fresh)
            .returning(Task.attempt)
        ).scalar()
        if attempt is not None:
            bump(connection, question=True)
        return attempt


def start(database: Database, task_id: str, attempt: int, worker: str) -> bool:
    """Whether this attempt is still wanted."""
    now = time.time()
    with database.write() as connection:
        started = connection.execute(
            update(Task)
            .where(Task.id == task_id, Task.attempt == attempt, Task.status.in_(_ACTIVE))
            .values(status="running", worker=worker, started=now, heartbeat=now)
        ).rowcount
        bump(connection, question=True)
        return started > 0


def report_progress(database: Database, task_id: str, attempt: int, **columns: Any) -> bool:
    """Write progress columns and a heartbeat; whether the work should stop."""
    with database.write() as connection:
        row = connection.execute(
            update(Task)
            .where(_running(task_id, attempt))
            .values(heartbeat=time.time(), **columns)
            .returning(Task.cancel_requested)
        ).first()
        if columns:
            bump(connection, question=True)
        return row is None or row.cancel_requested


def finish(
    database: Database,
    task_id: str,
    attempt: int,
    status: str,
    *,
    result: Mapping[str, Any] | None = None,
    error: str | None = None,
) -> None:
    """Close an attempt that is still open."""
    told = None if result is None else json.dumps(dict(result)).replace("\\u0000", "")
    with database.write() as connection:
        connection.execute(
            update(Task)
            .where(_running(task_id, attempt))
            .values(status=status, result=told, error=clean(error), finished=time.time())
        )
        bump(connection, question=True)


def cancel(database: Database, task_id: str) -> str | None:
    """The status after asking: `cancelled` at once if it had not begun."""
    with database.write() as connection:
        row = connection.execute(select(Task.status).where(Task.id == task_id).with_for_update()).first()
        if row is None or row.status not in _ACTIVE:
            return None if row is None else str(row.status)
        values: dict[str, Any] = {"cancel_requested": True}
        if row.status == "queued":
            values = {"status": "cancelled", "finished": time.time()}
        connection.execute(update(Task).where(Task.id == task_id).values(**values))
        bump(connection, question=True)
        return str(values.get("status", row.status))


def claim_stale(database: Database, worker: str, stale_after: float) -> list[tuple[str, str, int]]:
    """(id, kind, attempt) of the tasks that a silent worker left, now this worker's to take over."""
    now = time.time()
    left = (Task.status == "running") & (Task.worker != worker)
    with database.write() as connection:
        rows = connection.execute(
            update(Task)
            .where(left, Task.heartbeat < now - stale_after)
            .values(worker=worker, heartbeat=now)
            .returning(Task.id, Task.kind, Task.attempt)
        ).all()
    return [(row.id, row.kind, row.attempt) for row in rows]


def waiting(database: Database) -> list[tuple[str, str, int]]:
    """(id, kind, attempt) of the tasks that have not begun."""
    query = select(Task.id, Task.kind, Task.attempt).where(Task.status == "queued").order_by(Task.created)
    with database.read() as connection:
        return [(row.id, row.kind, row.attempt) for row in connection.execute(query)]


def _running(task_id: str, attempt: int) -> ColumnElement[bool]:
    return (Task.id == task_id) & (Task.attempt == attempt) & (Task.status == "running")
