"""Migrations: upgrades a database to the newest revision, and inspects a database.

Migrations only add things, so replicas of the previous version keep working during a roll-out.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from llm_runtime.db.database import Database, DatabaseAway

# Alembic is imported where it is used: a server without a database needs none of it, and it takes
# as long to import as all of the HTTP side's own modules.
if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "migrations"
LOCK = 0x6C6C6D01
"""Number of the Postgres advisory lock for migrations."""
LOCK_POLL_SECONDS = 0.1
RETRY_SECONDS = 1.0
MIGRATION_SECONDS = 900.0
"""Timeout of a migration, and so the longest that other replicas wait.
An index on a large table takes minutes."""


@dataclass(frozen=True, slots=True)
class TableSize:
    """Size of one table with its indexes."""

    name: str
    rows: int
    bytes: int | None
    """None if the database can't tell."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """Revision and tables of a database."""

    place: str
    revision: str | None
    """None if no migration has run."""
    head: str
    """The revision that this program needs."""
    tables: tuple[TableSize, ...]

    @property
    def current(self) -> bool:
        return self.revision == self.head


async def upgrade(database: Database) -> None:
    """Upgrade an empty or older database to the head revision.
    Safe to call from several replicas at once.

    A newer database is not changed. Raises `DatabaseAway`.
    """
    if not database.postgres:  # SQLite's writers wait for each other anyway.
        async with database.begin_migration() as connection:
            await connection.run_sync(_upgrade)
        return
    patient = Database(database.url, statement_seconds=MIGRATION_SECONDS)
    # Both objects are the same database, so they share its state: an outage is logged once.
    patient.away = database.away
    try:
        async with _alone(patient) as connection:
            await connection.run_sync(_upgrade)
    finally:
        database.away = patient.away
        await patient.close()


class UpToDate:
    """A server's database: upgraded at the server's start or as soon as it answers,
    closed at the server's end."""

    def __init__(self, database: Database, *, retry_seconds: float = RETRY_SECONDS) -> None:
        self._database = database
        self._retry_seconds = retry_seconds
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            await upgrade(self._database)
        except DatabaseAway as away:
            log.error(
                "%s does not answer: the server starts without it (%s)", self._database.place, away
            )
            self._database.prepared = False
            self._task = asyncio.create_task(self._upgrade_later())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._database.close()

    async def _upgrade_later(self) -> None:
        while not self._database.prepared:
            await asyncio.sleep(self._retry_seconds)
            with suppress(DatabaseAway):
                await upgrade(self._database)
                self._database.prepared = True


async def inspect(database: Database) -> Inspection:
    """Revision, tables, rows and sizes. Reads every table once. Raises `DatabaseAway`."""
    async with database.read() as connection:
        revision = await connection.run_sync(_revision)
        names = await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())
        sizes = [await _size(connection, name) for name in sorted(names)]
    return Inspection(database.place, revision, head(), tuple(sizes))


async def outdated(database: Database) -> str:
    """Why this program can't read the tables yet; "" if it can. Raises `DatabaseAway`."""
    async with database.read() as connection:
        revision = await connection.run_sync(_revision)
    if revision is None:
        return "holds no tables of llm-runtime"
    # Migrations only add, so this program can read a newer database.
    return (
        f"is at revision {revision}, older than {head()}"
        if revision != head() and revision in _known()
        else ""
    )


def head() -> str:
    """The newest revision that this program knows."""
    return str(_scripts().get_current_head())


@asynccontextmanager
async def _alone(database: Database) -> AsyncIterator[AsyncConnection]:
    """A transaction that holds the lock of migrations until it ends."""
    deadline = asyncio.get_running_loop().time() + MIGRATION_SECONDS
    while True:
        async with database.begin() as connection:
            # Polled instead of waited for: a waiting statement would hit its timeout.
            if await connection.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(LOCK))):
                yield connection
                return
        if asyncio.get_running_loop().time() > deadline:
            raise DatabaseAway(
                f"another process has been migrating {database.place} for {MIGRATION_SECONDS:.0f} s"
            )
        await asyncio.sleep(LOCK_POLL_SECONDS)


def _upgrade(connection: Connection) -> None:
    from alembic import command

    config = _config()
    before = _revision(connection)
    if before is not None and before not in _known():
        log.warning(
            "The database is at revision %s, which is newer than this program's %s", before, head()
        )
        return
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    if before != head():
        log.info("The database went from revision %s to %s", before, head())


def _known() -> set[str]:
    return {script.revision for script in _scripts().walk_revisions()}


def _scripts() -> "ScriptDirectory":
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(_config())


def _config() -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _revision(connection: Connection) -> str | None:
    from alembic.runtime.migration import MigrationContext

    return MigrationContext.configure(connection).get_current_revision()


async def _size(connection: AsyncConnection, name: str) -> TableSize:
    table = sa.table(name)
    rows = await connection.scalar(sa.select(sa.func.count()).select_from(table))
    return TableSize(name, rows or 0, await _bytes(connection, name))


async def _bytes(connection: AsyncConnection, name: str) -> int | None:
    if connection.dialect.name == "postgresql":
        statement = sa.text("SELECT pg_total_relation_size(quote_ident(:name)::regclass)")
    else:
        compiled = await connection.scalar(
            sa.text("SELECT sqlite_compileoption_used('ENABLE_DBSTAT_VTAB')")
        )
        if not compiled:
            return None
        # `name` is a table or an index, `tbl_name` the table that it belongs to.
        statement = sa.text(
            "SELECT sum(pgsize) FROM dbstat JOIN sqlite_master USING (name) WHERE tbl_name = :name"
        )
    size = await connection.scalar(statement, {"name": name})
    return int(size or 0)
