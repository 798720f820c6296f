"""Answers to a prompt: asked for, written piece by piece, finished or cancelled."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import insert, select, update

from store.database import Database
from store.tables import Generation
from store.writes import bump, clean

_ACTIVE = ("queued", "running")


def create(
    database: Database,
    *,
    group_id: str,
    model: str,
    run_ids: Sequence[str | None],
    prompt: str,
    settings: Mapping[str, Any],
    user: str = "anonymous",
) -> list[str]:
    """The ids of a group's answers, one for each run (None: the dense model), all queued."""
    rows = [
        {
            "id": f"{group_id}-{position}",
            "group_id": group_id,
            "position": position,
            "run_id": run_id,
            "model": model,
            "user": user,
            "prompt": clean(prompt),
            "settings": json.dumps(dict(settings), sort_keys=True),
            "status": "queued",
            "text": "",
            "created": time.time(),
            "cancel_requested": False,
        }
        for position, run_id in enumerate(run_ids)
    ]
    with database.write() as connection:
        connection.execute(insert(Generation), rows)
        bump(connection, question=True)
    return [str(row["id"]) for row in rows]


def start(database: Database, generation_id: str, worker: str) -> bool:
    """Whether there is still something to generate."""
    now = time.time()
    with database.write() as connection:
        started = connection.execute(
            update(Generation)
            .where(Generation.id == generation_id, Generation.status.in_(_ACTIVE))
            .values(status="running", worker=worker, started=now, heartbeat=now)
        ).rowcount
        bump(connection, question=True)
        return started > 0


def write(database: Database, generation_id: str, text: str) -> bool:
    """Show the text so far; whether to stop."""
    with database.write() as connection:
        row = connection.execute(
            update(Generation)
            .where(Generation.id == generation_id, Generation.status == "running")
            .values(text=clean(text), heartbeat=time.time())
            .returning(Generation.cancel_requested)
        ).first()
        bump(connection, question=True)
        return row is None or row.cancel_requested


def should_stop(database: Database, generation_id: str) -> bool:
    """Give a sign of life; whether this answer is not wanted any more."""
    with database.write() as connection:
        row = connection.execute(
            update(Generation)
            .where(Generation.id == generation_id, Generation.status == "running")
            .values(heartbeat=time.time())
            .returning(Generation.cancel_requested)
        ).first()
    return row is None or row.cancel_requested


def claim_stale(database: Database, worker: str, stale_after: float) -> list[str]:
    """The answers that a silent worker left, now this worker's to take over."""
    now = time.time()
    left = (Generation.status == "running") & (Generation.worker != worker)
    with database.write() as connection:
        return list(
            connection.execute(
                update(Generation)
                .where(left, Generation.heartbeat < now - stale_after)
                .values(worker=worker, heartbeat=now)
                .returning(Generation.id)
            ).scalars()
        )


def one(database: Database, generation_id: str) -> dict[str, Any]:
    """All columns of one answer."""
    query = select(*Generation.__table__.columns).where(Generation.id == generation_id)
    with database.read() as connection:
        return dict(connection.execute(query).mappings().one())


def waiting(database: Database) -> list[str]:
    """Answers that have not begun."""
    with database.read() as connection:
        query = select(Generation.id).where(Generation.status == "queued").order_by(Generation.created)
        return list(connection.execute(query).scalars())


def finish(
    database: Database,
    generation_id: str,
    status: str,
    *,
    text: str | None = None,
    tokens: Sequence[Sequence[Any]] | None = None,
    error: str | None = None,
) -> None:
    """Close an answer; its text so far stays when there is no other."""
    values: dict[str, Any] = {"status": status, "error": clean(error), "finished": time.time()}
    if text is not None:
        values["text"] = clean(text)
    if tokens is not None:
        values["tokens"] = json.dumps([list(pair) for pair in tokens]).replace("\\u0000", "")
    with database.write() as connection:
        connection.execute(
            update(Generation)
            .where(Generation.id == generation_id, Generation.status.in_(_ACTIVE))
            .values(**values)
        )
        bump(connection, question=True)


def cancel(database: Database, group_id: str) -> list[str]:
    """Ask a group to stop; the ids of those that had not begun and are cancelled already."""
    with database.write() as connection:
        unbegun = connection.execute(
            update(Generation)
            .where(Generation.group_id == group_id, Generation.status == "queued")
            .values(status="cancelled", finished=time.time())
            .returning(Generation.id)
        ).scalars()
        cancelled = list(unbegun)
        connection.execute(
            update(Generation)
            .where(Generation.group_id == group_id, Generation.status == "running")
            .values(cancel_requested=True)
        )
        bump(connection, question=True)
        return cancelled
