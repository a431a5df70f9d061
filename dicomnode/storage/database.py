"""Opening the database, and bringing its tables up to date.

SQLite file by default; PostgreSQL by URL when several machines share the work. The durable-workflow engine uses the same
database (`workflow.py`), so that one transaction can hold our row and its queue entry.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, make_url, text
from sqlalchemy.orm import Session

from dicomnode.errors import ConfigurationError, LedgerUnavailable

Clock = Callable[[], datetime]

BUSY_TIMEOUT_MS = 30_000
"""How long a writer waits for another process's write before it gives up."""
WAL_RETRY_S = 0.01
"""Between two tries to switch a new file to WAL."""
MIGRATION_LOCK = 0x64636D6E
"""Key of PostgreSQL's advisory lock that lets one process migrate at a time (the letters "dcmn")."""


def open_engine(url: str) -> Engine:
    """Open the database at `url`: `sqlite:////absolute/path.sqlite` or `postgresql://user@host/name`.

    Raises:
        ConfigurationError: the URL is not understood, of another kind of database, or its driver is not installed.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(parsed, pool_size=10, max_overflow=20)
        event.listen(engine, "connect", _configure_sqlite)
        return engine
    try:
        return create_engine(parsed, pool_size=10, max_overflow=20, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise ConfigurationError("PostgreSQL needs the extra: pip install 'dicomnode-bmd[postgresql]'") from error


def upgrade(url: str) -> None:
    """Create or migrate our tables to this version's schema. Safe to call at every start and from several processes at once.

    Raises:
        ConfigurationError: as `open_engine`.
        LedgerUnavailable: the database cannot be reached or written.
    """
    engine = open_engine(url)
    try:
        with _translated(), engine.connect() as connection:
            _lock_for_migration(connection)
            command.upgrade(_alembic(connection), "head")
            connection.commit()
    finally:
        engine.dispose()


def begin_write(connection: Connection) -> None:
    """Take SQLite's write lock at the start of a transaction that reads before it writes; PostgreSQL locks rows instead.

    Without it two processes could read the same state and both act on it (SQLite begins a transaction at the first write).
    """
    if connection.dialect.name == "sqlite":
        connection.execute(text("BEGIN IMMEDIATE"))


def utc_now() -> datetime:
    """Give the present time, aware, in UTC."""
    return datetime.now(UTC)


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """Open a session for reading.

    Raises:
        LedgerUnavailable: the database cannot be reached or read, or its file is damaged.
    """
    with _translated(), Session(engine) as session:
        yield session


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """Open a session whose transaction commits at the end of the block, or is rolled back by any exception.

    Raises:
        LedgerUnavailable: the database cannot be reached, is locked for too long, cannot write, or its file is damaged.
    """
    with _translated(), Session(engine) as session, session.begin():
        begin_write(session.connection())
        yield session


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (exc.IntegrityError, exc.DataError, exc.ProgrammingError):
        raise  # what we wrote is at fault, not the database
    except (exc.DatabaseError, exc.InterfaceError, exc.TimeoutError) as error:
        cause = getattr(error, "orig", None) or error
        raise LedgerUnavailable(f"database: {type(cause).__name__}: {str(cause).splitlines()[0]}") from error


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except exc.ArgumentError as error:
        raise ConfigurationError(
            f"database url {url!r} is not understood; write sqlite:////path or postgresql://..."
        ) from error
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and parsed.database and parsed.database != ":memory:":
        return parsed.set(drivername="sqlite")
    raise ConfigurationError(f"database {parsed.render_as_string()}: expected a SQLite file or PostgreSQL")


def _configure_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    """Durability and locking of each connection.

    WAL lets readers go on beside one writer; FULL makes a commit survive a power cut (NORMAL may lose the last ones in WAL).
    Source: sqlite.org/pragma.html#pragma_synchronous, sqlite.org/wal.html.
    """
    connection.isolation_level = "IMMEDIATE"
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    _write_ahead(cursor)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    """Switch the file to WAL, which of the processes that open a new file at once only one can.

    The switch raises a reader's lock to a writer's; where two do so, SQLite refuses one at once, whatever its busy timeout, for
    neither could go on by waiting (sqlite.org/c3ref/busy_handler.html). When asked again, the file is in WAL.
    """
    give_up = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # An extended result code holds the primary one in its lowest byte (sqlite.org/rescode.html).
            primary = error.sqlite_errorcode & 0xFF
            if primary != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(WAL_RETRY_S)
        else:
            return


def _lock_for_migration(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    else:
        begin_write(connection)


def _alembic(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
