"""Shared limits in the database: tables `budgets` and `leases`.

A transaction locks the rows of its budgets (SELECT … FOR UPDATE), computes in Python with the
functions of `exchange`, and writes back. Budgets are always locked before leases and in the order
of their ids, so that two replicas can't deadlock. The leases are those of Gray and Cheriton (1989):
a replica renews them by its heartbeat, and those of a dead one expire, on the database's clock.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from uuid import uuid4

from sqlalchemy import Delete, bindparam, delete, func, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from llm_runtime.db.database import Database, DatabaseAway
from llm_runtime.db.tables import budgets, leases
from llm_runtime.limits import exchange
from llm_runtime.limits.broker import LEASE_SECONDS, Presence, StoreAway
from llm_runtime.limits.exchange import Ask, Grant
from llm_runtime.limits.leaky_bucket import LeakyBucket

PRESENCE = ""
"""Budget of the lease that a replica holds for as long as it lives."""
KEEP_MINUTE_SECONDS = 3600.0
KEEP_MONTH_SECONDS = 31 * 86400.0
CLEAN_ROWS = 1000

RAISE = (
    update(budgets)
    .where(budgets.c.id == bindparam("budget"))
    .values(used=bindparam("amount"), at=bindparam("now"), expires_at=bindparam("keep_until"))
)
GIVE_BACK = (
    update(budgets)
    .where(budgets.c.id == bindparam("budget"))
    .values(used=budgets.c.used - bindparam("amount"))
)


class SqlStore:
    """The `Store` in a database, as one replica sees it."""

    name = "The database"

    def __init__(self, database: Database, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self.lease_seconds = lease_seconds
        self._database = database
        self._replica = uuid4().hex
        self._insert = postgresql.insert if database.postgres else sqlite.insert

    async def exchange(self, asks: Sequence[Ask]) -> list[Grant]:
        try:
            while (grants := await self._try_exchange(asks)) is None:
                await self._create(asks)
        except DatabaseAway as error:
            raise StoreAway(str(error)) from error
        return grants

    async def heartbeat(self) -> Presence:
        try:
            async with self._database.begin() as connection:
                now = await self._now(connection)
                await self._renew(connection, now)
                await connection.execute(_expired(PRESENCE, now))
                seen = select(func.count()).where(leases.c.budget == PRESENCE)
                replicas = (await connection.execute(seen)).scalar_one()
            async with self._database.begin() as connection:
                now = await self._now(connection)
                await self._reclaim(connection, now)
                await self._clean(connection, now)
        except DatabaseAway as error:
            raise StoreAway(str(error)) from error
        return Presence(replicas, now)

    async def leave(self) -> None:
        """Remaining leases are left to expire:
        an exchange whose answer was lost may still change them."""
        mine = delete(leases).where(leases.c.replica == self._replica, leases.c.budget == PRESENCE)
        try:
            async with self._database.begin() as connection:
                await connection.execute(mine)
        except DatabaseAway as error:
            raise StoreAway(str(error)) from error

    async def _now(self, connection: AsyncConnection) -> float:
        """Time on the database's clock, which for SQLite is this machine's."""
        if self._database.postgres:
            answer = await connection.execute(
                text("SELECT extract(epoch FROM clock_timestamp())::float8")
            )
            return float(answer.scalar_one())
        return time.time()

    async def _try_exchange(self, asks: Sequence[Ask]) -> list[Grant] | None:
        """None when a row is missing: creating it here would lock rows out of order."""
        names = [ask.budget for ask in asks]
        async with self._database.begin() as connection:
            now = await self._now(connection)
            rows = (
                select(budgets)
                .where(budgets.c.id.in_(names))
                .order_by(budgets.c.id)
                .with_for_update()
            )
            known = {
                row.id: LeakyBucket(row.used, row.at) for row in await connection.execute(rows)
            }
            if len(known) < len(names):
                return None
            mine = select(leases.c.budget, leases.c.amount).where(
                leases.c.replica == self._replica, leases.c.budget.in_(names)
            )
            leased = {row.budget: row.amount for row in await connection.execute(mine)}
            grants = [
                _grant(known[ask.budget], leased.get(ask.budget, 0), ask, now) for ask in asks
            ]
            await connection.execute(
                RAISE, [_row(ask, grant, now) for ask, grant in zip(asks, grants, strict=True)]
            )
            kept = {ask.budget: grant.leased for ask, grant in zip(asks, grants, strict=True)}
            await self._keep(
                connection,
                {name: kept[name] for name in names if kept[name] or name in leased},
                now,
            )
        return grants

    async def _create(self, asks: Sequence[Ask]) -> None:
        rows = [
            {"id": ask.budget, "used": 0.0, "at": 0.0, "expires_at": _keep_until(ask, time.time())}
            for ask in asks
        ]
        async with self._database.begin() as connection:
            await connection.execute(self._insert(budgets).on_conflict_do_nothing(), rows)

    async def _keep(self, connection: AsyncConnection, leased: dict[str, int], now: float) -> None:
        kept = {name: amount for name, amount in leased.items() if amount}
        if kept:
            await self._upsert(connection, kept, now)
        if gone := sorted(set(leased) - set(kept)):
            mine = delete(leases).where(
                leases.c.replica == self._replica, leases.c.budget.in_(gone)
            )
            await connection.execute(mine)

    async def _upsert(
        self, connection: AsyncConnection, amounts: dict[str, int], now: float
    ) -> None:
        insert = self._insert(leases)
        change = {"amount": insert.excluded.amount, "expires_at": insert.excluded.expires_at}
        rows = [
            {
                "replica": self._replica,
                "budget": name,
                "amount": amount,
                "expires_at": now + self.lease_seconds,
            }
            for name, amount in amounts.items()
        ]
        await connection.execute(
            insert.on_conflict_do_update(index_elements=["replica", "budget"], set_=change), rows
        )

    async def _renew(self, connection: AsyncConnection, now: float) -> None:
        """Renew what has not expired; an expired lease may be on its way back already."""
        mine = leases.c.replica == self._replica
        renewed = (
            update(leases)
            .where(mine, leases.c.expires_at >= now)
            .values(expires_at=now + self.lease_seconds)
        )
        await connection.execute(renewed)
        await self._upsert(connection, {PRESENCE: 0}, now)

    async def _reclaim(self, connection: AsyncConnection, now: float) -> None:
        """Return the leases of dead replicas to their budgets."""
        dead = (
            select(leases.c.budget)
            .where(leases.c.expires_at < now, leases.c.budget != PRESENCE)
            .distinct()
        )
        if not (names := list((await connection.execute(dead)).scalars())):
            return
        locked = (
            select(budgets.c.id)
            .where(budgets.c.id.in_(names))
            .order_by(budgets.c.id)
            .with_for_update()
        )
        await connection.execute(locked)
        taken = delete(leases).where(leases.c.expires_at < now, leases.c.budget.in_(names))
        amounts = defaultdict[str, int](int)
        for row in await connection.execute(taken.returning(leases.c.budget, leases.c.amount)):
            amounts[row.budget] += row.amount
        if amounts:
            rows = [
                {"budget": name, "amount": float(amount)}
                for name, amount in sorted(amounts.items())
            ]
            await connection.execute(GIVE_BACK, rows)

    async def _clean(self, connection: AsyncConnection, now: float) -> None:
        """Delete budgets that have long been unused. Rows that are locked now are skipped."""
        old = (
            select(budgets.c.id)
            .where(budgets.c.expires_at < now)
            .order_by(budgets.c.id)
            .limit(CLEAN_ROWS)
        )
        names = list((await connection.execute(old.with_for_update(skip_locked=True))).scalars())
        if names:
            await connection.execute(delete(budgets).where(budgets.c.id.in_(names)))


def _grant(bucket: LeakyBucket, leased: int, ask: Ask, now: float) -> Grant:
    if ask.month is None:
        return exchange.minute(bucket, ask, now)
    return exchange.month(round(bucket.used), leased, ask)


def _row(ask: Ask, grant: Grant, now: float) -> dict[str, object]:
    return {
        "budget": ask.budget,
        "amount": float(grant.used),
        "now": now,
        "keep_until": _keep_until(ask, now),
    }


def _keep_until(ask: Ask, now: float) -> float:
    return ask.month.end + KEEP_MONTH_SECONDS if ask.month else now + KEEP_MINUTE_SECONDS


def _expired(budget: str, now: float) -> Delete:
    return delete(leases).where(leases.c.budget == budget, leases.c.expires_at < now)
