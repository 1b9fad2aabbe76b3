"""Writes usage rows to the database in batches, behind the request."""

import asyncio
import logging
import random
from collections import deque
from contextlib import suppress
from math import ceil
from types import TracebackType
from typing import Self

from sqlalchemy.exc import OperationalError, ProgrammingError

from llm_runtime.contract import DatabaseConfig
from llm_runtime.db.database import Database, DatabaseAway, explain
from llm_runtime.metrics import Metrics
from llm_runtime.usage.rows import UsageRow
from llm_runtime.usage.store import Entry, prepare, store

log = logging.getLogger(__name__)

BATCH_ROWS = 500
FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 5.0
CLOSE_SECONDS = 10.0
"""Grace period in which an ending process tries to write its last rows."""
CANCEL_SECONDS = 1.0
CLOSING_RETRY_SECONDS = 0.25


class DatabaseUsage:
    """A `UsageLog` that writes to the database.
    Use it with `async with`: its exit writes the rest, in bounded time.

    A row waits at most `flush_seconds`, less if `BATCH_ROWS` are waiting. While the database is
    down, rows are kept up to `max_pending_rows`; then the oldest are dropped and counted. For the
    event loop's thread only.
    """

    def __init__(
        self,
        database: Database,
        config: DatabaseConfig,
        metrics: Metrics,
        *,
        close_seconds: float = CLOSE_SECONDS,
    ) -> None:
        self._database = database
        self._config = config
        self._metrics = metrics
        self._close_seconds = close_seconds
        self._rows: deque[UsageRow] = deque(maxlen=config.max_pending_rows)
        self._batch: list[Entry] = []
        """The rows being written. It does not change until all of them are stored or refused."""
        self._enough = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        metrics.usage_pending.set_function(lambda: self.pending)

    @property
    def pending(self) -> int:
        """Number of rows that may not be stored yet."""
        return len(self._rows) + len(self._batch)

    def write(self, row: UsageRow) -> None:
        rows = self._rows
        if self._closed or len(rows) == rows.maxlen:
            self._metrics.usage_dropped.inc()
            if self._closed:
                return
        rows.append(row)
        if len(rows) == BATCH_ROWS:
            self._enough.set()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._enough.set()
        if self._task:
            await asyncio.wait([self._task], timeout=self._close_seconds)
            self._task.cancel()
            await asyncio.wait([self._task], timeout=CANCEL_SECONDS)
        self._closed = True
        if lost := self.pending:
            self._metrics.usage_dropped.inc(lost)
            log.error(
                "%d usage rows are lost: %s did not take them before the end",
                lost,
                self._database.place,
            )

    async def _run(self) -> None:
        while self._rows or not self._closing.is_set():
            if len(self._rows) < BATCH_ROWS and not self._closing.is_set():
                await self._wait(self._enough, self._config.flush_seconds)
            self._enough.clear()
            # Rows that arrive meanwhile wait for the next round;
            # else a busy server would write many small batches.
            for _ in range(ceil(len(self._rows) / BATCH_ROWS)):
                await self._write_batch()

    async def _write_batch(self) -> None:
        """Write the oldest rows, retrying until they are stored or refused."""
        self._batch = self._take(min(BATCH_ROWS, len(self._rows)))
        retry_seconds = FIRST_RETRY_SECONDS
        while self._batch:
            try:
                with self._metrics.usage_flush.time():
                    refused = await self._store(self._batch)
            except DatabaseAway:
                await self._pause(retry_seconds)
            except (OperationalError, ProgrammingError) as fault:
                if retry_seconds == FIRST_RETRY_SECONDS:
                    log.error(
                        "No usage can be written: %s; has `llm-runtime db upgrade` run?",
                        explain(fault),
                    )
                await self._pause(retry_seconds)
            else:
                self._metrics.usage_written.inc(len(self._batch) - refused)
                self._metrics.usage_dropped.inc(refused)
                self._batch = []
            retry_seconds = min(2 * retry_seconds, LAST_RETRY_SECONDS)

    def _take(self, count: int) -> list[Entry]:
        entries = []
        for row in [self._rows.popleft() for _ in range(count)]:
            try:
                entries.append(prepare(row, store_prompts=self._config.store_prompts))
            except Exception as fault:
                self._metrics.usage_dropped.inc()
                log.error("A usage row can't be stored: %s", type(fault).__name__)
        return entries

    async def _store(self, entries: list[Entry]) -> int:
        """Write `entries`, and return how many were refused.

        A bad row must not block the others,
        so a refused batch is halved until the bad row is alone.
        """
        try:
            await store(self._database, entries)
        except (DatabaseAway, OperationalError, ProgrammingError):
            raise  # No row is to blame.
        except Exception as fault:
            if len(entries) == 1:
                log.error("The database refuses a usage row: %s", explain(fault))
                return 1
            middle = len(entries) // 2
            return await self._store(entries[:middle]) + await self._store(entries[middle:])
        return 0

    async def _pause(self, seconds: float) -> None:
        """Wait before a retry, with jitter, so that not all replicas retry at the same moment."""
        seconds *= random.uniform(0.5, 1.0)
        if self._closing.is_set():
            await asyncio.sleep(min(seconds, CLOSING_RETRY_SECONDS))
        else:
            await self._wait(self._closing, seconds)

    @staticmethod
    async def _wait(event: asyncio.Event, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
