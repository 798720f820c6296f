"""Opening: migrations, several processes at once, what is set on a connection."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from store import measurements, runs
from store.database import Database, migrations, open_database
from store.tables import Table


def test_migrations_make_exactly_the_tables_of_the_models(database: Database) -> None:
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []


def test_every_migration_can_be_taken_back(database: Database) -> None:
    config = migrations()
    with database.write() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert inspect(database.engine).get_table_names() == ["alembic_version"]


def comparable(database: Database, target: Callable[[Config, str], None], revision: str) -> str:
    """What the one protocol of a database compares with, at a revision."""
    config = migrations()
    with database.write() as connection:
        config.attributes["connection"] = connection
        target(config, revision)
        return str(connection.execute(text("SELECT comparable FROM protocols")).scalar())


def test_numbers_stored_before_devices_were_told_apart_are_told_apart_too(database: Database) -> None:
    stamp = {"text": "t", "digest": "d", "window": 8, "device": "cpu"}
    asked = {"digest": "a" * 64, "name": "a", "recipe": "{}", "model": "tiny", "chain": "dense"}
    run_id = runs.create_run(database, **asked)[0]
    number = {"metric": "perplexity", "value": 2.0, "protocol": stamp}
    measurements.save_measurements(database, run_id, measurements=[number])
    old = comparable(database, command.downgrade, "0001")
    assert old == measurements.protocol_digests({"text": "t", "digest": "d", "window": 8})[1]
    new = comparable(database, command.upgrade, "head")
    assert new == measurements.protocol_digests(stamp)[1] != old


def test_numbers_stored_before_the_type_of_computations_was_told_compare_with_those_computed_as_stored(
    database: Database,
) -> None:
    before = {"text": "t", "digest": "d", "window": 8, "device": "cpu", "model_dtype": "bfloat16"}
    same, other = ({**before, "compute_dtype": dtype} for dtype in ("bfloat16", "float32"))
    told, as_stored, widened = (measurements.protocol_digests(stamp)[1] for stamp in (before, same, other))
    assert told == as_stored != widened
    run_id = runs.create_run(database, digest="a" * 64, name="a", recipe="{}", model="tiny", chain="dense")[0]
    number = {"metric": "perplexity", "value": 2.0, "protocol": before}
    measurements.save_measurements(database, run_id, measurements=[number])
    assert comparable(database, command.downgrade, "0004") != told
    assert comparable(database, command.upgrade, "head") == told


@pytest.mark.parametrize(("journal", "mode"), [("wal", "wal"), ("delete", "delete")])
def test_sqlite_is_set_up_for_several_processes(tmp_path: Path, journal: str, mode: str) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'deep' / 'r.sqlite'}", journal)
    with database.read() as connection:
        asked = ("journal_mode", "busy_timeout", "foreign_keys", "synchronous")
        found = [connection.execute(text(f"PRAGMA {name}")).scalar() for name in asked]
    assert found == [mode, 30_000, 1, 1]
    database.close()


def test_a_write_that_fails_leaves_nothing(database: Database) -> None:
    def half() -> None:
        with database.write() as connection:
            connection.execute(text("UPDATE counters SET value = 99"))
            raise KeyError("in the middle")

    with pytest.raises(KeyError):
        half()
    with database.read() as connection:
        assert connection.execute(text("SELECT max(value) FROM counters")).scalar() == 0


def test_several_processes_may_open_a_new_database_at_once(url: str) -> None:
    code = f"from store.database import open_database; open_database({url!r})"
    root = Path(__file__).parents[2]
    openers = [subprocess.Popen([sys.executable, "-c", code], cwd=root) for _ in range(4)]
    assert [opener.wait(60) for opener in openers] == [0, 0, 0, 0]
    database = open_database(url)
    with database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM counters")).scalar() == 2
    database.close()
