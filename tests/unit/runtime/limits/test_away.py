"""The database goes away in the middle, or was never there:
who gets in meanwhile, and what is booked later."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import select

from llm_runtime import errors
from llm_runtime.contract import Tier
from llm_runtime.db.database import Database
from llm_runtime.db.tables import budgets, metadata
from llm_runtime.limits import Limiter
from llm_runtime.limits.shared import SqlStore
from llm_runtime.request import Caller
from postgres import Postgres, postgres
from waiting import until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server of our own, as it will be stopped."""
    with postgres() as server:
        yield server


@pytest.fixture
async def database(server: Postgres) -> AsyncIterator[Database]:
    if server.process is None:
        server.start()
    database = Database(server.create())
    async with database.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield database
    await database.close()


def stop(server: Postgres) -> None:
    server.psql(
        "postgres", "CHECKPOINT"
    )  # The tests' server would forget the last commits, to be fast.
    server.stop()


def caller(**limits: int) -> Caller:
    return Caller(
        "key", "key", Tier.model_validate({"name": "gold", "max_concurrent": None, **limits})
    )


def replica(database: Database) -> Limiter:
    store = SqlStore(database)
    return Limiter(minutes=store, months=store)


async def booked(database: Database) -> dict[str, float]:
    async with database.begin() as connection:
        rows = await connection.execute(select(budgets.c.id, budgets.c.used))
        return {row.id.split("/")[1]: row.used for row in rows}


async def until_refused(limits: Limiter, who: Caller, tokens: int) -> int:
    count = 0
    while True:
        try:
            (await limits.admit(who, tokens)).settle(tokens)
        except errors.Refusal:
            return count
        count += 1


async def back(limits: Limiter) -> None:
    await until(lambda: not limits.away)


async def test_valid_keys_keep_working_within_what_was_known_and_everything_is_booked_later(
    server: Postgres, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    who = caller(tokens_per_month=1000, tokens_per_minute=2_000)
    async with replica(database) as limits:
        for _ in range(10):
            (await limits.admit(who, 10)).settle(10)
        stop(server)
        assert await until_refused(limits, who, 10) == 90
        assert limits.away
        with pytest.raises(errors.QuotaExceeded):
            await limits.admit(who, 10)
        server.start()
        await back(limits)
        await asyncio.sleep(0.3)
        with pytest.raises(errors.QuotaExceeded):
            await limits.admit(who, 10)
    figures = await booked(database)
    assert figures["tokens_per_month"] == 1000
    assert 0 < figures["tokens_per_minute"] <= 1000
    assert sum("does not answer; limits go on" in record.message for record in caplog.records) == 1


async def test_a_request_waits_two_seconds_for_the_database_at_most_and_the_next_ones_not_at_all(
    server: Postgres, database: Database
) -> None:
    who = caller(tokens_per_minute=6000)
    async with replica(database) as limits:
        await limits.admit(who, 10)
        stop(server)
        began = time.monotonic()
        await limits.admit(who, 3000)
        assert time.monotonic() - began < 2.5
        began = time.monotonic()
        for _ in range(20):
            await limits.admit(who, 100)
        assert time.monotonic() - began < 0.1


async def test_a_replica_that_starts_without_its_database_serves_and_books_later(
    server: Postgres, database: Database
) -> None:
    who = caller(requests_per_month=5, requests_per_minute=60)
    stop(server)
    async with replica(database) as limits:
        assert limits.away
        assert await until_refused(limits, who, 10) == 5
        server.start()
        await back(limits)
        await asyncio.sleep(0.3)
        assert limits.standing(who).headers()["x-ratelimit-remaining-requests"] == "0"
    assert (await booked(database))["requests_per_month"] == 5


async def test_a_minute_goes_on_at_its_own_pace_while_nobody_can_be_asked(
    server: Postgres, database: Database
) -> None:
    who = caller(tokens_per_minute=600)
    ahead = 0.0
    store = SqlStore(database)
    async with Limiter(
        minutes=store, months=store, clock=lambda: time.monotonic() + ahead
    ) as limits:
        (await limits.admit(who, 100)).settle(100)
        stop(server)
        assert await until_refused(limits, who, 10) in (50, 51)
        with pytest.raises(errors.RateLimited) as refused:
            await limits.admit(who, 100)
        assert 8 < (refused.value.retry_after_seconds or 0) <= 10
        ahead = 10.0
        await limits.admit(who, 100)


async def test_a_database_that_hangs_holds_up_one_request_for_two_seconds_and_comes_back(
    server: Postgres, database: Database
) -> None:
    who = caller(tokens_per_month=1000)
    async with replica(database) as limits:
        (await limits.admit(who, 10)).settle(10)
        signal_all(server, signal.SIGSTOP)
        try:
            began = time.monotonic()
            admissions = await asyncio.gather(*(limits.admit(who, 10) for _ in range(20)))
            assert time.monotonic() - began < 2.5
            assert await until_refused(limits, who, 10) == 79
        finally:
            signal_all(server, signal.SIGCONT)
        await back(limits)
        for admission in admissions:
            admission.settle(0)
        await asyncio.sleep(1.2)
        assert limits.standing(who).tokens_per_month.remaining == 200  # type: ignore[union-attr]
    assert (await booked(database))["tokens_per_month"] == 800


def signal_all(server: Postgres, number: signal.Signals) -> None:
    """The server's processes are a group of children:
    the postmaster's own and one for each connection."""
    for process in server.family():
        os.kill(process, number)
