"""What every write needs: the data version, upserts, values that all databases can keep."""

import math
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects import postgresql, sqlite

from store.tables import Counter, Run, Table


def bump(connection: Connection, *, point: str | None = None, question: bool = False) -> None:
    """Make the data version grow.

    With the id of a run whose point changes also the version of results; `question` also that of all that is
    asked of a model beside its runs.
    """
    # One after the other: PostgreSQL would lock them in any order, and two writers could wait for each other.
    for name in ("all", *(["results"] if point else []), *(["questions"] if question else [])):
        _next(connection, name)
    if point is not None:
        newest = select(Counter.value).where(Counter.name == "results").scalar_subquery()
        connection.execute(update(Run).where(Run.id == point).values(version=newest))


def next_ticket(connection: Connection) -> int:
    """A number never given before, not even to a run that was removed; it also says who came first."""
    return _next(connection, "tickets")


def insert_new(connection: Connection, table: type[Table], values: Mapping[str, Any]) -> bool:
    """Whether the row is new; one that is there, or that another writer makes just now, stays as it is."""
    statement = _insert(connection, table).values(**values).on_conflict_do_nothing()
    # Not the count of rows: PostgreSQL's driver does not tell it for such an insert.
    return connection.execute(statement.returning(*table.__table__.primary_key)).first() is not None


def upsert(
    connection: Connection, table: type[Table], values: Mapping[str, Any], key: tuple[str, ...]
) -> None:
    statement = _insert(connection, table).values(**values)
    rest = {name: statement.excluded[name] for name in values if name not in key}
    connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=rest))


def _next(connection: Connection, counter: str) -> int:
    statement = _insert(connection, Counter).values(name=counter, value=1)
    counted = statement.on_conflict_do_update(index_elements=["name"], set_={"value": Counter.value + 1})
    return int(connection.execute(counted.returning(Counter.value)).scalar_one())


def _insert(connection: Connection, table: type[Table]) -> Any:
    """The dialect's own insert, which knows what to do about a row that is there."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


def number(value: Any) -> Any:
    """Not-a-number becomes null on every database alike."""
    return None if isinstance(value, float) and math.isnan(value) else value


def clean(text: str | None) -> str | None:
    """PostgreSQL's text knows no NUL, and a model's output may hold one."""
    return text.replace("\x00", "") if text else text
