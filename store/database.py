"""Open a database: SQLite or PostgreSQL by URL, its tables brought up to date on the way."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text

BUSY_SECONDS = 30
# Any number that no other program on the same server takes for its own advisory lock.
_STARTUP_LOCK = 7_312_009


class Database:
    """Short transactions on one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view of the tables."""
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """All or nothing; takes SQLite's write lock at once, as one taken late fails instead of waiting."""
        with self.engine.connect() as plain:
            connection = plain.execution_options(immediate=True)
            with connection.begin():
                yield connection

    @contextmanager
    def alone(self) -> Iterator[Connection]:
        """A write that no other process does at the same time: what a start-up must do once."""
        with self._turn(), self.write() as connection:
            yield connection

    @contextmanager
    def _turn(self) -> Iterator[None]:
        # SQLite's write lock is enough. On PostgreSQL no transaction may be open, not even one that waits
        # for its turn: the queue engine builds indexes, for which the server waits until all of them end.
        if self.engine.dialect.name != "postgresql":
            yield
            return
        with self.engine.connect() as plain:
            connection = plain.execution_options(isolation_level="AUTOCOMMIT")
            lock = {"lock": _STARTUP_LOCK}
            while not connection.execute(text("SELECT pg_try_advisory_lock(:lock)"), lock).scalar():
                time.sleep(0.1)
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:lock)"), lock)

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


def open_database(url: str, journal: str = "wal") -> Database:
    """The database behind a URL, made or migrated if need be; safe when several processes start at once."""
    address = make_url(url)
    if address.drivername in ("postgres", "postgresql"):
        address = address.set(drivername="postgresql+psycopg")
    sqlite = address.get_backend_name() == "sqlite"
    if sqlite and address.database and address.database != ":memory:":
        Path(address.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(address, pool_pre_ping=not sqlite)
    if sqlite:
        _prepare_sqlite(engine, journal)
    database = Database(engine)
    _upgrade(database)
    return database


def migrations() -> Config:
    """Alembic's settings for the folder beside this file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def _prepare_sqlite(engine: Engine, journal: str) -> None:
    @event.listens_for(engine, "connect")
    def _connect(connection: Any, record: Any) -> None:
        # The driver would begin transactions late and leave DDL outside them; `_begin` does it instead.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
        cursor.execute(f"PRAGMA journal_mode = {'DELETE' if journal == 'delete' else 'WAL'}")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _upgrade(database: Database) -> None:
    config = migrations()
    newest = ScriptDirectory.from_config(config).get_current_head()
    with database.read() as connection:
        if MigrationContext.configure(connection).get_current_revision() == newest:
            return
    with database.alone() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
