"""The pool: what counts as away, what never shows, and that no connection is lost."""

import asyncio
import logging
import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError

from llm_runtime import errors
from llm_runtime.db import database as module
from llm_runtime.db.database import Database, DatabaseAway
from llm_runtime.db.tables import settings
from postgres import Postgres, postgres
from usage_rows import empty


def test_an_address_that_is_none_ends_the_start_without_showing_it() -> None:
    for url in ("mysql://u:secret@h/d", "secret", "postgresql://u:pass@secret@h/d"):
        with pytest.raises(errors.ConfigInvalid) as raised:
            Database(url)
        assert "sec" not in str(raised.value)
        assert raised.value.__cause__ is None or "sec" not in str(raised.value.__cause__)


async def test_a_password_is_in_no_error_and_no_log(
    postgres_server: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    address = postgres_server.create().replace("postgres@", "nobody:hunter2@")
    database = Database(address)
    with caplog.at_level(logging.DEBUG), pytest.raises(DatabaseAway) as raised:
        async with database.begin():
            pass
    assert "hunter2" not in f"{raised.value} {raised.value.__cause__} {caplog.text}"
    assert database.away
    await database.close()


async def test_values_of_a_failed_statement_are_in_no_error(database_url: str) -> None:
    database = await empty(database_url)
    with pytest.raises(DBAPIError) as raised:  # noqa: PT012
        async with database.begin() as connection:
            for _ in range(2):
                await connection.execute(insert(settings), {"name": "a", "value": "the prompt"})
    assert not isinstance(raised.value, DatabaseAway)
    assert "the prompt" not in str(raised.value)
    assert not database.away
    await database.close()


async def test_a_missing_table_is_a_fault_and_not_an_absence(database_url: str) -> None:
    database = Database(database_url)
    with pytest.raises(Exception, match=r"no such table|does not exist") as raised:
        async with database.begin() as connection:
            await connection.execute(select(settings))
    assert not isinstance(raised.value, DatabaseAway)
    await database.close()


async def test_an_exception_takes_back_what_was_written(database_url: str) -> None:
    database = await empty(database_url)
    with pytest.raises(KeyError):  # noqa: PT012
        async with database.begin() as connection:
            await connection.execute(insert(settings), {"name": "a", "value": "b"})
            raise KeyError
    async with database.read() as connection:
        assert (await connection.execute(select(settings))).all() == []
    await database.close()


async def test_fifty_writers_at_once_all_come_to_write(database_url: str) -> None:
    database = await empty(database_url)

    async def raise_counter() -> None:
        async with database.begin() as connection:
            row = (await connection.execute(select(settings.c.value).with_for_update())).scalar()
            await asyncio.sleep(0.001)
            await connection.execute(settings.update().values(value=str(int(row or 0) + 1)))

    async with database.begin() as connection:
        await connection.execute(insert(settings), {"name": "count", "value": "0"})
    await asyncio.gather(*(raise_counter() for _ in range(50)))
    async with database.read() as connection:
        assert (await connection.execute(select(settings.c.value))).scalar() == "50"
    await database.close()


async def test_readers_do_not_wait_for_the_writer_of_sqlite(tmp_path: Path) -> None:
    database = await empty(f"sqlite:///{tmp_path}/a.db")
    async with database.begin() as writing:
        await writing.execute(insert(settings), {"name": "a", "value": "b"})
        async with asyncio.timeout(1), database.read() as reading:
            assert (await reading.execute(select(settings))).all() == []
    await database.close()


async def test_a_cancelled_transaction_leaves_no_connection_behind(database_url: str) -> None:
    database = await empty(database_url)
    chance = random.Random(1)

    async def use() -> None:
        async with database.begin() as connection:
            await connection.execute(select(settings))
            await asyncio.sleep(0.005)

    tasks = []
    for _ in range(40):
        tasks.append(asyncio.create_task(use()))
        await asyncio.sleep(chance.random() * 0.004)
        chance.choice(tasks).cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert database._engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await asyncio.gather(*(use() for _ in range(10)))
    await database.close()
    closing = asyncio.all_tasks() - {asyncio.current_task()}
    if closing:  # A task that never ends would hold up the end of the process.
        assert not (await asyncio.wait(closing, timeout=10))[1]


@pytest.fixture
def server() -> Iterator[Postgres]:
    """One that may be stopped."""
    with postgres() as running:
        yield running


@pytest.mark.timeout(60)  # Time-outs are waited for.
async def test_a_database_that_hangs_is_away_in_bounded_time_and_comes_back(
    server: Postgres, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.3)
    database = Database(server.create(), statement_seconds=0.3)
    async with database.begin() as connection:
        await connection.execute(text("SELECT 1"))
    frozen = server.family()
    for process in frozen:
        os.kill(process, signal.SIGSTOP)
    try:
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(DatabaseAway):
                async with database.begin() as connection:
                    await connection.execute(text("SELECT 1"))
            assert time.monotonic() - began < 4
    finally:
        for process in frozen:
            os.kill(process, signal.SIGCONT)
    async with database.begin() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar() == 1
    assert not database.away
    assert database._engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert caplog.text.count("does not answer") == 1
    await database.close()


async def test_a_new_file_gets_its_write_ahead_log_also_beside_a_writer(tmp_path: Path) -> None:
    """The change waits for the writer, and the writer never for the change."""
    file = tmp_path / "runtime.db"
    writer = sqlite3.connect(file, timeout=2, isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("CREATE TABLE first (name TEXT)")
    late = Database(f"sqlite:///{file}")

    async def read() -> tuple[int, str]:
        async with late.read() as connection:
            rows = await connection.scalar(text("SELECT count(*) FROM first"))
            return int(rows or 0), str(await connection.scalar(text("PRAGMA journal_mode")))

    reading = asyncio.create_task(read())
    await asyncio.sleep(0.2)
    await asyncio.to_thread(writer.execute, "COMMIT")
    assert await reading == (0, "wal")
    await late.close()
    writer.close()
