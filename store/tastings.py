"""Blind comparisons and the votes on them: a person votes once on a pair."""

import json
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, insert, select

from store.database import Database
from store.tables import Tasting, Vote
from store.writes import bump, clean, insert_new


def create(database: Database, tasting_id: str, title: str, user: str, settings: Mapping[str, Any]) -> None:
    """Keep a new tasting."""
    row = {
        "id": tasting_id, "title": clean(title), "user": user, "settings": json.dumps(dict(settings)),
        "created": time.time(),
    }  # fmt: skip
    with database.write() as connection:
        connection.execute(insert(Tasting).values(**row))
        bump(connection, question=True)


def one(database: Database, tasting_id: str) -> dict[str, Any] | None:
    """All columns of a tasting, with its settings read from JSON."""
    query = select(*Tasting.__table__.columns).where(Tasting.id == tasting_id)
    with database.read() as connection:
        row = connection.execute(query).mappings().first()
    return None if row is None else {**row, "settings": json.loads(row["settings"])}


def newest(database: Database, limit: int = 20) -> list[dict[str, Any]]:
    """The last tastings: id, title, user, created, and how many people gave how many votes."""
    voters, votes = func.count(Vote.voter.distinct()), func.count(Vote.voter)
    query = (
        select(
            Tasting.id, Tasting.title, Tasting.user, Tasting.created,
            voters.label("voters"), votes.label("votes"),
        )
        .outerjoin(Vote, Vote.tasting_id == Tasting.id)
        .group_by(Tasting.id, Tasting.title, Tasting.user, Tasting.created)
        .order_by(Tasting.created.desc(), Tasting.id)
        .limit(limit)
    )  # fmt: skip
    with database.read() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def vote(
    database: Database, tasting_id: str, voter: str, pair: int, left_id: str, right_id: str, choice: str
) -> bool:
    """Whether the vote counts: a person's second one on the same pair does not."""
    row = {
        "tasting_id": tasting_id, "voter": voter, "pair": pair, "left_id": left_id, "right_id": right_id,
        "choice": choice, "created": time.time(),
    }  # fmt: skip
    with database.write() as connection:
        new = insert_new(connection, Vote, row)
        if new:
            bump(connection, question=True)
        return new


def votes(database: Database, tasting_id: str, voter: str | None = None) -> list[dict[str, Any]]:
    """All votes of a tasting, or one person's, in the order in which they were given."""
    query = select(*Vote.__table__.columns).where(Vote.tasting_id == tasting_id)
    if voter is not None:
        query = query.where(Vote.voter == voter)
    with database.read() as connection:
        return [dict(row) for row in connection.execute(query.order_by(Vote.created, Vote.pair)).mappings()]
