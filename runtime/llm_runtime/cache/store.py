"""The second level of the completion cache, in the database, for other replicas and after restarts.

While the database is down, every lookup is a miss.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from llm_runtime.cache.answer import Answer, from_json, to_json
from llm_runtime.db.database import Database, DatabaseAway
from llm_runtime.db.tables import completion_cache as table

log = logging.getLogger(__name__)

LOOKUP_SECONDS = 0.25
"""Timeout of a lookup. A model often needs no longer for its first token."""
RETRY_SECONDS = 5.0
"""Pause after a failure before the database is asked again."""
BATCH_SECONDS = 0.2
BATCH = 100
MAX_PENDING = 1000
"""Most answers that wait to be written. Beyond it, the oldest are dropped."""


def _now() -> datetime:
    return datetime.now(UTC)


class AnswerStore:
    """Answers in the database.
    Use it as a context manager: it writes in the background, and the rest at its exit."""

    def __init__(
        self, database: Database, ttl_seconds: int, now: Callable[[], datetime] = _now
    ) -> None:
        self._database = database
        self._ttl = timedelta(seconds=ttl_seconds)
        self._now = now
        self._pending: dict[str, dict[str, Any]] = {}
        self._wake = asyncio.Event()
        self._not_before = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "AnswerStore":
        self._task = asyncio.create_task(self._write_behind())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with suppress(DatabaseAway):
            while self._pending:
                await self._write()

    async def get(self, id_: str) -> Answer | None:
        """A cached answer, None without one. Never raises if the database fails."""
        if time.monotonic() < self._not_before:
            return None
        wanted = select(table.c.answer).where(table.c.id == id_, table.c.expires_at > self._now())
        try:
            async with asyncio.timeout(LOOKUP_SECONDS), self._database.read() as connection:
                stored = (await connection.execute(wanted)).scalar_one_or_none()
            return from_json(stored) if stored else None
        except (DatabaseAway, TimeoutError):
            self._not_before = time.monotonic() + RETRY_SECONDS
        except (LookupError, TypeError, ValueError):
            log.warning(
                "An answer in the database was written by another version; it is computed again"
            )
        return None

    def put(self, id_: str, tenant: str, model: str, answer: Answer) -> None:
        """Queue an answer to be written soon."""
        while len(self._pending) >= MAX_PENDING:
            del self._pending[next(iter(self._pending))]
        expires_at = self._now() + self._ttl
        row = {"id": id_, "tenant": tenant[:64], "model": model[:200], "expires_at": expires_at}
        self._pending[id_] = {**row, "answer": to_json(answer)}
        self._wake.set()

    async def _write_behind(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(BATCH_SECONDS)
            self._wake.clear()
            try:
                while self._pending:
                    await self._write()
            except DatabaseAway:
                self._wake.set()
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:
                log.exception("Answers could not be written; they are left out of the database")

    async def _write(self) -> None:
        batch = [self._pending[id_] for id_ in list(self._pending)[:BATCH]]
        insert: Any = (postgresql if self._database.postgres else sqlite).insert(table)
        fresh = {name: insert.excluded[name] for name in ("answer", "expires_at")}
        try:
            # Sorted, so that replicas that write the same rows lock them in the same order and
            # can't deadlock.
            rows = sorted(batch, key=lambda row: str(row["id"]))
            async with self._database.begin() as connection:
                await connection.execute(
                    insert.on_conflict_do_update(index_elements=["id"], set_=fresh), rows
                )
        except DatabaseAway:
            raise
        except Exception:
            self._forget(batch)
            raise
        self._forget(batch)

    def _forget(self, batch: list[dict[str, Any]]) -> None:
        for row in batch:
            if self._pending.get(row["id"]) is row:
                del self._pending[row["id"]]
