"""Conversations of `/v1/chat`, by `session_id`, kept for some time after their last message.

The database stores them for all replicas and restarts. Updates use optimistic locking: each checks
the version that was read, so concurrent turns don't overwrite each other. While the database is
down, memory holds new messages and writes them afterwards.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from sys import getsizeof
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from llm_runtime.common.kept import Kept
from llm_runtime.contract import SessionsConfig
from llm_runtime.db.database import Database, DatabaseAway
from llm_runtime.db.tables import sessions as table

log = logging.getLogger(__name__)

Message = dict[str, Any]

MAX_TRIES = 20
SESSION_BYTES = 1 << 20
"""Largest size of a conversation. Above it, the oldest messages are dropped."""
ALL_BYTES = 256 << 20
"""Largest size of all conversations in memory.
Above it, the tenant with the largest share loses its oldest."""
MESSAGE_BYTES = 200
"""Memory of a message, without its text."""


@dataclass(slots=True)
class _Session:
    """What this replica knows of one conversation."""

    tenant: str
    messages: list[Message] = field(default_factory=list)
    """The messages that the database last had."""
    pending: list[Message] = field(default_factory=list)
    """Newer messages, which are not in the database yet."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


def _now() -> datetime:
    return datetime.now(UTC)


class Sessions:
    """All conversations. Its exit writes what is pending.
    `db.retention` deletes expired ones from the database."""

    def __init__(
        self,
        config: SessionsConfig,
        database: Database | None = None,
        now: Callable[[], datetime] = _now,
    ) -> None:
        self._ttl = timedelta(seconds=config.ttl_seconds)
        self._max_messages = config.max_messages
        self._database = database
        self._now = now
        self._known: Kept[_Session] = Kept(
            config.max_sessions, ALL_BYTES, config.ttl_seconds, clock=lambda: now().timestamp()
        )

    async def __aenter__(self) -> "Sessions":
        return self

    async def __aexit__(self, *_: object) -> None:
        for id_, session in list(self._known.items()):
            if session.pending:
                await self._bring(id_, session)

    async def history(self, tenant: str, session_id: str) -> list[Message]:
        """The messages so far, oldest first;
        empty for a new or expired conversation, or one of another tenant."""
        id_ = _id(tenant, session_id)
        session = self._known.get(id_) or _Session(tenant)
        async with session.lock:
            if session.pending:
                await self._bring(id_, session)
            elif self._database:
                session.messages = await self._read(id_, session.messages)
        return list(trimmed([*session.messages, *session.pending], self._max_messages))

    async def append(self, tenant: str, session_id: str, messages: Sequence[Message]) -> None:
        """Add a turn: the user's messages and the answer."""
        id_ = _id(tenant, session_id)
        session = self._known.get(id_) or _Session(tenant)
        session.pending += messages
        # Put again even if it is there, because the time to live counts from the last message.
        self._known.put(id_, tenant, session, size_of([*session.messages, *session.pending]))
        async with session.lock:
            await self._bring(id_, session)

    async def _bring(self, id_: str, session: _Session) -> None:
        """Write pending messages to the database. They stay pending while it is down."""
        session.pending = trimmed(session.pending, self._max_messages)
        if self._database is None:
            session.messages = trimmed([*session.messages, *session.pending], self._max_messages)
            session.pending = []
            return
        try:
            for _ in range(MAX_TRIES):
                adding = list(session.pending)
                if not adding:
                    return
                written = await self._write(self._database, id_, session.tenant, adding)
                if written is not None:
                    # Another turn may have added pending messages meanwhile.
                    session.messages = written
                    session.pending = session.pending[len(adding) :]
        except DatabaseAway:
            return
        log.warning(
            "Session update failed %d times because of concurrent updates; it waits for the next"
            " turn",
            MAX_TRIES,
        )

    async def _write(
        self, database: Database, id_: str, tenant: str, adding: Sequence[Message]
    ) -> list[Message] | None:
        """Try once to write. Returns the session's messages,
        or None if another replica wrote in between."""
        # Two transactions, because SQLite refuses to write in one whose read snapshot is outdated.
        async with database.read() as connection:
            version, before, expired = await _row(connection, id_, self._now())
        messages = trimmed([*([] if expired else before), *adding], self._max_messages)
        fresh = {
            "version": version + 1,
            "messages": messages,
            "expires_at": self._now() + self._ttl,
        }
        statement: Any
        if version:
            statement = (
                update(table).where(table.c.id == id_, table.c.version == version).values(**fresh)
            )
        else:
            insert: Any = (postgresql if database.postgres else sqlite).insert(table)
            statement = insert.values(id=id_, tenant=tenant[:64], **fresh).on_conflict_do_nothing()
        async with database.begin() as connection:
            return messages if (await connection.execute(statement)).rowcount else None

    async def _read(self, id_: str, known: list[Message]) -> list[Message]:
        assert self._database
        try:
            async with self._database.read() as connection:
                _, messages, expired = await _row(connection, id_, self._now())
                return [] if expired else messages
        except DatabaseAway:
            return known


def trimmed(messages: Sequence[Message], most: int) -> list[Message]:
    """The newest messages, at most `most` and `SESSION_BYTES`, from a user's on.
    A leading system message stays."""
    most = _that_fit(messages, most)
    if len(messages) <= most:
        return list(messages)
    front = list(messages[:1]) if messages[0].get("role") == "system" else []
    tail = list(messages[len(messages) - (most - len(front)) :])
    # An answer without its question is of no use.
    first = next((index for index, message in enumerate(tail) if message.get("role") == "user"), 0)
    return [*front, *tail[first:]]


def size_of(messages: Sequence[Message]) -> int:
    """Approximate memory of the messages, in bytes."""
    return sum(MESSAGE_BYTES + getsizeof(message["content"]) for message in messages)


def _that_fit(messages: Sequence[Message], most: int) -> int:
    left = SESSION_BYTES
    count = 0
    for message in messages[: -most - 1 : -1]:
        left -= size_of([message])
        if left < 0:
            break
        count += 1
    return count


async def _row(
    connection: AsyncConnection, id_: str, now: datetime
) -> tuple[int, list[Message], bool]:
    """(version, messages, whether it has expired); version 0 if there is no such session."""
    wanted = select(table.c.version, table.c.messages, table.c.expires_at).where(table.c.id == id_)
    row = (await connection.execute(wanted)).one_or_none()
    return (row.version, list(row.messages), row.expires_at <= now) if row else (0, [], False)


def _id(tenant: str, session_id: str) -> str:
    """The key of a tenant's session: the same `session_id` of another tenant is another session."""
    return hashlib.sha256(repr((tenant, session_id)).encode()).hexdigest()
