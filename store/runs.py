"""The life of a run: each function is one short transaction, safe to repeat; the data version grows."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from store.database import Database
from store.tables import Log, Run, Worker
from store.writes import bump, clean, next_ticket, upsert

LONGEST_LINE = 2000
KEPT_LINES = 2000
_ACTIVE = ("queued", "running")
# What a new attempt does not inherit from the last one.
_CLEARED = (
    *("broken", "error", "error_kind", "suggestion", "started", "finished", "worker", "heartbeat", "stage"),
    *("done", "total", "detail", "fraction", "eta_seconds", "memory_bytes", "tokens_per_second", "seconds"),
)


class Spot(NamedTuple):
    """Where a queued run stands: lower priorities first, then lower places."""

    run_id: str
    ticket: int
    priority: int
    place: int


class QuotaReached(Exception):
    """The user has as many runs queued or running as the operator allows."""


def create_run(
    database: Database,
    *,
    digest: str,
    name: str,
    recipe: str,
    model: str,
    chain: str,
    user: str = "anonymous",
    priority: int = 10,
    source: str = "page",
    sweep_id: str | None = None,
    quota: int = 0,
) -> tuple[str, int, bool]:
    """(id, ticket, whether it is queued anew): a digest is one run; a failed or cancelled one starts again.

    Raises QuotaReached when the user already has `quota` runs queued or running.
    """
    run_id = digest[:12]
    try:
        with database.write() as connection:
            row = _locked(connection, run_id)
            if row is not None and row.status not in ("failed", "cancelled"):
                return run_id, row.ticket, False
            # First the ticket: on PostgreSQL it lets one at a time through, and none slips past the quota.
            ticket = next_ticket(connection)
            if quota and _active_runs(connection, user) >= quota:
                raise QuotaReached(f"{user} already has {quota} runs queued or running")
            now = time.time()
            asked = {"user": user, "priority": priority, "source": source, "sweep_id": sweep_id}
            if row is not None:
                _requeue(connection, run_id, ticket, now, asked)
            else:
                connection.execute(
                    insert(Run).values(
                        id=run_id,
                        digest=digest,
                        name=name,
                        recipe=recipe,
                        model=model,
                        chain=chain,
                        status="queued",
                        attempt=1,
                        ticket=ticket,
                        place=ticket,
                        version=0,
                        created=now,
                        enqueued=now,
                        cancel_requested=False,
                        **asked,
                    )
                )
            bump(connection, point=run_id)
            return run_id, ticket, True
    except IntegrityError:
        # PostgreSQL lets two inserts race; the other one won, and its row is there now.
        with database.read() as connection:
            ticket = connection.execute(select(Run.ticket).where(Run.id == run_id)).scalar_one()
        return run_id, ticket, False


def retry_run(database: Database, run_id: str) -> int | None:
    """The new ticket of a failed or cancelled run, queued again; None for any other."""
    with database.write() as connection:
        row = _locked(connection, run_id)
        if row is None or row.status not in ("failed", "cancelled"):
            return None
        ticket = next_ticket(connection)
        _requeue(connection, run_id, ticket, time.time(), {})
        bump(connection, point=run_id)
        return ticket


def set_priority(database: Database, run_id: str, priority: int) -> Spot | None:
    """Where a queued run stands now: last of its new priority; None for any other run."""
    with database.write() as connection:
        if _queued(connection, run_id) is None:
            return None
        ticket = next_ticket(connection)
        spot = _put(connection, Spot(run_id, ticket, priority, ticket))
        bump(connection)
        return spot


def move_to_front(database: Database, run_id: str) -> Spot | None:
    """Where a queued run stands now, before all others; None for any other run."""
    with database.write() as connection:
        if _queued(connection, run_id) is None:
            return None
        first = connection.execute(_in_order().limit(1)).one()
        if first.id == run_id:
            return Spot(*first)
        spot = _put(connection, Spot(run_id, next_ticket(connection), first.priority, first.place - 1))
        bump(connection)
        return spot


def swap(database: Database, before: str, after: str) -> tuple[Spot, Spot] | None:
    """Where two queued neighbours stand now: `after` first; None when one of them waits no more.

    The later one takes the other's place, and with it its priority.
    """
    with database.write() as connection:
        first, second = (_queued(connection, run_id) for run_id in (before, after))
        if first is None or second is None:
            return None
        tickets = next_ticket(connection), next_ticket(connection)
        # As the last of its priority it stands before all that the other one left behind.
        place = second.place if second.priority == first.priority else tickets[1]
        moved = _put(connection, Spot(after, tickets[0], first.priority, first.place))
        other = _put(connection, Spot(before, tickets[1], first.priority, place))
        bump(connection)
        return moved, other


def renew(database: Database, run_id: str, ticket: int) -> Spot | None:
    """The same spot with a new ticket; None when the run waits no more, or not with this ticket."""
    with database.write() as connection:
        row = _queued(connection, run_id)
        if row is None or row.ticket != ticket:
            return None
        return _put(connection, row._replace(ticket=next_ticket(connection)))


def start_run(database: Database, run_id: str, ticket: int, worker: str) -> bool:
    """Whether this ticket may work: a cancelled, removed or requeued run turns it away."""
    with database.write() as connection:
        row = _locked(connection, run_id)
        if row is None or row.ticket != ticket or row.status not in _ACTIVE:
            return False
        now = time.time()
        connection.execute(
            update(Run)
            .where(Run.id == run_id)
            .values(status="running", worker=worker, heartbeat=now, started=func.coalesce(Run.started, now))
        )
        bump(connection, point=run_id)
        return True


def report_progress(database: Database, run_id: str, ticket: int, worker: str, **columns: Any) -> bool:
    """Write progress columns and a heartbeat; whether the work should stop."""
    with database.write() as connection:
        row = connection.execute(
            update(Run)
            .where(_ours(run_id, ticket, worker))
            .values(heartbeat=time.time(), **columns)
            .returning(Run.cancel_requested)
        ).first()
        bump(connection)
        return row is None or row.cancel_requested


def should_stop(database: Database, run_id: str, ticket: int, worker: str) -> bool:
    """Whether the work should stop: somebody asked, or another worker took it over."""
    with database.read() as connection:
        row = connection.execute(select(Run.cancel_requested).where(_ours(run_id, ticket, worker))).first()
    return row is None or row.cancel_requested


def finish_run(
    database: Database,
    run_id: str,
    ticket: int,
    worker: str,
    status: str,
    *,
    error: str | None = None,
    error_kind: str | None = None,
    suggestion: str | None = None,
) -> bool:
    """Close the run; False if it is not this worker's any more."""
    with database.write() as connection:
        closed = connection.execute(
            update(Run)
            .where(_ours(run_id, ticket, worker))
            .values(
                status=status,
                error=clean(error),
                error_kind=error_kind,
                suggestion=suggestion,
                finished=time.time(),
                cancel_requested=False,
                eta_seconds=None,
                **({"fraction": 1.0} if status == "done" else {}),
            )
        ).rowcount
        bump(connection, point=run_id)
        return closed > 0


def request_cancel(database: Database, run_id: str, stale_after: float = 30.0) -> str | None:
    """The status after asking: `cancelled` at once if it was queued or its worker is gone."""
    with database.write() as connection:
        row = _locked(connection, run_id)
        if row is None or row.status not in _ACTIVE:
            return row.status if row is not None else None
        gone = row.status == "running" and (row.heartbeat or 0.0) < time.time() - stale_after
        if row.status == "queued" or gone:
            values: dict[str, Any] = {
                "status": "cancelled",
                "finished": time.time(),
                "cancel_requested": False,
            }
        else:
            values = {"cancel_requested": True}
        connection.execute(update(Run).where(Run.id == run_id).values(**values))
        bump(connection, point=run_id)
        return str(values.get("status", row.status))


def remove_run(database: Database, run_id: str) -> bool:
    """Take a run that is not running out of the store, with all that was measured on it."""
    with database.write() as connection:
        gone = connection.execute(delete(Run).where(Run.id == run_id, Run.status != "running")).rowcount
        bump(connection, point=run_id)
        return gone > 0


def append_log(database: Database, run_id: str, lines: Sequence[str]) -> None:
    """Add lines; the oldest beyond KEPT_LINES go."""
    with database.write() as connection:
        if not lines or connection.execute(select(Run.id).where(Run.id == run_id)).first() is None:
            return
        now = time.time()
        rows = [{"run_id": run_id, "time": now, "line": clean(line[:LONGEST_LINE])} for line in lines]
        connection.execute(insert(Log), rows)
        keep = select(Log.id).where(Log.run_id == run_id).order_by(Log.id.desc()).offset(KEPT_LINES).limit(1)
        oldest = connection.execute(keep).scalar()
        if oldest is not None:
            connection.execute(delete(Log).where(Log.run_id == run_id, Log.id <= oldest))
        bump(connection)


def write_worker(
    database: Database,
    worker_id: str,
    *,
    pid: int,
    host: str,
    device: str,
    state: str,
    started: float,
    memory_bytes: int | None = None,
) -> None:
    """A worker's sign of life."""
    values = {
        "id": worker_id,
        "pid": pid,
        "host": host,
        "device": device,
        "state": state,
        "started": started,
        "heartbeat": time.time(),
        "memory_bytes": memory_bytes,
    }
    with database.write() as connection:
        upsert(connection, Worker, values, ("id",))
        bump(connection)


def requeue_lost(database: Database, run_id: str) -> Spot:
    """Where a running run stands that the queue has lost: it waits again from now on."""
    with database.write() as connection:
        ticket = next_ticket(connection)
        row = connection.execute(
            update(Run)
            .where(Run.id == run_id)
            .values(status="queued", ticket=ticket, place=ticket, enqueued=time.time(), stage=None)
            .returning(Run.priority)
        ).one()
        bump(connection)
    return Spot(run_id, ticket, row.priority, ticket)


def claim_stale(database: Database, worker: str, stale_after: float) -> list[tuple[str, int]]:
    """(id, ticket) of the runs that a silent worker left, now this worker's alone to take over."""
    now = time.time()
    left = (Run.status == "running") & (Run.worker != worker)
    with database.write() as connection:
        rows = connection.execute(
            update(Run)
            .where(left, Run.heartbeat < now - stale_after)
            .values(worker=worker, heartbeat=now)
            .returning(Run.id, Run.ticket)
        ).all()
        if rows:
            bump(connection)
    return [(row.id, row.ticket) for row in rows]


def first_waiting(database: Database) -> Spot | None:
    """The queued run whose turn it is."""
    with database.read() as connection:
        row = connection.execute(_in_order().limit(1)).first()
    return None if row is None else Spot(*row)


def _in_order() -> Any:
    columns = select(Run.id, Run.ticket, Run.priority, Run.place).where(Run.status == "queued")
    return columns.order_by(Run.priority, Run.place, Run.id)


def _queued(connection: Connection, run_id: str) -> Spot | None:
    row = connection.execute(_in_order().where(Run.id == run_id).with_for_update()).first()
    return None if row is None else Spot(*row)


def _put(connection: Connection, spot: Spot) -> Spot:
    told = {"ticket": spot.ticket, "priority": spot.priority, "place": spot.place}
    connection.execute(update(Run).where(Run.id == spot.run_id).values(**told))
    return spot


def _ours(run_id: str, ticket: int, worker: str) -> ColumnElement[bool]:
    mine = (Run.id == run_id) & (Run.ticket == ticket) & (Run.worker == worker)
    return mine & (Run.status == "running")


def _locked(connection: Connection, run_id: str) -> Any:
    columns = select(Run.status, Run.ticket, Run.heartbeat).where(Run.id == run_id)
    return connection.execute(columns.with_for_update()).first()


def _active_runs(connection: Connection, user: str) -> int:
    active = select(func.count()).select_from(Run).where(Run.user == user, Run.status.in_(_ACTIVE))
    return connection.execute(active).scalar_one()


def _requeue(connection: Connection, run_id: str, ticket: int, now: float, asked: Mapping[str, Any]) -> None:
    connection.execute(
        update(Run)
        .where(Run.id == run_id)
        .values(
            status="queued",
            attempt=Run.attempt + 1,
            ticket=ticket,
            place=ticket,
            enqueued=now,
            cancel_requested=False,
            **dict.fromkeys(_CLEARED),
            **asked,
        )
    )
