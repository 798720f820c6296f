"""A fresh database, and runs to put in it."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from store import results, runs
from store.database import Database, open_database
from tests.postgres import fresh_url

WORKER = "worker"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database that does not exist yet or is empty, on each kind of server."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'results.sqlite'}"
    else:
        with fresh_url() as address:
            yield address


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = open_database(url)
    yield database
    database.close()


def ticket(database: Database, run_id: str) -> int:
    """The current ticket of a run."""
    row = results.run(database, run_id)
    assert row is not None
    return int(row["ticket"])


@pytest.fixture
def add(database: Database) -> Callable[..., str]:
    """Queue a run with some fields of its own; its id."""
    numbers = count(1)

    def run(**fields: object) -> str:
        number = next(numbers)
        told = {
            **{"digest": f"{number:012d}".ljust(64, "0"), "name": f"run {number}", "recipe": "{}"},
            **{"model": "tiny", "chain": "dense", **fields},
        }
        return runs.create_run(database, **told)[0]

    return run


@pytest.fixture
def start(database: Database, add: Callable[..., str]) -> Callable[..., str]:
    """A run that works already."""

    def run(**fields: object) -> str:
        run_id = add(**fields)
        assert runs.start_run(database, run_id, ticket(database, run_id), WORKER)
        return run_id

    return run
