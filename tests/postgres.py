"""Fresh databases on the PostgreSQL server that PARETOSCOPE_TEST_POSTGRES names; without it, a skip."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from sqlalchemy import make_url

SERVER = os.environ.get("PARETOSCOPE_TEST_POSTGRES", "")
# Nobody needs a server to work on the project; `.ci/run` starts one, so that these never stay unrun.
needs_server = pytest.mark.skipif(not SERVER, reason="PARETOSCOPE_TEST_POSTGRES names no server")


@contextmanager
def fresh_url() -> Iterator[str]:
    """The URL of a new, empty database, as a user would write it; dropped afterwards."""
    name = f"paretoscope_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(SERVER, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        yield make_url(SERVER).set(database=name).render_as_string(hide_password=False)
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")
