"""What is too old goes, and nothing else."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import func, insert, select

from llm_runtime.db import retention
from llm_runtime.db.database import Database
from llm_runtime.db.retention import Retention, clean
from llm_runtime.db.tables import completion_cache, inference_log, responses, sessions, usage_daily
from llm_runtime.metrics import Metrics
from llm_runtime.usage.writer import DatabaseUsage
from postgres import Postgres
from usage_rows import AT, QUICK, counted, empty, row, stored

pytestmark = pytest.mark.usefixtures("_small_batches")


@pytest.fixture
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH_ROWS", 10)
    monkeypatch.setattr(retention, "PAUSE_SECONDS", 0)


async def filled(url: str) -> Database:
    """25 rows of 100 days ago, 5 of yesterday;
    one answer, one session and one response that expired, one of each that did not."""
    database = await empty(url)
    async with DatabaseUsage(database, QUICK, Metrics()) as usage:
        for number in range(30):
            usage.write(row(at=AT - timedelta(days=100 if number < 25 else 1)))
    async with database.begin() as connection:
        for name, expires_at in (
            ("old", AT - timedelta(seconds=1)),
            ("new", AT + timedelta(seconds=1)),
        ):
            shared = {"id": name, "tenant": "web", "expires_at": expires_at}
            await connection.execute(
                insert(completion_cache), {**shared, "model": "bot", "answer": {}}
            )
            await connection.execute(insert(sessions), {**shared, "version": 1, "messages": []})
            await connection.execute(
                insert(responses), {**shared, "status": "completed", "document": {}}
            )
    return database


async def test_old_rows_go_and_daily_sums_stay(database_url: str) -> None:
    database = await filled(database_url)
    deleted = await clean(database, 90, AT)
    assert deleted == {
        "completion_cache": 1,
        "sessions": 1,
        "responses": 1,
        "inference_log": 25,
    }
    assert (await counted(database))[:2] == (5, 30)
    async with database.read() as connection:
        for table in (completion_cache, sessions, responses):
            assert (await connection.scalars(select(table.c.id))).all() == ["new"]
    await database.close()


async def test_no_retention_keeps_rows_for_ever(database_url: str) -> None:
    database = await filled(database_url)
    assert "inference_log" not in await clean(database, 0, AT + timedelta(days=9999))
    assert len(await stored(database)) == 30
    await database.close()


async def test_while_one_replica_deletes_the_others_leave_it_to_that_one(
    postgres_server: Postgres,
) -> None:
    database = await filled(postgres_server.create())
    async with database.begin() as connection:
        await connection.execute(select(func.pg_advisory_xact_lock(retention.LOCK)))
        assert not any((await clean(database, 90, AT)).values())
    assert (await clean(database, 90, AT))["inference_log"] == 25
    await database.close()


async def test_it_runs_by_itself_until_the_end(database_url: str) -> None:
    database = await filled(database_url)
    async with Retention(database, 30, interval_seconds=0.02):
        for _ in range(200):
            async with database.read() as connection:
                left = await connection.scalar(select(func.count()).select_from(inference_log))
            if left == 5 or not left:
                break
            await asyncio.sleep(0.01)
    assert left in (0, 5)  # Those of AT's yesterday go, too, once that is long ago.
    await database.close()


async def test_sums_of_addresses_go_with_their_rows_and_those_of_keys_stay(
    database_url: str,
) -> None:
    database = await empty(database_url)
    async with DatabaseUsage(database, QUICK, Metrics()) as usage:
        for days in (100, 1):
            for key in ("web", *(f"ip:10.0.0.{number}" for number in range(25))):
                usage.write(row(at=AT - timedelta(days=days), key_id=key))
    assert (await clean(database, 90, AT))["usage_daily"] == 25
    async with database.read() as connection:
        days_of = select(usage_daily.c.key_id, func.count()).group_by(usage_daily.c.key_id)
        left = dict((await connection.execute(days_of)).tuples().all())
    assert (left.pop("web"), set(left.values())) == (2, {1})
    await database.close()


async def test_a_tenant_with_too_many_sessions_loses_its_oldest(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MOST_ROWS", 3)
    database = await empty(database_url)
    async with database.begin() as connection:
        for tenant, number in [("loud", number) for number in range(30)] + [("quiet", 0)]:
            when = AT + timedelta(seconds=1 + number)
            fields = {
                "id": f"{tenant}-{number}",
                "tenant": tenant,
                "expires_at": when,
                "version": 1,
                "messages": [],
            }
            await connection.execute(insert(sessions), fields)
    assert (await clean(database, 90, AT))["sessions"] == 27
    async with database.read() as connection:
        left = (await connection.scalars(select(sessions.c.id).order_by(sessions.c.id))).all()
    assert left == ["loud-27", "loud-28", "loud-29", "quiet-0"]
    await database.close()
