"""An application around a scripted engine, in process (`run`, `api`)
or behind a real port (`live`)."""

import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from fakes import ScriptedEngine
from harness import EXPIRED, KEY, SUSPENDED, Harness, Rows, config, key_file, record
from llm_runtime.adapters import Adapters
from llm_runtime.api.server import make_server
from llm_runtime.api.serving import State, WarmModel
from llm_runtime.app import create_app
from llm_runtime.auth.callers import KeyRing
from llm_runtime.common.aside import in_thread
from llm_runtime.connection import Connection
from llm_runtime.contract import ServerConfig
from llm_runtime.db.database import Database
from llm_runtime.db.tables import metadata
from llm_runtime.shadow import Orders
from llm_runtime.tracing import Tracing
from postgres import Postgres, postgres
from waiting import eventually, until


@pytest.fixture(autouse=True)
def _logging_stays_as_it_was() -> Iterator[None]:
    """A command that sets up logging writes to the output that it was run with,
    which ends with its test."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    level = root.level
    yield
    root.handlers[:] = handlers
    root.level = level


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """One real PostgreSQL server for all tests; `create()` gives each a database of its own."""
    with postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/runtime.db"
    server: Postgres = request.getfixturevalue("postgres_server")
    return server.create()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A database of each kind in turn, with all tables."""
    database = Database(database_url)
    async with database.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield database
    await database.close()


@pytest.fixture
def keys_path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    expired = record(EXPIRED, expires_at=datetime(2020, 1, 1, tzinfo=UTC))
    path.write_text(key_file(record(KEY), record(SUSPENDED, suspended=True), expired))
    return path


@pytest.fixture
def run(keys_path: Path) -> Callable[..., Any]:
    """Start an application in this process; by default with a key on every request."""

    @asynccontextmanager
    async def start(
        engine: ScriptedEngine | None = None,
        server: ServerConfig | None = None,
        headers: dict[str, str] | None = None,
        load: Callable[[], WarmModel] | None = None,
        system_prompt: str = "",
        wait: bool = True,
        tracing: Tracing | None = None,
        shadow: Orders | None = None,
    ) -> AsyncIterator[Harness]:
        engine = engine or ScriptedEngine()
        rows = Rows()
        loaded = WarmModel(engine, engine.codec)
        loading = in_thread(load or (lambda: loaded))
        made = make_server(
            config(server, system_prompt),
            loading,
            KeyRing(keys_path),
            usage=rows,
            tracing=tracing,
            shadow=shadow,
        )
        app = create_app(made)
        # Faults of ours must become answers here too.
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        headers = {"X-API-Key": KEY} if headers is None else headers
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=transport, base_url="http://test", headers=headers
            ) as client,
        ):
            await until(lambda: not wait or made.serving.state is not State.LOADING)
            yield Harness(made, engine, rows, "http://test", client)

    return start


@pytest.fixture
async def api(run: Callable[..., Any]) -> AsyncIterator[Harness]:
    async with run() as harness:
        yield harness


@pytest.fixture
def live(keys_path: Path) -> Callable[..., Any]:
    """Start an application behind a real port, in a thread of its own."""

    @contextmanager
    def start(
        engine: ScriptedEngine | None = None,
        server: ServerConfig | None = None,
        shadow: Orders | None = None,
        adapters: Adapters | None = None,
    ) -> Iterator[Harness]:
        engine = engine or ScriptedEngine()
        rows = Rows()
        loaded = WarmModel(engine, engine.codec)
        made = make_server(
            config(server),
            in_thread(lambda: loaded),
            KeyRing(keys_path),
            usage=rows,
            shadow=shadow,
            adapters=adapters,
            parts=[adapters] if adapters else [],
        )
        running = uvicorn.Server(
            uvicorn.Config(
                create_app(made), port=0, log_config=None, access_log=False, http=Connection
            )
        )
        thread = threading.Thread(target=running.run)
        thread.start()
        eventually(lambda: running.started and made.serving.state is State.READY)
        host, port = running.servers[0].sockets[0].getsockname()[:2]
        url = f"http://{host}:{port}"
        try:
            yield Harness(
                made, engine, rows, url, httpx.AsyncClient(base_url=url, headers={"X-API-Key": KEY})
            )
        finally:
            running.should_exit = True
            thread.join(timeout=20)

    return start
