"""What the steps of a run found out: layers, numbers, series, and the protocols they were measured by."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from store.database import Database
from store.tables import Layer, Measurement, Protocol, Run, Series
from store.writes import bump, number, upsert

# What must be equal for two numbers to stand on one plot; the text's name need not be.
_COMPARABLE = (
    "split",
    "digest",
    "join",
    "bos",
    "window",
    "stride",
    "windows",
    "tokens",
    "tokenizer",
    "loss_dtype",
    "model_dtype",
    # A model computed in float32 rounds elsewhere than one computed as it is stored.
    "compute_dtype",
    # Devices round differently, and what belongs to the run, its speed and memory, stands in the same row.
    "device",
)


def save_compression(
    database: Database,
    run_id: str,
    *,
    artifact: str,
    layers: Iterable[Mapping[str, Any]],
    seconds: Mapping[str, float],
    report: Mapping[str, Any],
) -> None:
    """What the compress step gave; a step done twice replaces its rows."""
    names = {column.name for column in Layer.__table__.columns}
    rows = [
        {"stage": 0, **{key: number(value) for key, value in row.items() if key in names}} for row in layers
    ]
    with database.write() as connection:
        connection.execute(delete(Layer).where(Layer.run_id == run_id))
        if rows:
            every = {name: None for name in names}
            connection.execute(insert(Layer), [{**every, **row, "run_id": run_id} for row in rows])
        _merge_seconds(connection, run_id, seconds)
        connection.execute(
            update(Run)
            .where(Run.id == run_id)
            .values(artifact=artifact, report=json.dumps(report, default=str))
        )
        bump(connection, point=run_id)


def save_measurements(
    database: Database,
    run_id: str,
    *,
    measurements: Sequence[Mapping[str, Any]],
    series: Sequence[Mapping[str, Any]] = (),
    broken: str | None = None,
    seconds: Mapping[str, float] | None = None,
) -> None:
    """What one metric gave; a step done twice replaces its rows."""
    with database.write() as connection:
        if connection.execute(select(Run.id).where(Run.id == run_id)).first() is None:
            return
        for row in measurements:
            values = {
                "run_id": run_id,
                "metric": row["metric"],
                "protocol": _keep_protocol(connection, row.get("protocol") or {}),
                "text": row.get("text"),
                "value": number(row["value"]),
                "stderr": number(row.get("stderr")),
                "n": row.get("n"),
                "unit": row.get("unit") or "",
                "lower_is_better": row.get("lower_is_better"),
                "seconds": row.get("seconds"),
            }
            upsert(connection, Measurement, values, ("run_id", "metric", "protocol"))
        for row in series:
            values = {
                "run_id": run_id,
                "name": row["name"],
                "protocol": _keep_protocol(connection, row.get("protocol") or {}),
                "numbers": json.dumps([float(number) for number in row["values"]]),
            }
            upsert(connection, Series, values, ("run_id", "name", "protocol"))
        if broken is not None:
            # The first cause stays: what fails later usually follows from it.
            connection.execute(
                update(Run).where(Run.id == run_id).values(broken=func.coalesce(Run.broken, broken))
            )
        _merge_seconds(connection, run_id, seconds or {})
        bump(connection, point=run_id)


def protocol_digests(stamp: Mapping[str, Any]) -> tuple[str, str]:
    """(digest of the stamp, digest of what makes numbers comparable): the second is empty without a text."""
    digest = _digest(stamp)
    if "digest" not in stamp:
        return digest, ""
    told = computed_as_stored(stamp)
    return digest, _digest({key: told[key] for key in _COMPARABLE if key in told})


def computed_as_stored(stamp: Mapping[str, Any]) -> Mapping[str, Any]:
    """The stamp, with the type of the computations where it is from before that was told."""
    return {"compute_dtype": stamp["model_dtype"], **stamp} if "model_dtype" in stamp else stamp


def _digest(stamp: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(stamp, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _keep_protocol(connection: Connection, stamp: Mapping[str, Any]) -> str:
    digest, comparable = protocol_digests(stamp)
    values = {
        "digest": digest,
        "comparable": comparable,
        "stamp": json.dumps(stamp, sort_keys=True, default=str),
    }
    upsert(connection, Protocol, values, ("digest",))
    return digest


def _merge_seconds(connection: Connection, run_id: str, seconds: Mapping[str, float]) -> None:
    if seconds:
        known = connection.execute(select(Run.seconds).where(Run.id == run_id)).scalar()
        merged = {**json.loads(known or "{}"), **{phase: float(value) for phase, value in seconds.items()}}
        connection.execute(update(Run).where(Run.id == run_id).values(seconds=json.dumps(merged)))
