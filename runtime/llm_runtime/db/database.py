"""The one pool of connections, for Postgres and SQLite alike."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from llm_runtime import errors

log = logging.getLogger(__name__)

DEFAULT_URL = "sqlite:///llm-runtime.db"
NO_DATABASE = "none"
POOL_SIZE = 5
CONNECT_SECONDS = 5.0
STATEMENT_SECONDS = 10.0
DRIVERS = {"postgres": "postgresql+asyncpg", "postgresql": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}


class DatabaseAway(Exception):
    """The database does not answer now; what was asked of it has not happened, or may have."""


class Database:
    """Connections to one database. Whoever uses it handles `DatabaseAway`: no request may fail by it."""

    def __init__(self, url: str = "") -> None:
        """Raises `errors.ConfigInvalid` for an address that can't be one; connects when first used."""
        self._engine = _engine(url or DEFAULT_URL)
        self.postgres = self._engine.dialect.name == "postgresql"
        self.away = False
        """Whether the last attempt failed, for readiness and metrics."""

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at the end, rolled back by an exception. Raises `DatabaseAway`."""
        try:
            async with self._engine.begin() as connection:
                yield connection
        except (OperationalError, InterfaceError, PoolTimeout, OSError, TimeoutError) as error:
            self._note(away=True, why=error)
            raise DatabaseAway(str(error)) from error
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            self._note(away=True, why=error)
            raise DatabaseAway(str(error)) from error
        self._note(away=False)

    async def close(self) -> None:
        await self._engine.dispose()

    def _note(self, *, away: bool, why: Exception | None = None) -> None:
        if away and not self.away:
            log.error("The database does not answer: %s", why)
        elif self.away and not away:
            log.info("The database answers again")
        self.away = away


def _engine(url: str) -> AsyncEngine:
    try:
        address = make_url(url)
    except ArgumentError as error:
        raise errors.ConfigInvalid("the database's address is none: write postgresql://… or sqlite:///file") from error
    backend = address.drivername.partition("+")[0]
    if backend not in DRIVERS:
        raise errors.ConfigInvalid(f"{backend} is no database of ours: write postgresql://… or sqlite:///file")
    address = address.set(drivername=DRIVERS[backend])
    if backend == "sqlite":
        if address.database and address.database != ":memory:":
            Path(address.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_async_engine(address, connect_args={"timeout": STATEMENT_SECONDS})
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        return engine
    return create_async_engine(
        address,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=CONNECT_SECONDS,
        pool_pre_ping=True,
        connect_args={"timeout": CONNECT_SECONDS, "command_timeout": STATEMENT_SECONDS},
    )


def _prepare_sqlite(connection, _record) -> None:  # type: ignore[no-untyped-def]
    # WAL: the report of a month and the next flush don't wait for each other.
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()
