"""The keys and roles of the database, held in memory:
a request asks no database, and none may fail by it.

A copy is read at the start and then twice a second what has changed. No change gets lost. Each look
reaches `OVERLAP` into the past, against transactions that commit late and a database's clock that
is put back. Rows deleted by hand show in the number of keys. And everything is read again every ten
minutes.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType

from sqlalchemy.ext.asyncio import AsyncConnection

from llm_runtime import errors
from llm_runtime.auth import store as keystore
from llm_runtime.auth.callers import NO_ROLES, Roles, proven
from llm_runtime.contract import KeyRecord
from llm_runtime.db.database import Database, DatabaseAway

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
OVERLAP = timedelta(seconds=30)
"""Longer than any statement may run (`database.STATEMENT_SECONDS`),
and than clocks of replicas differ."""
READ_ALL_SECONDS = 600.0


class DatabaseKeys:
    """The keys of a stand-alone server, as `auth.Keys`.
    Enter it to have them read, and read again."""

    def __init__(
        self,
        database: Database,
        pepper: str | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without `pepper` a salt from the database takes its place: see `keystore.read_salt`."""
        self.store = keystore.KeyStore(database, pepper)
        self.roles = NO_ROLES
        self._database = database
        self._pepper = pepper
        self._clock = clock
        self._salt: str | None = None
        self._records: dict[str, KeyRecord] = {}
        self._read_at = datetime.max.replace(tzinfo=UTC)
        """By the database's clock, which also stamps the changes."""
        self._read_all_at = 0.0
        self._fault = ""
        self._reading = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "DatabaseKeys":
        """Raises `errors.ConfigInvalid` for a pepper that is not that of the keys.
        An absent database is no fault."""
        try:
            await self.poll()
        except DatabaseAway:
            log.error(
                "The API keys can't be read yet: requests with one get 503 until the database"
                " answers"
            )
        self._task = asyncio.create_task(self._keep_reading())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def find(self, key: str) -> KeyRecord | None:
        if self._salt is None:
            raise errors.ServiceUnavailable(
                "The API keys are not known yet: the database does not answer."
            )
        return proven(key, self._salt, self._records)

    def records(self) -> Collection[KeyRecord]:
        return self._records.values()

    def refresh(self) -> None:
        """Nothing to do: `poll` runs in the background."""

    async def poll(self) -> None:
        """Take over what has changed. Raises `DatabaseAway`, and what is known stays in force."""
        # Only the first look may have to write, a salt.
        transaction = self._database.begin() if self._salt is None else self._database.read()
        async with self._reading, transaction as connection:
            salt = self._salt or await keystore.read_salt(connection, self._pepper)
            now, count = await keystore.count_keys(connection)
            whole = self._clock() >= self._read_all_at
            records = await self._read(
                connection, None if whole else min(now, self._read_at) - OVERLAP
            )
            if not whole and len(records) != count:
                whole = True
                records = await self._read(connection, None)
            if (roles := Roles(await keystore.read_roles(connection))) != self.roles:
                self.roles = roles
        self._salt = salt
        self._records = records
        self._read_at = now
        if whole:
            self._read_all_at = self._clock() + READ_ALL_SECONDS

    async def _read(
        self, connection: AsyncConnection, since: datetime | None
    ) -> dict[str, KeyRecord]:
        """The keys in force. A record that has not changed stays the same object:
        whoever keeps it by identity may."""
        records = {} if since is None else self._records
        async for row in keystore.read_keys(connection, since):
            if row.revoked_at:
                records.pop(row.id, None)
                continue
            record = keystore.record_of(row)
            known = self._records.get(row.id)
            records[row.id] = known if known == record else record
        return records

    async def _keep_reading(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await self.poll()
            except DatabaseAway:
                continue  # `Database` has said so.
            except Exception as error:
                self._note(f"{type(error).__name__}: {error}")
            else:
                self._note("")

    def _note(self, fault: str) -> None:
        if fault and fault != self._fault:
            log.error(
                "The API keys in the database can't be read; those known stay in force: %s", fault
            )
        self._fault = fault
