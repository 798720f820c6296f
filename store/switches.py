"""States that all processes share, such as a paused queue: on with something to say, or off."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete

from store.database import Database
from store.tables import Switch
from store.writes import bump, insert_new

PAUSED = "paused"


def turn_on(database: Database, name: str, value: Mapping[str, Any]) -> bool:
    """Whether it was off: what the first one said stays."""
    with database.write() as connection:
        new = insert_new(connection, Switch, {"name": name, "value": json.dumps(dict(value))})
        if new:
            bump(connection)
    return new


def turn_off(database: Database, name: str) -> bool:
    """Whether it was on."""
    with database.write() as connection:
        gone = connection.execute(delete(Switch).where(Switch.name == name)).rowcount
        bump(connection)
    return gone > 0
