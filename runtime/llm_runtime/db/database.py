"""The connection pool, for both Postgres and SQLite."""

import asyncio
import logging
import random
import re
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiosqlite
import asyncpg
from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DBAPIError,
    InterfaceError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from llm_runtime import errors

log = logging.getLogger(__name__)

DEFAULT_URL = "sqlite:///llm-runtime.db"
NO_DATABASE = "none"
POOL_SIZE = 5
CONNECT_SECONDS = 5.0
STATEMENT_SECONDS = 10.0
DRIVERS = {
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "sqlite": "sqlite+aiosqlite",
}
SQLITE_LOGIC_ERROR = 1
"""SQLITE_ERROR: the statement does not fit the schema.
All other operational errors are about the file or a lock."""
AWAY_STATES = ("08", "25006", "28", "3D", "40", "53", "55P03", "57", "58")
"""SQLSTATEs that mean the server, not the statement:
connections, rights, locks, disk, shutdown, a standby."""


class DatabaseAway(Exception):
    """The database does not answer. A write may or may not have happened."""


class Database:
    """Connections to one database.
    Callers must handle `DatabaseAway`: no request may fail because of it."""

    def __init__(self, url: str = "", *, statement_seconds: float = STATEMENT_SECONDS) -> None:
        """Raises `errors.ConfigInvalid` for an invalid address. Connects when first used."""
        address = _address(url or DEFAULT_URL)
        self.url = url or DEFAULT_URL
        self.place = _place(address)
        """The address for messages: without account, password and options."""
        self.postgres = address.get_backend_name() == "postgresql"
        self._engine = _postgres(address, statement_seconds) if self.postgres else _sqlite(address)
        self.away = False
        """Whether the last attempt failed, for readiness and metrics."""
        self.prepared = True
        """False until its tables exist: see `migrate.UpToDate`. Until then, it counts as away."""

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at the end, rolled back after an exception.
        Raises `DatabaseAway`.

        On SQLite it takes the write lock at its beginning. A transaction that begins as a reader
        could be refused when it first writes.
        """
        self._check_prepared()
        async with self._transaction(self._engine) as connection:
            yield connection

    @asynccontextmanager
    async def begin_migration(self) -> AsyncIterator[AsyncConnection]:
        """As `begin`, but also before the tables exist."""
        async with self._transaction(self._engine) as connection:
            yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A read-only transaction.
        On SQLite it neither waits for a writer nor blocks one. Otherwise as `begin`."""
        self._check_prepared()
        async with self._transaction(self._engine.execution_options(reads_only=True)) as connection:
            yield connection

    @asynccontextmanager
    async def _transaction(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        try:
            async with engine.begin() as connection:
                yield connection
        except Exception as error:
            if not _is_away(error):
                raise
            self._note(away=True, why=error)
            # Without the cause: a traceback would show statements, and addresses with passwords.
            raise DatabaseAway(explain(error)) from None
        self._note(away=False)

    async def close(self) -> None:
        await self._engine.dispose()

    def _check_prepared(self) -> None:
        if not self.prepared:
            raise DatabaseAway(f"the tables of {self.place} do not exist yet")

    def _note(self, *, away: bool, why: Exception | None = None) -> None:
        if away and not self.away:
            log.error(
                "The database %s does not answer: %s", self.place, explain(why) if why else ""
            )
        elif self.away and not away:
            log.info("The database %s answers again", self.place)
        self.away = away


def is_there(url: str) -> bool:
    """False for an SQLite file that does not exist: connecting would create it.
    Raises as `Database`."""
    address = _address(url or DEFAULT_URL)
    if address.get_backend_name() != "sqlite" or address.database in (None, "", ":memory:"):
        return True
    return Path(str(address.database)).exists()


def place_of(url: str) -> str:
    """The address for messages: without account, password and options. Raises as `Database`."""
    return _place(_address(url or DEFAULT_URL))


def explain(error: Exception) -> str:
    """The error in one line, without the statement, its parameters,
    or the values in Postgres' details."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    # The driver quotes values that it can't send:
    # "invalid input for query argument $1: 'the prompt' (…)".
    text = re.sub(r"(query argument \$\d+): .*", r"\1", str(cause), flags=re.DOTALL).splitlines()
    return (
        text[0]
        if text
        else "no answer in time"
        if isinstance(cause, TimeoutError)
        else type(cause).__name__
    )


def _is_away(error: Exception) -> bool:
    if not isinstance(error, DBAPIError):
        # asyncpg's own errors are not wrapped while it connects.
        return isinstance(
            error,
            OSError | TimeoutError | PoolTimeout | asyncpg.PostgresError | asyncpg.InterfaceError,
        )
    if error.connection_invalidated:
        return True
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return str(state).startswith(AWAY_STATES)
    if isinstance(error, InterfaceError):
        return True
    # Other subclasses of DatabaseError (DataError, IntegrityError, …) are about the row.
    of_the_file = isinstance(error, OperationalError) or type(error) is DatabaseError
    return of_the_file and getattr(error.orig, "sqlite_errorcode", None) not in (
        None,
        SQLITE_LOGIC_ERROR,
    )


def _address(url: str) -> URL:
    try:
        address = make_url(url)
        if "@" in (address.host or ""):
            # The password contains an @, so its end would be taken for the host name and logged.
            raise ValueError
    except (ArgumentError, ValueError):
        # Raised without the cause: the parser's message quotes the text,
        # which may be half of a password.
        message = (
            "the database's address can't be read: write postgresql://user:password@host/name or"
            " sqlite:///file"
        )
        raise errors.ConfigInvalid(f"{message}; in a password write @ as %40") from None
    backend = address.drivername.partition("+")[0]
    if backend not in DRIVERS:
        raise errors.ConfigInvalid(
            f"{backend} is no database of ours: write postgresql://… or sqlite:///file"
        )
    return address.set(drivername=DRIVERS[backend])


def _place(address: URL) -> str:
    backend = address.get_backend_name()
    if backend == "sqlite":
        return f"sqlite:///{address.database or ':memory:'}"
    port = f":{address.port}" if address.port else ""
    return f"{backend}://{address.host or 'localhost'}{port}/{address.database or ''}"


def _postgres(address: URL, statement_seconds: float) -> AsyncEngine:
    dsn = address.set(drivername="postgresql").render_as_string(hide_password=False)

    async def connect() -> "asyncpg.Connection[asyncpg.Record]":
        # asyncpg gets the complete address, because it supports libpq's options,
        # such as sslmode and sslrootcert.
        connection = await asyncpg.connect(
            dsn,
            timeout=CONNECT_SECONDS,
            command_timeout=statement_seconds,
            server_settings={"application_name": "llm-runtime"},
        )
        # A replica that hangs inside a transaction must not hold its locks until TCP notices.
        await connection.execute(
            f"SET idle_in_transaction_session_timeout = '{round(3 * statement_seconds)}s'"
        )
        return connection

    return create_async_engine(
        URL.create(address.drivername),
        async_creator=connect,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=CONNECT_SECONDS,
        pool_pre_ping=True,
        pool_recycle=1800,
        hide_parameters=True,
    )


def _sqlite(address: URL) -> AsyncEngine:
    in_memory = not address.database or address.database == ":memory:"
    if not in_memory:
        try:
            Path(str(address.database)).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise errors.ConfigInvalid(
                f"no folder for the database {address.database}: {error.strerror}"
            ) from error
    # An in-memory database lives as long as its connection, so there must be exactly one.
    sizes: dict[str, Any] = (
        {"pool_size": 1, "pool_recycle": -1} if in_memory else {"pool_size": POOL_SIZE}
    )
    engine = create_async_engine(
        address,
        connect_args={"timeout": STATEMENT_SECONDS, "async_creator_fn": _open_sqlite},
        poolclass=AsyncAdaptedQueuePool,
        max_overflow=0,
        pool_timeout=STATEMENT_SECONDS,
        hide_parameters=True,
        **sizes,
    )
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


class _SQLiteConnection(aiosqlite.Connection):
    """A connection that can be stopped twice.

    SQLAlchemy closes the connection of a cancelled task. If closing is cancelled too, SQLAlchemy
    stops the connection while closing still runs, and closing then stops it again. By then
    aiosqlite's thread has ended and never answers the second stop. Closing would wait for ever, and
    the process with it when it ends its loop.
    """

    _stopping: asyncio.Future[Any] | None = None
    _stopped = False

    def stop(self) -> asyncio.Future[Any] | None:
        if not self._stopped:
            self._stopped = True
            self._stopping = super().stop()
        return self._stopping


def _open_sqlite(database: str, **options: Any) -> aiosqlite.Connection:
    connection = _SQLiteConnection(
        partial(_connect_sqlite, database, **options), iter_chunk_size=64
    )
    connection._thread.daemon = True  # As SQLAlchemy does with connections that it creates itself.
    return connection


def _connect_sqlite(database: str, **options: Any) -> sqlite3.Connection:
    """Open the file and prepare the connection, in the connection's own thread."""
    connection: sqlite3.Connection = sqlite3.connect(database, **options)
    connection.isolation_level = (
        None  # Otherwise Python's driver begins transactions late, and commits before DDL.
    )
    _turn_wal_on(connection)
    for pragma in ("synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()
    return connection


def _turn_wal_on(connection: sqlite3.Connection) -> None:
    """Turn on the write-ahead log, so that a long report and the next flush don't block each other.

    Changing the mode needs an exclusive lock, and holds a shared one while it waits. A writer that
    is about to commit waits for that shared lock: both would wait until SQLite gives up. So each
    attempt fails at once and releases its lock, and is retried after a random pause.
    """
    deadline = time.monotonic() + STATEMENT_SECONDS
    connection.execute("PRAGMA busy_timeout=0").close()
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                # The file works without WAL, or its first statement says what is wrong with it.
                break
            time.sleep(random.uniform(0.001, 0.02))
    connection.execute(f"PRAGMA busy_timeout={STATEMENT_SECONDS * 1000:.0f}").close()


def _begin_sqlite(connection: Connection) -> None:
    reads_only = connection.get_execution_options().get("reads_only")
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")
