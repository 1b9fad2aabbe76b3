"""Deletes old rows: those of requests by age; cached completions, sessions and responses by their
expiry date.

Of these three, a tenant's oldest are also deleted when it has too many.
"""

import asyncio
import logging
import random
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa

from llm_runtime.db.database import Database, DatabaseAway, explain
from llm_runtime.db.tables import completion_cache, inference_log, responses, sessions, usage_daily

log = logging.getLogger(__name__)

LOCK = 0x6C6C6D02
"""Number of the Postgres advisory lock for deletions: one replica at a time is enough."""
BATCH_ROWS = 1000
PAUSE_SECONDS = 0.1
"""Pause between two batches, so that requests can use the disk and get locks."""
INTERVAL_SECONDS = 3600.0
MOST_ROWS = 10_000
"""Most sessions, responses and cached completions of one tenant, each.
Beyond it, its oldest are deleted."""
ADDRESS = "ip:"
"""Prefix of the ids of callers without a key.
Such an id is an IP address, which is personal data."""


class Retention:
    """Deletes in the background, inside `async with`.
    With `retention_days` 0, rows of requests are kept for ever."""

    def __init__(
        self, database: Database, retention_days: int, *, interval_seconds: float = INTERVAL_SECONDS
    ) -> None:
        self._database = database
        self._days = retention_days
        self._interval_seconds = interval_seconds
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=1)

    async def _run(self) -> None:
        while True:
            # Random, so that replicas that started together don't delete at the same time.
            await asyncio.sleep(self._interval_seconds * random.uniform(0.1, 1))
            try:
                await clean(self._database, self._days, datetime.now(UTC))
            except DatabaseAway:
                continue
            except Exception as fault:
                log.error("Old rows can't be deleted: %s", explain(fault))


async def clean(database: Database, retention_days: int, now: datetime) -> dict[str, int]:
    """Delete expired rows in batches.
    Returns the number of deleted rows by table. Raises `DatabaseAway`."""
    deleted = {}
    for table in EXPIRING:
        deleted[table.name] = await _delete(database, table.c.id, table.c.expires_at < now)
        deleted[table.name] += await _delete(
            database, table.c.id, table.c.id.in_(_beyond_share(table))
        )
    if retention_days:
        oldest = now - timedelta(days=retention_days)
        deleted[inference_log.name] = await _delete(
            database, inference_log.c.id, inference_log.c.at < oldest
        )
        of_addresses = usage_daily.c.key_id.startswith(ADDRESS) & (
            usage_daily.c.day < oldest.date()
        )
        gone = await _delete(database, usage_daily.c.key_id, of_addresses)
        if gone:
            deleted[usage_daily.name] = gone
    if any(deleted.values()):
        log.info("Deleted old rows", extra={"deleted": deleted})
    return deleted


EXPIRING = (completion_cache, sessions, responses)


def _beyond_share(table: sa.Table) -> sa.Select[tuple[str]]:
    place = (
        sa.func.row_number()
        .over(partition_by=table.c.tenant, order_by=table.c.expires_at.desc())
        .label("place")
    )
    ranked = sa.select(table.c.id, place).subquery()
    return sa.select(ranked.c.id).where(ranked.c.place > MOST_ROWS)


async def _delete(database: Database, key: sa.Column[Any], old: sa.ColumnElement[bool]) -> int:
    """Delete the rows that are `old`, a batch in each transaction,
    until none is left or another replica deletes."""
    total = 0
    table = key.table
    batch = sa.select(key).where(old).limit(BATCH_ROWS).scalar_subquery()
    while True:
        async with database.begin() as connection:
            if database.postgres and not await connection.scalar(
                sa.select(sa.func.pg_try_advisory_xact_lock(LOCK))
            ):
                return total
            count = (await connection.execute(sa.delete(table).where(old, key.in_(batch)))).rowcount
        total += count
        if count < BATCH_ROWS:
            return total
        await asyncio.sleep(PAUSE_SECONDS)
