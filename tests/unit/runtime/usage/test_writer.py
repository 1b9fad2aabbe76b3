"""Usage in the database: every row once, whatever the database does meanwhile."""

import asyncio
import random
import time
from datetime import timedelta
from typing import Any

import pytest

from llm_runtime.contract import DatabaseConfig
from llm_runtime.db import migrate
from llm_runtime.db.database import Database
from llm_runtime.metrics import Metrics
from llm_runtime.usage import Outcome, writer
from llm_runtime.usage.writer import DatabaseUsage
from postgres import Postgres
from usage_rows import AT, QUICK, counted, daily, empty, row, stored
from waiting import until


def metric(metrics: Metrics, name: str) -> float:
    return metrics.registry.get_sample_value(name) or 0.0


async def test_a_row_is_stored_as_it_was_and_raises_the_sums_of_its_day(database_url: str) -> None:
    database = await empty(database_url)
    metrics = Metrics()
    async with DatabaseUsage(database, QUICK, metrics) as usage:
        usage.write(row(finish_reasons=("stop", "length"), choices=2, user_hash="ab"))
        usage.write(row(at=AT + timedelta(hours=1), cached=True, outcome=Outcome.CANCELLED))
        usage.write(
            row(at=AT + timedelta(days=1), outcome=Outcome.TIMEOUT, key_name="default/renamed")
        )
    first = (await stored(database))[0]
    assert (first.at, first.finish_reasons, first.outcome, first.user_hash) == (
        AT,
        "stop,length",
        "completed",
        "ab",
    )
    sums = [
        (str(day.day), day.requests, day.failed, day.cached, day.prompt_tokens)
        for day in await daily(database)
    ]
    assert sums == [("2026-11-21", 2, 0, 1, 14), ("2026-11-22", 1, 1, 0, 7)]
    assert (await daily(database))[0].last_at == AT + timedelta(hours=1)
    assert (await daily(database))[1].key_name == "default/renamed"
    assert metric(metrics, "llm_usage_rows_written_total") == 3
    assert metric(metrics, "llm_usage_rows_pending") == 0
    await database.close()


async def test_rows_are_written_without_an_end_within_the_flush_window(database_url: str) -> None:
    database = await empty(database_url)
    metrics = Metrics()
    async with DatabaseUsage(database, QUICK, metrics) as usage:
        usage.write(row())
        await until(lambda: metric(metrics, "llm_usage_rows_written_total") == 1)
    await database.close()


async def test_a_full_batch_does_not_wait_for_the_window(database_url: str) -> None:
    database = await empty(database_url)
    metrics = Metrics()
    async with DatabaseUsage(database, DatabaseConfig(flush_seconds=60), metrics) as usage:
        for _ in range(writer.BATCH_ROWS):
            usage.write(row())
        await until(lambda: metric(metrics, "llm_usage_rows_written_total") == writer.BATCH_ROWS)
    await database.close()


@pytest.mark.parametrize("keep", [False, True])
async def test_texts_are_stored_only_when_asked_for(database_url: str, keep: bool) -> None:
    database = await empty(database_url)
    async with DatabaseUsage(database, replace_config(store_prompts=keep), Metrics()) as usage:
        usage.write(row(prompt="who", completion="me\0"))
    [found] = await stored(database)
    assert (found.prompt, found.completion) == (
        ("who", "me\N{REPLACEMENT CHARACTER}") if keep else (None, None)
    )
    await database.close()


def replace_config(**fields: Any) -> DatabaseConfig:
    return QUICK.model_copy(update=fields)


async def test_values_that_no_column_holds_are_cut_and_stored(database_url: str) -> None:
    database = await empty(database_url)
    async with DatabaseUsage(database, QUICK, Metrics()) as usage:
        usage.write(
            row(request_id="x" * 1000, key_name="a\0b\ud800", model="m" * 300, prompt_tokens=2**70)
        )
        usage.write(row(finish_reasons=("length",) * 128))
    first, second = await stored(database)
    assert (len(first.request_id), len(first.model), first.prompt_tokens) == (128, 200, 2**63 - 1)
    assert first.key_name == "a\N{REPLACEMENT CHARACTER}b?"
    assert len(second.finish_reasons) == 200
    await database.close()


async def test_a_row_that_the_database_refuses_does_not_hold_up_the_others(
    database_url: str,
) -> None:
    database = await empty(database_url)
    metrics = Metrics()
    async with DatabaseUsage(database, QUICK, metrics) as usage:
        for number in range(20):
            usage.write(row(duration_seconds="soon" if number == 7 and database.postgres else 0.5))
        usage.write(row(choices=None))
        usage.write(row(finish_reasons=None))
    lost = 3 if database.postgres else 2
    assert (await counted(database))[:2] == (22 - lost, 22 - lost)
    assert metric(metrics, "llm_usage_rows_dropped_total") == lost
    await database.close()


async def test_a_full_queue_drops_the_oldest_and_counts_them(database_url: str) -> None:
    database = await empty(database_url)
    metrics = Metrics()
    usage = DatabaseUsage(database, replace_config(max_pending_rows=10), metrics)
    for number in range(25):
        usage.write(row(request_id=str(number)))
    assert metric(metrics, "llm_usage_rows_pending") == 10
    async with usage:
        pass
    assert [found.request_id for found in await stored(database)] == [
        str(number) for number in range(15, 25)
    ]
    assert metric(metrics, "llm_usage_rows_dropped_total") == 15
    await database.close()


async def test_without_tables_rows_wait_for_the_upgrade(database_url: str) -> None:
    database = Database(database_url)
    metrics = Metrics()
    async with DatabaseUsage(database, QUICK, metrics) as usage:
        usage.write(row())
        await asyncio.sleep(0.1)
        assert metric(metrics, "llm_usage_rows_pending") == 1
        await migrate.upgrade(database)
    assert (await counted(database))[:2] == (1, 1)
    await database.close()


async def test_an_end_without_a_database_is_bounded_and_says_what_is_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    database = Database("postgresql://user:secret@127.0.0.1:1/none")
    metrics = Metrics()
    began = time.monotonic()
    async with DatabaseUsage(database, QUICK, metrics, close_seconds=0.2) as usage:
        for _ in range(3):
            usage.write(row())
    assert time.monotonic() - began < 1
    assert metric(metrics, "llm_usage_rows_dropped_total") == 3
    assert "3 usage rows are lost" in caplog.text
    assert "secret" not in caplog.text
    usage.write(row())
    assert metric(metrics, "llm_usage_rows_dropped_total") == 4
    await database.close()


@pytest.mark.timeout(30)  # Three writers of 3,000 rows each.
async def test_three_writers_over_the_same_keys_neither_deadlock_nor_miscount(
    postgres_server: Postgres,
) -> None:
    database = await empty(url := postgres_server.create())
    others = [database, Database(url), Database(url)]

    async def write(database: Database, chance: random.Random) -> None:
        async with DatabaseUsage(database, QUICK, Metrics()) as usage:
            for number in range(3000):
                usage.write(
                    row(key_id=f"k{chance.randrange(50)}", adapter=chance.choice(["", "legal"]))
                )
                if number % 25 == 0:
                    await asyncio.sleep(0.002)

    await asyncio.gather(
        *(write(database, random.Random(seed)) for seed, database in enumerate(others))
    )
    assert await counted(database) == (9000, 9000, 9000 * 12)
    assert postgres_server.psql("postgres", "SELECT sum(deadlocks) FROM pg_stat_database") == "0"
    for other in others:
        await other.close()


class Proxy:
    """Between driver and server: when `armed`, the answer to the next COMMIT is lost,
    and the connection with it."""

    def __init__(self, port: int) -> None:
        self.armed = False
        self.cut = 0
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, ahead = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, ahead]
        await asyncio.gather(self._copy(reader, ahead), self._copy(behind, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self.armed and b"COMMIT\0" in data and data.startswith(b"C"):
                self.armed = False
                self.cut = self.cut + 1
                break
            writer.write(data)
        for open_writer in self._writers:
            open_writer.close()


async def test_a_commit_whose_answer_was_lost_counts_once(postgres_server: Postgres) -> None:
    direct = await empty(url := postgres_server.create())
    proxy = Proxy(postgres_server.port)
    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    database = Database(url.replace(f":{postgres_server.port}/", f":{port}/"))
    metrics = Metrics()
    async with DatabaseUsage(database, QUICK, metrics) as usage:
        usage.write(row())
        await until(lambda: metric(metrics, "llm_usage_rows_written_total") == 1)
        for _ in range(3):
            proxy.armed = True
            usage.write(row())
            usage.write(row())
            await until(lambda: not proxy.armed)
            await until(lambda: metric(metrics, "llm_usage_rows_pending") == 0)
    assert proxy.cut == 3
    assert await counted(direct) == (7, 7, 7 * 12)
    assert metric(metrics, "llm_usage_rows_dropped_total") == 0
    server.close()
    await database.close()
    await direct.close()


def test_taking_a_row_costs_microseconds() -> None:
    usage = DatabaseUsage(
        Database("sqlite:///:memory:"), replace_config(max_pending_rows=1000), Metrics()
    )
    one = row()
    best = min(timed(lambda: usage.write(one), 5000) for _ in range(3))
    assert best < 10e-6, f"{best * 1e6:.1f} µs"


def timed(call: Any, times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - began) / times
