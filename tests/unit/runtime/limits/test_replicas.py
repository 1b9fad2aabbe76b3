"""Three real processes and one key on a real PostgreSQL: what they admit together."""

import asyncio
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_runtime.db.database import Database
from llm_runtime.db.tables import metadata
from postgres import Postgres
from waiting import eventually

pytestmark = pytest.mark.timeout(60)

REPLICA = Path(__file__).with_name("replica.py")
LEASE_SECONDS = 1.5
PATIENCE_SECONDS = 3.0
"""A replica goes on until it has been refused for so long: longer than a dead one's lease."""


class Replica:
    """One process."""

    def __init__(self, folder: Path, **task: Any) -> None:
        task = {
            "lease_seconds": LEASE_SECONDS,
            "hold_seconds": 0.01,
            "clients": 8,
            "seconds": 30.0,
            "patience": PATIENCE_SECONDS,
            **task,
        }
        self._output = folder / f"replica-{task['seed']}"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(REPLICA), json.dumps(task)], stdout=output
            )

    @property
    def admitted(self) -> list[tuple[int, int, float]]:
        """Tokens reserved, tokens used, when."""
        lines = [line.split() for line in self._output.read_text().splitlines()[1:]]
        return [(int(line[0]), int(line[1]), float(line[2])) for line in lines if len(line) == 3]

    @property
    def ready(self) -> bool:
        return self._output.read_text().startswith("ready")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def end(self) -> None:
        assert self.process.wait(40) == 0


@pytest.fixture
def replicas(postgres_url: str, tmp_path: Path) -> Iterator[Any]:
    async def prepare() -> None:
        database = Database(postgres_url)
        async with database.begin() as connection:
            await connection.run_sync(metadata.create_all)
        await database.close()

    asyncio.run(prepare())
    started: list[Replica] = []

    def start(**task: Any) -> list[Replica]:
        started.extend(Replica(tmp_path, url=postgres_url, seed=seed, **task) for seed in range(3))
        return started

    yield start
    for replica in started:
        replica.kill()


def month_used(postgres_server: Postgres, url: str, limit: str) -> int:
    statement = f"SELECT used FROM budgets WHERE id LIKE 'key/{limit}/%'"
    return int(float(postgres_server.psql(url.rpartition("/")[2], statement)))


def test_three_replicas_use_up_monthly_quotas_exactly(
    replicas: Any, postgres_url: str, postgres_server: Postgres
) -> None:
    # Single tokens, so that the last of them is of use to somebody.
    running = replicas(most=1, limits={"tokens_per_month": 5_000, "requests_per_month": 100_000})
    for replica in running:
        replica.end()
    admitted = [sum(used for _, used, _ in replica.admitted) for replica in running]
    assert month_used(postgres_server, postgres_url, "tokens_per_month") == sum(admitted)
    assert sum(admitted) == 5_000


def test_three_replicas_admit_as_many_requests_as_the_month_has_and_not_one_more(
    replicas: Any, postgres_url: str, postgres_server: Postgres
) -> None:
    running = replicas(most=50, limits={"requests_per_month": 700, "tokens_per_month": 10**7})
    for replica in running:
        replica.end()
    assert sum(len(replica.admitted) for replica in running) == 700
    assert month_used(postgres_server, postgres_url, "requests_per_month") == 700
    tokens = sum(used for replica in running for _, used, _ in replica.admitted)
    assert month_used(postgres_server, postgres_url, "tokens_per_month") == tokens


def test_a_killed_replica_makes_the_others_use_no_more_than_the_quota_and_little_less(
    replicas: Any, postgres_url: str, postgres_server: Postgres
) -> None:
    limit = 6_000
    running = replicas(most=1, hold_seconds=0.02, limits={"requests_per_month": limit})
    victim = running[0]
    eventually(lambda: len(victim.admitted) >= 150)
    victim.kill()
    for replica in running[1:]:
        replica.end()
    admitted = sum(len(replica.admitted) for replica in running)
    # What was open in the dead one is lost with it: about what it would have used in two seconds.
    lost = month_used(postgres_server, postgres_url, "requests_per_month") - admitted
    assert lost >= 0
    assert admitted <= limit
    assert lost < limit / 3
    assert admitted + lost == limit


def test_three_replicas_stay_within_the_bound_of_a_minutes_limit(replicas: Any) -> None:
    limit = 6_000
    seconds = 4.0
    running = replicas(seconds=seconds, most=40, limits={"tokens_per_minute": limit})
    for replica in running:
        replica.end()
    calls = sorted((at, used) for replica in running for _, used, at in replica.admitted)
    total = sum(used for _, used in calls)
    elapsed = calls[-1][0] - calls[0][0]
    exact = limit + limit / 60 * elapsed
    assert total <= math.ceil(exact + limit / 10)
    assert total > 0.9 * exact
