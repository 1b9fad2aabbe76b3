"""Limits that several replicas share through a database."""

import asyncio
import time
from collections.abc import Sequence

import pytest
from sqlalchemy import select, update

from llm_runtime import errors
from llm_runtime.contract import Tier
from llm_runtime.db.database import Database
from llm_runtime.db.tables import budgets, leases
from llm_runtime.limits import Limiter
from llm_runtime.limits.exchange import Ask, Grant
from llm_runtime.limits.month import month_of
from llm_runtime.limits.shared import SqlStore
from llm_runtime.request import Caller


class Counted(SqlStore):
    """Knows how often it was asked."""

    asked = 0

    async def exchange(self, asks: Sequence[Ask]) -> list[Grant]:
        self.asked += 1
        return await super().exchange(asks)


def caller(name: str = "key", **limits: int) -> Caller:
    return Caller(
        name, name, Tier.model_validate({"name": "gold", "max_concurrent": None, **limits})
    )


def replica(database: Database) -> Limiter:
    store = SqlStore(database)
    return Limiter(minutes=store, months=store)


def month_name() -> str:
    return month_of(time.time()).name


async def used(database: Database) -> dict[str, float]:
    async with database.begin() as connection:
        return {
            row.id: row.used
            for row in await connection.execute(select(budgets.c.id, budgets.c.used))
        }


async def leased(database: Database) -> int:
    async with database.begin() as connection:
        return sum((await connection.execute(select(leases.c.amount))).scalars())


async def test_a_months_use_survives_a_restart(database: Database) -> None:
    who = caller(requests_per_month=10, tokens_per_month=1000)
    for _ in range(2):
        async with replica(database) as limits:
            for _ in range(4):
                (await limits.admit(who, 100)).settle(50)
    async with replica(database) as limits:
        await limits.admit(who, 1)
        standing = limits.standing(who)
        assert standing.requests_per_month
        assert standing.tokens_per_month
        assert standing.requests_per_month.remaining == 1
        assert standing.tokens_per_month.remaining == 1000 - 400 - 1


async def test_whoever_was_never_here_can_ask_how_it_stands_with_the_others(
    database: Database,
) -> None:
    who = caller(tokens_per_month=1000, requests_per_minute=60)
    async with replica(database) as first, replica(database) as second:
        (await first.admit(who, 100)).settle(100)
        standing = await second.ask_standing(who)
        assert standing.tokens_per_month
        assert standing.requests_per_minute
        held = (
            standing.tokens_per_month.remaining
            + (await used(database))[f"key/tokens_per_month/{month_name()}"]
        )
        assert held == 1000
        assert standing.requests_per_minute.remaining < 60
        assert second.remembered == 0
    async with replica(database) as third:
        assert (await third.ask_standing(who)).tokens_per_month.remaining == 900  # type: ignore[union-attr]


@pytest.mark.timeout(20)
async def test_two_replicas_use_up_a_months_quota_to_the_last_token_and_not_beyond(
    database: Database,
) -> None:
    who = caller(tokens_per_month=20_000)
    totals = [0, 0]
    last = time.monotonic()
    stores = SqlStore(database), SqlStore(database)
    # What is given back when idle is given back four times as soon.
    limiters = [
        Limiter(minutes=store, months=store, clock=lambda: time.monotonic() * 4) for store in stores
    ]

    async def ask(number: int) -> None:
        nonlocal last
        while time.monotonic() < last + 1.6:
            try:
                (await limiters[number].admit(who, 10)).settle(10)
            except errors.QuotaExceeded:
                await asyncio.sleep(0.05)
            else:
                totals[number] += 10
                last = time.monotonic()
                await asyncio.sleep(0.001)

    async with limiters[0], limiters[1]:
        await asyncio.gather(*(ask(number) for number in (0, 1) for _ in range(10)))
    assert sum(totals) == 20_000
    assert min(totals) > 0


async def test_fifty_parallel_calls_on_two_replicas_do_not_overshoot(database: Database) -> None:
    who = caller(tokens_per_minute=100, requests_per_month=1000)
    async with replica(database) as first, replica(database) as second:
        calls = [limits.admit(who, 20) for _ in range(25) for limits in (first, second)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(not isinstance(answer, Exception) for answer in answers) == 5
    assert all(
        isinstance(answer, errors.RateLimited)
        for answer in answers
        if isinstance(answer, Exception)
    )


async def test_requests_rarely_ask_the_database(database: Database) -> None:
    who = caller(
        requests_per_minute=600_000,
        tokens_per_minute=10**8,
        requests_per_month=10**8,
        tokens_per_month=10**10,
    )
    store = Counted(database)
    count = 0
    async with Limiter(minutes=store, months=store) as limits:
        end = time.monotonic() + 1.2
        while time.monotonic() < end:
            (await limits.admit(who, 1000)).settle(300)
            count += 1
            await asyncio.sleep(0)
        asked = store.asked
    assert count > 10_000
    assert asked < 100


async def test_everything_unused_is_given_back_at_the_end(database: Database) -> None:
    who = caller(tokens_per_month=10**6, requests_per_minute=60_000)
    async with replica(database) as limits:
        for _ in range(300):
            (await limits.admit(who, 100)).settle(60)
            await asyncio.sleep(0.001)
        assert await leased(database) > 0
    assert await leased(database) == 0
    figures = await used(database)
    assert figures[f"key/tokens_per_month/{month_name()}"] == 300 * 60
    assert figures["key/requests_per_minute"] <= 300


@pytest.mark.timeout(20)
async def test_what_lies_idle_goes_back_to_the_others(database: Database) -> None:
    who = caller(tokens_per_month=10_000)
    now = time.monotonic()
    store = SqlStore(database)
    ahead = 0.0
    async with Limiter(minutes=store, months=store, clock=lambda: now + ahead) as limits:
        for _ in range(50):
            (await limits.admit(who, 10)).settle(10)
        held = next(iter((await used(database)).values()))
        assert held > 500
        for _ in range(30):  # Two ticks of a clock that runs ahead.
            await asyncio.sleep(0.05)
            ahead += 1.0
        assert await used(database) == {f"key/tokens_per_month/{month_name()}": 500}
        assert await leased(database) == 0


async def test_what_a_dead_replica_had_leased_goes_back_when_its_lease_expires(
    database: Database,
) -> None:
    dead = SqlStore(database)
    living = SqlStore(database)
    month = month_of(time.time())
    await dead.heartbeat()
    grants = await dead.exchange(
        [Ask("key/x", 1000, month, need=10, demand=10, prefetch=20, lease=100)]
    )
    assert grants == [Grant(30, 130, 100)]
    assert (await living.heartbeat()).replicas == 2
    assert (await used(database))["key/x"] == 130
    async with database.begin() as connection:
        await connection.execute(update(leases).where(leases.c.amount > 0).values(expires_at=0))
    await living.heartbeat()
    assert (await used(database))["key/x"] == 30
    # The dead one was only asleep: it learns that nothing is leased for it any more.
    assert await dead.exchange([Ask("key/x", 1000, month, need=10, demand=10)]) == [
        Grant(10, 40, 0)
    ]


async def test_what_was_used_beyond_the_reservation_is_booked_beyond_the_quota(
    database: Database,
) -> None:
    who = caller(tokens_per_month=100)
    async with replica(database) as limits:
        (await limits.admit(who, 100)).settle(130)
        with pytest.raises(errors.QuotaExceeded):
            await limits.admit(who, 1)
    assert list((await used(database)).values()) == [130]


async def test_cancelled_while_the_database_is_asked_nothing_is_lost(database: Database) -> None:
    who = caller(tokens_per_month=1000, tokens_per_minute=1000)
    async with replica(database) as limits:
        for turn in range(20):
            task = asyncio.create_task(limits.admit(who, 100))
            for _ in range(turn):
                await asyncio.sleep(0.0005)
            task.cancel()
            answers = await asyncio.gather(task, return_exceptions=True)
            if not isinstance(answers[0], BaseException):
                answers[0].settle(0)
        standing = limits.standing(who)
        assert standing.running == 0
    assert set((await used(database)).values()) == {0}


async def test_a_new_limit_applies_to_what_all_replicas_have_used(database: Database) -> None:
    async with replica(database) as first, replica(database) as second:
        (await first.admit(caller(tokens_per_minute=100), 80)).settle(80)
        with pytest.raises(errors.RateLimited):
            await second.admit(caller(tokens_per_minute=100), 40)
        await second.admit(caller(tokens_per_minute=1000), 900)
        with pytest.raises(errors.RateLimited):
            await first.admit(caller(tokens_per_minute=1000), 100)


async def test_a_database_too_slow_to_answer_lets_what_was_last_known_decide(
    database: Database,
) -> None:
    now = time.monotonic()

    class Slow(SqlStore):
        async def exchange(self, asks: Sequence[Ask]) -> list[Grant]:
            nonlocal now
            now += 1.0
            return [Grant(0, 60.0) for _ in asks]

    store = Slow(database)
    limits = Limiter(minutes=store, months=store, clock=lambda: now)
    async with limits:
        await limits.admit(caller(tokens_per_month=100), 40)
        with pytest.raises(errors.QuotaExceeded):
            await limits.admit(caller(tokens_per_month=100), 1)


async def test_limits_long_whole_again_leave_the_database(database: Database) -> None:
    store = SqlStore(database)
    await store.exchange([Ask("ip:1/requests_per_minute", 60, None, need=1, demand=1)])
    async with database.begin() as connection:
        await connection.execute(update(budgets).values(expires_at=1))
    await store.heartbeat()
    assert await used(database) == {}
