"""Keys and roles in the database: issued, listed, revoked, rotated.
Of a key only its digest is kept.

Every change is stamped with the database's own clock, whoever makes it:
replicas look for what is new by these stamps.
"""

import logging
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from string import ascii_letters, ascii_lowercase, digits
from typing import Any

from sqlalchemy import Row, Select, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from llm_runtime import errors
from llm_runtime.contract import (
    ENV_KEY_PEPPER,
    KEY_SECRET_LENGTH,
    KeyRecord,
    Limits,
    Tier,
    format_key,
    hash_key,
)
from llm_runtime.db.database import Database
from llm_runtime.db.tables import Moment, api_keys, roles, settings

log = logging.getLogger(__name__)

ID_LENGTH = 12
SALT = "key_salt"
PEPPERED = "pepper:"
"""Stored in place of the salt where the digests were made with a pepper of the environment; a trace
of the pepper follows."""
TRACE_DIGITS = 8
BATCH_ROWS = 500
NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class NewKey:
    """What a key shall be."""

    name: str
    owner: str = ""
    role: str = ""
    """Name of its tier; "" is the default one."""
    limits: Limits = NO_LIMITS
    adapters: tuple[str, ...] = ()
    admin: bool = False
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Issued:
    """A key that has just been made: the only time that `key` is seen."""

    key: str
    id: str
    wish: NewKey


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key as the database has it."""

    record: KeyRecord
    created_at: datetime
    updated_at: datetime
    revoked_at: datetime | None
    replaced_by: str | None


class KeyStore:
    """Changes of keys and roles. Every method raises `DatabaseAway`;
    nothing has been changed then, or all of it."""

    def __init__(
        self,
        database: Database,
        pepper: str | None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._pepper = pepper
        self._clock = clock

    async def create(self, wish: NewKey) -> Issued:
        """Make a key."""
        async with self._database.begin() as connection:
            return await self._insert(connection, wish)

    async def stored(self) -> list[StoredKey]:
        """All keys, the oldest first, revoked ones too."""
        async with self._database.read() as connection:
            found = await connection.execute(
                select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id)
            )
            return [_stored(row) for row in found]

    async def revoke(self, key_id: str) -> None:
        """End a key. Raises `errors.NotFound` if there is none of this id that is in force."""
        change = update(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
        async with self._database.begin() as connection:
            done = await connection.execute(
                change.values(revoked_at=func.now(), updated_at=func.now())
            )
        if not done.rowcount:
            raise errors.NotFound(
                f"There is no key with the id {key_id!r} that could be revoked; see `keys list`."
            )

    async def rotate(self, key_id: str, overlap: timedelta) -> Issued:
        """A new key like this one; the old one ends after `overlap`.

        A key with an end gets a successor of the same lifetime. Raises `errors.NotFound` if there
        is no such key, or if it was revoked or rotated before.
        """
        live = (
            api_keys.c.revoked_at.is_(None)
            & api_keys.c.replaced_by.is_(None)
            & (api_keys.c.id == key_id)
        )
        now = self._clock()
        async with self._database.begin() as connection:
            row = (
                await connection.execute(select(api_keys).where(live).with_for_update())
            ).one_or_none()
            if row is None:
                raise errors.NotFound(
                    f"There is no key with the id {key_id!r} that could be rotated; see `keys"
                    " list`."
                )
            issued = await self._insert(connection, _successor(row, now))
            end = min(row.expires_at or now + overlap, now + overlap)
            change = update(api_keys).where(live)
            values = {"replaced_by": issued.id, "expires_at": end, "updated_at": func.now()}
            if not (await connection.execute(change.values(values))).rowcount:
                # SQLite has no row locks: another process was faster.
                # What was inserted goes with the transaction.
                raise errors.NotFound(
                    f"The key {key_id!r} has just been changed by somebody else; see `keys list`."
                )
        return issued

    async def roles(self) -> dict[str, Tier]:
        """All roles."""
        async with self._database.read() as connection:
            return await read_roles(connection)

    async def set_role(self, tier: Tier) -> None:
        """Make or replace a role."""
        values = {**tier.model_dump(), "updated_at": func.now()}
        async with self._database.begin() as connection:
            insert = _insert_into(connection, roles).values(values)
            await connection.execute(
                insert.on_conflict_do_update(index_elements=["name"], set_=values)
            )

    async def remove_role(self, name: str) -> None:
        """Forget a role; its keys get the configured tier of that name, or the default one."""
        async with self._database.begin() as connection:
            done = await connection.execute(roles.delete().where(roles.c.name == name))
        if not done.rowcount:
            raise errors.NotFound(f"There is no role {name!r}; see `roles list`.")

    async def _insert(self, connection: AsyncConnection, wish: NewKey) -> Issued:
        salt = await read_salt(connection, self._pepper)
        key_id = _random(ID_LENGTH, ascii_lowercase + digits)
        key = format_key(key_id, _random(KEY_SECRET_LENGTH, ascii_letters + digits))
        await connection.execute(
            api_keys.insert().values(
                id=key_id,
                digest=hash_key(key, salt),
                name=wish.name,
                owner=wish.owner,
                role=wish.role,
                limits=wish.limits.model_dump(exclude_none=True),
                adapters=list(wish.adapters),
                admin=wish.admin,
                expires_at=wish.expires_at,
                created_at=func.now(),
                updated_at=func.now(),
            )
        )
        log.info("Made the API key %s", key_id)
        return Issued(key, key_id, wish)


async def read_salt(connection: AsyncConnection, pepper: str | None) -> str:
    """The secret of the digests: the pepper,
    or a salt that the first server has put into the database.

    Raises `errors.ConfigInvalid` if there are keys that were made with something else:
    they would open nothing.
    """
    fresh = (
        PEPPERED + hash_key(PEPPERED, pepper)[:TRACE_DIGITS] if pepper else secrets.token_hex(32)
    )
    # The insert comes first: of replicas that start together the second waits here for the first's
    # commit.
    await connection.execute(
        _insert_into(connection, settings).values(name=SALT, value=fresh).on_conflict_do_nothing()
    )
    kept: str = (
        await connection.execute(select(settings.c.value).where(settings.c.name == SALT))
    ).scalar_one()
    if not (kept == fresh if pepper else not kept.startswith(PEPPERED)):
        if (await count_keys(connection))[1]:
            raise errors.ConfigInvalid(_other_pepper(pepper, kept))
        await connection.execute(
            update(settings).where(settings.c.name == SALT).values(value=fresh)
        )
        kept = fresh
    return pepper or kept


async def read_roles(connection: AsyncConnection) -> dict[str, Tier]:
    """All roles, as tiers."""
    found = await connection.execute(
        select(*(roles.c[name] for name in Tier.model_fields)).order_by(roles.c.name)
    )
    return {row.name: Tier.model_validate(dict(row._mapping)) for row in found}


async def count_keys(connection: AsyncConnection) -> tuple[datetime, int]:
    """The time of the database's clock, and the number of keys that are not revoked."""
    statement = select(func.now(type_=Moment()), func.count()).where(
        api_keys.c.revoked_at.is_(None)
    )
    now, count = (await connection.execute(statement)).one()
    return now, count


async def read_keys(connection: AsyncConnection, since: datetime | None) -> AsyncIterator[Row[Any]]:
    """Rows of all keys in force, or of all that have changed since then, revoked ones too. In
    pieces: a long list must not hold up who else runs on this thread."""
    statement: Select[Any] = select(api_keys)
    changed = api_keys.c.revoked_at.is_(None) if since is None else api_keys.c.updated_at >= since
    async for rows in (await connection.stream(statement.where(changed))).partitions(BATCH_ROWS):
        for row in rows:
            yield row


def record_of(row: Row[Any]) -> KeyRecord:
    """A row as the rest of the program knows keys.
    One that is not valid is refused rather than let in unlimited."""
    try:
        return KeyRecord.model_validate(_fields(row))
    except ValueError:
        log.error(
            "The API key %s is not valid in the database (limits or adapters); it is refused",
            row.id,
        )
        return KeyRecord(id=row.id, digest=row.digest, name=row.name, suspended=True)


def _fields(row: Row[Any]) -> Mapping[str, Any]:
    return {
        "id": row.id,
        "digest": row.digest,
        "name": row.name,
        "owner": row.owner,
        "expires_at": row.expires_at,
        "tier": row.role,
        "limits": row.limits,
        "adapters": row.adapters,
        "admin": row.admin,
    }


def _stored(row: Row[Any]) -> StoredKey:
    return StoredKey(
        record_of(row), row.created_at, row.updated_at, row.revoked_at, row.replaced_by
    )


def _successor(row: Row[Any], now: datetime) -> NewKey:
    record = record_of(row)
    wish = NewKey(
        record.name, record.owner, record.tier, record.limits, record.adapters, record.admin
    )
    return (
        replace(wish, expires_at=now + (row.expires_at - row.created_at))
        if row.expires_at
        else wish
    )


def _other_pepper(pepper: str | None, kept: str) -> str:
    if not pepper:
        return f"the keys in the database were made with a pepper: set {ENV_KEY_PEPPER} to it"
    if kept.startswith(PEPPERED):
        return (
            f"the keys in the database were made with another {ENV_KEY_PEPPER}: set that one, or"
            " revoke them all first"
        )
    return (
        f"the keys in the database were made without {ENV_KEY_PEPPER}: unset it, or revoke them all"
        " first"
    )


def _insert_into(connection: AsyncConnection, table: Any) -> Any:
    # Both know ON CONFLICT, in the same words, but SQLAlchemy has no common name for it.
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


def _random(length: int, alphabet: str) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))
