"""Migrations: from nothing to the newest tables, on both databases, by many replicas at once."""

import asyncio
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, insert, text

from llm_runtime.db import migrate, tables
from llm_runtime.db.database import Database, DatabaseAway
from postgres import Postgres
from waiting import until

ROOT = Path(__file__).parents[4]


async def test_migrations_make_exactly_the_tables_that_the_code_uses(database_url: str) -> None:
    def missing(connection: Connection) -> str:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        operations = produce_migrations(context, tables.metadata).upgrade_ops
        assert operations
        return "" if operations.is_empty() else render_python_code(operations)

    database = Database(database_url)
    await migrate.upgrade(database)
    async with database.read() as connection:
        assert await connection.run_sync(missing) == "", (
            "a new file in db/migrations/versions needs this"
        )
    await database.close()


async def test_ten_replicas_that_start_at_once_migrate_once(database_url: str) -> None:
    replicas = [Database(database_url) for _ in range(10)]
    await asyncio.gather(*map(migrate.upgrade, replicas))
    async with replicas[0].read() as connection:
        assert (
            await connection.execute(text("SELECT count(*) FROM alembic_version"))
        ).scalar() == 1
    assert all([(await migrate.inspect(replica)).current for replica in replicas])
    for replica in replicas:
        await replica.close()


async def test_inspection_tells_revision_rows_and_sizes(database_url: str) -> None:
    database = Database(database_url)
    before = await migrate.inspect(database)
    assert (before.revision, before.current, before.tables) == (None, False, ())
    await migrate.upgrade(database)
    async with database.begin() as connection:
        await connection.execute(insert(tables.settings), [{"name": "a", "value": "b"}])
    after = await migrate.inspect(database)
    assert (after.revision, after.current) == (migrate.head(), True)
    sizes = {table.name: table for table in after.tables}
    assert set(sizes) == {*tables.metadata.tables, "alembic_version"}
    assert sizes["settings"].rows == 1
    assert (sizes["settings"].bytes or 0) >= 4096
    await database.close()


async def test_a_database_of_a_newer_program_is_left_alone(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(database_url)
    await migrate.upgrade(database)
    async with database.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await migrate.upgrade(database)
    assert (await migrate.inspect(database)).revision == "9999"
    assert "newer than this program" in caplog.text
    await database.close()


async def test_a_second_upgrade_changes_nothing(database_url: str) -> None:
    database = Database(database_url)
    for _ in range(2):
        await migrate.upgrade(database)
    assert (await migrate.inspect(database)).current
    await database.close()


@pytest.mark.timeout(60)  # A build takes some seconds.
async def test_a_server_that_starts_before_its_database_says_so_once_and_in_its_metric(
    postgres_server: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    address = postgres_server.create()
    database = Database(address.replace("postgres@", "nobody@"))
    async with migrate.UpToDate(database, retry_seconds=0.01):
        for _ in range(3):
            with pytest.raises(DatabaseAway):
                await migrate.upgrade(database)
        assert database.away
        assert caplog.text.count("The database postgresql://") == 1
        database.url = address
        await until(lambda: database.prepared)
        assert not database.away


def test_the_wheel_carries_the_migrations(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "-t",
        "wheel",
        "-d",
        str(tmp_path / "wheel"),
    ]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = (tmp_path / "wheel").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = (
        "import asyncio; from llm_runtime.db import migrate; from llm_runtime.db.database import"
        " Database\n"
        f"assert migrate.__file__.startswith({str(tmp_path)!r})\n"
        f"asyncio.run(migrate.upgrade(Database('sqlite:///{tmp_path}/wheel.db')))"
    )
    environment = {"PYTHONPATH": str(tmp_path / "site")}
    subprocess.run([sys.executable, "-c", script], env=environment, cwd=tmp_path, check=True)
