"""What a whole process loses: nothing at SIGTERM or while Postgres is away,
the last flush window at SIGKILL."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_runtime.db.database import Database
from postgres import Postgres, postgres
from usage_rows import counted

# Each test starts a process of its own and lets it write for some time.
pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).parents[4]
SCRIPT = Path(__file__).parent / "writing_process.py"
ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT / 'runtime'}:{ROOT / 'tests'}"}
FLUSH_SECONDS = 0.3
RATE = 1000
TOKENS = 12


class Writing:
    """The running script and what it says."""

    def __init__(self, url: str) -> None:
        command = [sys.executable, str(SCRIPT), url, str(FLUSH_SECONDS), str(RATE)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
        self.taken = 0
        self.seen: list[tuple[float, int]] = []

    def listen(self, seconds: float, rows: int = 0) -> None:
        """For so long from its first row on, and until it has taken so many."""
        self._read()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline or self.taken < rows:
            assert self._read(), "it has ended"

    def end(self) -> int:
        while self._read():
            pass
        return self.process.wait(timeout=20)

    def _read(self) -> bool:
        assert self.process.stdout
        if line := self.process.stdout.readline():
            self.taken = int(line)
            self.seen.append((time.monotonic(), self.taken))
        return bool(line)


@pytest.fixture
def server() -> Iterator[Postgres]:
    """One that may be stopped."""
    with postgres() as running:
        yield running


@pytest.fixture
def start() -> Iterator[type[Writing]]:
    started: list[Writing] = []

    class Started(Writing):
        def __init__(self, url: str) -> None:
            super().__init__(url)
            started.append(self)

    yield Started
    for writing in started:
        writing.process.kill()
        writing.process.wait()
        if writing.process.stdout:
            writing.process.stdout.close()


async def count(url: str) -> tuple[int, int, int]:
    database = Database(url)
    try:
        return await counted(database)
    finally:
        await database.close()


async def test_sigterm_under_load_loses_no_row(database_url: str, start: type[Writing]) -> None:
    writing = start(database_url)
    writing.listen(1, rows=500)
    writing.process.terminate()
    assert writing.end() == 0
    assert await count(database_url) == (writing.taken, writing.taken, writing.taken * TOKENS)


async def test_sigkill_loses_the_last_flush_window_only(
    database_url: str, start: type[Writing]
) -> None:
    writing = start(database_url)
    writing.listen(3, rows=500)
    writing.process.kill()
    killed_at = time.monotonic()
    writing.end()
    rows, requests, tokens = await count(database_url)
    # A flush that has begun takes some time itself, more so on a busy machine.
    before_window = [taken for at, taken in writing.seen if at < killed_at - FLUSH_SECONDS - 0.3]
    assert before_window[-1] <= rows <= writing.taken
    assert (requests, tokens) == (rows, rows * TOKENS)


async def test_rows_wait_while_postgres_is_away_and_none_counts_twice(
    server: Postgres, start: type[Writing]
) -> None:
    url = server.create()
    # What this server has confirmed it must still have after a crash;
    # other tests need no such care.
    server.psql("postgres", f"ALTER DATABASE {url.rpartition('/')[2]} SET synchronous_commit = on")
    writing = start(url)
    writing.listen(1)
    for _ in range(2):
        server.stop()
        writing.listen(0.7)
        server.start()
        writing.listen(0.7)
    writing.process.terminate()
    assert writing.end() == 0
    assert await count(url) == (writing.taken, writing.taken, writing.taken * TOKENS)
