"""What is kept too long goes: rows of requests by age, cached completions and sessions by their own date."""

import asyncio
import logging
import random
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

import sqlalchemy as sa

from llm_runtime.db.database import Database, DatabaseAway, explain
from llm_runtime.db.tables import completion_cache, inference_log, sessions

log = logging.getLogger(__name__)

LOCK = 0x6C6C6D02
"""Of Postgres' advisory locks, the one for deletions: one replica is enough."""
BATCH_ROWS = 1000
PAUSE_SECONDS = 0.1
"""Between two batches, so that requests find the disk and the locks free."""
INTERVAL_SECONDS = 3600.0


class Retention:
    """Deletes in the background, from `async with` on. `retention_days` 0 keeps the rows of requests for ever."""

    def __init__(self, database: Database, retention_days: int, *, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._database, self._days, self._interval_seconds = database, retention_days, interval_seconds
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=1)

    async def _run(self) -> None:
        while True:
            # By chance, so that the replicas of a roll-out don't all come at once.
            await asyncio.sleep(self._interval_seconds * random.uniform(0.1, 1))
            try:
                await clean(self._database, self._days, datetime.now(UTC))
            except DatabaseAway:
                continue
            except Exception as fault:
                log.error("Old rows can't be deleted: %s", explain(fault))


async def clean(database: Database, retention_days: int, now: datetime) -> dict[str, int]:
    """Delete what is past its time, in batches; how many rows of which table went. Raises `DatabaseAway`."""
    deleted = {table.name: await _delete(database, table, table.c.expires_at < now) for table in EXPIRING}
    if retention_days:
        oldest = now - timedelta(days=retention_days)
        deleted[inference_log.name] = await _delete(database, inference_log, inference_log.c.at < oldest)
    if any(deleted.values()):
        log.info("Deleted old rows", extra={"deleted": deleted})
    return deleted


EXPIRING = (completion_cache, sessions)


async def _delete(database: Database, table: sa.Table, old: sa.ColumnElement[bool]) -> int:
    """One batch a transaction, until there is none, or another replica is at it."""
    total = 0
    batch = sa.select(table.c.id).where(old).limit(BATCH_ROWS).scalar_subquery()
    while True:
        async with database.begin() as connection:
            if database.postgres and not await connection.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(LOCK))):
                return total
            count = (await connection.execute(sa.delete(table).where(table.c.id.in_(batch)))).rowcount
        total += count
        if count < BATCH_ROWS:
            return total
        await asyncio.sleep(PAUSE_SECONDS)
