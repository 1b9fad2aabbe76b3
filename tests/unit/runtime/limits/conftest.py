"""Databases with our tables, of both kinds; and a clock that is set by hand."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llm_runtime.db.database import Database
from llm_runtime.db.tables import metadata
from postgres import Postgres


@pytest.fixture
def postgres_url(postgres_server: Postgres) -> str:
    return postgres_server.create()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/limits.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    async with database.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield database
    await database.close()
