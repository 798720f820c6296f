"""States that all processes share, such as a paused queue: on with something to say, or off."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, insert
from sqlalchemy.exc import IntegrityError

from store.database import Database
from store.tables import Switch
from store.writes import bump

PAUSED = "paused"


def turn_on(database: Database, name: str, value: Mapping[str, Any]) -> bool:
    """Whether it was off: what the first one said stays."""
    try:
        with database.write() as connection:
            connection.execute(insert(Switch).values(name=name, value=json.dumps(dict(value))))
            bump(connection)
    except IntegrityError:
        return False
    return True


def turn_off(database: Database, name: str) -> bool:
    """Whether it was on."""
    with database.write() as connection:
        gone = connection.execute(delete(Switch).where(Switch.name == name)).rowcount
        bump(connection)
    return gone > 0
