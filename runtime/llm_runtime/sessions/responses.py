"""Responses of `/v1/responses`, by their id, kept for some time after they were last continued.

As with conversations, the database stores them for all replicas and restarts. While it is down,
memory holds new ones, and they are written with the next one after it is back.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from llm_runtime.common.kept import Kept
from llm_runtime.contract import SessionsConfig
from llm_runtime.db.database import Database, DatabaseAway
from llm_runtime.db.tables import responses as table

log = logging.getLogger(__name__)

ALL_BYTES = 256 << 20
"""Largest size of all responses in memory.
Above it, the tenant with the largest share loses its oldest."""
RUNNING = "in_progress"
"""Status of a response until it has ended."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A response as it is kept."""

    response: dict[str, Any]
    """The response as clients see it."""
    input: list[dict[str, Any]]
    """Input items of this response alone, without those of the responses that it continues."""
    before: list[str]
    """Ids of the responses that it continues, oldest first."""
    run_until: float = 0.0
    """Seconds since 1970 at which it has ended in any case, if it runs in the background."""

    @property
    def id(self) -> str:
        return str(self.response["id"])

    @property
    def status(self) -> str:
        return str(self.response["status"])

    def document(self) -> dict[str, Any]:
        """The response as JSON for the database."""
        return {
            "response": self.response,
            "input": self.input,
            "before": self.before,
            "run_until": self.run_until,
        }


@dataclass(slots=True)
class _Kept:
    """A response in memory."""

    tenant: str
    stored: Stored
    size: int


def _now() -> datetime:
    return datetime.now(UTC)


class Responses:
    """All responses. Its exit writes what is pending.
    `db.retention` deletes expired ones from the database."""

    def __init__(
        self,
        config: SessionsConfig,
        database: Database | None = None,
        now: Callable[[], datetime] = _now,
    ) -> None:
        self._ttl = timedelta(seconds=config.ttl_seconds)
        self._database = database
        self._now = now
        self._known: Kept[_Kept] = Kept(
            config.max_sessions, ALL_BYTES, config.ttl_seconds, clock=lambda: now().timestamp()
        )
        self._pending: set[str] = set()
        """Keys of those that the database does not have yet, and of some that memory has lost."""

    async def __aenter__(self) -> "Responses":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._catch_up()

    async def find(self, tenant: str, ids: Collection[str]) -> dict[str, Stored]:
        """Find those of the responses `ids` that are there and are the tenant's, by id."""
        keys = {_key(tenant, id_): id_ for id_ in ids}
        found = {key: kept.stored for key in keys if (kept := self._known.get(key))}
        if self._database and keys:
            try:
                read = await self._read(self._database, keys)
            except DatabaseAway:
                pass
            else:
                # Another replica may have deleted or cancelled what memory still has.
                found = read | {key: found[key] for key in found.keys() & self._pending}
        return {keys[key]: self._ended(stored) for key, stored in found.items()}

    async def add(self, tenant: str, stored: Stored) -> None:
        """Keep a new response. Those that it continues begin their time to live anew."""
        for id_ in stored.before:
            if older := self._known.get(key := _key(tenant, id_)):
                self._known.put(key, tenant, older, older.size)
        self._keep(tenant, stored)
        await self._catch_up()
        if self._database and stored.before:
            await self._prolong(self._database, [_key(tenant, id_) for id_ in stored.before])

    async def end(self, tenant: str, stored: Stored) -> bool:
        """Replace a response that runs by what became of it.
        False if it has been cancelled or deleted meanwhile."""
        before = (await self.find(tenant, [stored.id])).get(stored.id)
        if before is None or before.status != RUNNING:
            return False
        self._keep(tenant, stored)
        await self._catch_up()
        return True

    async def delete(self, tenant: str, id_: str) -> bool:
        """Forget a response. False if there is none. Raises `DatabaseAway`."""
        key = _key(tenant, id_)
        there = id_ in await self.find(tenant, [id_])
        if self._database:
            async with self._database.begin() as connection:
                await connection.execute(delete(table).where(table.c.id == key))
        self._known.drop(key)
        return there

    def _keep(self, tenant: str, stored: Stored) -> None:
        key = _key(tenant, stored.id)
        size = len(json.dumps(stored.document()))
        self._known.put(key, tenant, _Kept(tenant, stored, size), size)
        if self._database:
            self._pending.add(key)

    def _ended(self, stored: Stored) -> Stored:
        """`stored`, or that it failed: the replica that made it may have ended."""
        if stored.status != RUNNING or self._now().timestamp() < stored.run_until:
            return stored
        error = {"code": "server_error", "message": "The server ended before the response did."}
        return replace(stored, response={**stored.response, "status": "failed", "error": error})

    async def _catch_up(self) -> None:
        """Write what is pending. It stays so while the database is down."""
        if self._database is None:
            return
        for key in list(self._pending):
            kept = self._known.get(key)
            try:
                if kept:
                    await self._write(self._database, key, kept)
            except DatabaseAway:
                return
            # A run may have ended while the database was told that it runs.
            if kept is self._known.get(key):
                self._pending.discard(key)

    async def _write(self, database: Database, key: str, kept: _Kept) -> None:
        insert: Any = (postgresql if database.postgres else sqlite).insert(table)
        fresh = {
            "status": kept.stored.status,
            "document": kept.stored.document(),
            "expires_at": self._now() + self._ttl,
        }
        statement = insert.values(id=key, tenant=kept.tenant[:64], **fresh).on_conflict_do_update(
            index_elements=[table.c.id], set_=fresh, where=table.c.status == RUNNING
        )
        async with database.begin() as connection:
            await connection.execute(statement)

    async def _read(self, database: Database, keys: Collection[str]) -> dict[str, Stored]:
        wanted = select(table.c.id, table.c.document).where(
            table.c.id.in_(keys), table.c.expires_at > self._now()
        )
        async with database.read() as connection:
            rows = (await connection.execute(wanted)).all()
        return {row.id: _stored(row.document) for row in rows}

    async def _prolong(self, database: Database, keys: Sequence[str]) -> None:
        # Only once in a while, because a long conversation has many.
        soon = self._now() + self._ttl / 2
        aging = (
            select(table.c.id)
            .where(table.c.id.in_(keys), table.c.expires_at < soon)
            .order_by(table.c.id)
            .with_for_update()
        )
        fresh = (
            update(table).where(table.c.id.in_(aging)).values(expires_at=self._now() + self._ttl)
        )
        try:
            async with database.begin() as connection:
                await connection.execute(fresh)
        except DatabaseAway:
            log.warning("The responses that one continues can't be kept for longer now")


def _stored(document: dict[str, Any]) -> Stored:
    return Stored(
        document["response"], document["input"], document["before"], document["run_until"]
    )


def _key(tenant: str, id_: str) -> str:
    """The key of a tenant's response: to another tenant the same id says nothing."""
    return hashlib.sha256(repr(("response", tenant, id_)).encode()).hexdigest()
