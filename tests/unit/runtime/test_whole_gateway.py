"""What the gateway promises, held against whole processes:
no limit is exceeded, and no row is lost."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from harness import chat_body
from llm_runtime.db.database import Database
from llm_runtime.db.tables import inference_log, usage_daily
from postgres import Postgres, postgres
from unit.runtime.whole import HEADERS, Whole, server
from waiting import eventually

# Whole processes, and some seconds of load.
pytestmark = [pytest.mark.torch, pytest.mark.timeout(60)]

WORDS = 2
ANSWER_TOKENS = 16
COST = WORDS + ANSWER_TOKENS
"""Tokens of one request: `reserve` and `settle` come to the same."""
BODY = chat_body(model="mock", max_tokens=ANSWER_TOKENS, temperature=0.7)
Start = Callable[..., Whole]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start servers that end with the test."""
    with ExitStack() as running:
        number = iter(range(100))

        def one(url: str = "", **options: Any) -> Whole:
            folder = tmp_path / f"server-{next(number)}"
            return running.enter_context(
                server(folder, url or f"sqlite:///{tmp_path}/usage.db", **options)
            )

        yield one


async def volley(
    servers: list[Whole], calls: int, body: dict[str, Any] = BODY
) -> list[httpx.Response]:
    """So many calls at the same time, in turns to all servers."""
    limits = httpx.Limits(max_connections=calls)
    async with httpx.AsyncClient(
        headers=HEADERS, trust_env=False, timeout=30, limits=limits
    ) as client:
        urls = [f"{servers[call % len(servers)].url}/v1/chat/completions" for call in range(calls)]
        return await asyncio.gather(*(client.post(url, json=body) for url in urls))


def admitted(answers: list[httpx.Response]) -> int:
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) <= {200, 429}, statuses
    return statuses[200]


@pytest.mark.parametrize(
    ("limit", "most"),
    [
        ({"requestsPerMinute": 7}, 7),
        ({"tokensPerMinute": 100}, 100 // COST),
        ({"requestsPerMonth": 7}, 7),
        ({"tokensPerMonth": 100}, 100 // COST),
    ],
)
async def test_fifty_calls_at_once_never_exceed_a_limit(
    start: Start, limit: dict[str, int], most: int
) -> None:
    one = start(tier={"maxConcurrent": 5, **limit})
    began = time.monotonic()
    answers = await volley([one], 50)
    # A minute's limit comes back while the calls run:
    # at this pace a second gives less than one request.
    refilled = int((time.monotonic() - began) * most / 60)
    assert most <= admitted(answers) <= most + refilled
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert float(refused.headers["Retry-After"]) > 0
    unit = "tokens" if "tokens" in next(iter(limit)) else "requests"
    assert int(refused.headers[f"x-ratelimit-remaining-{unit}"]) < (COST if unit == "tokens" else 1)
    spent = refused.headers.get("x-should-retry") == "false"
    assert spent is ("Month" in next(iter(limit)))


async def test_no_more_than_the_limit_run_at_the_same_time(start: Start) -> None:
    one = start(tier={"maxConcurrent": 5}, token_seconds=0.002)
    began = time.monotonic()
    assert admitted(await volley([one], 50)) == 50
    # Ten turns of five: fewer would mean that more had run at once.
    assert time.monotonic() - began >= 10 * ANSWER_TOKENS * 0.002


async def test_a_client_that_leaves_while_it_waits_gives_its_turn_to_the_next(start: Start) -> None:
    one = start(tier={"maxConcurrent": 1}, token_seconds=0.05)
    url = f"{one.url}/v1/chat/completions"
    async with httpx.AsyncClient(headers=HEADERS, trust_env=False, timeout=30) as client:
        first = asyncio.create_task(client.post(url, json=BODY))
        await asyncio.sleep(0.2)
        async with httpx.AsyncClient(headers=HEADERS, trust_env=False) as impatient:
            with pytest.raises(httpx.ReadTimeout):
                await impatient.post(url, json=BODY, timeout=0.2)
        assert (await first).status_code == 200
        assert (await client.post(url, json=BODY)).status_code == 200
        standing = (await client.get(f"{one.url}/v1/key")).json()["data"]["standing"]
    assert one.metric("prompt_tokens_total") == 2 * WORDS, (
        "nothing was generated for the one that left"
    )
    assert (standing["running"], standing["waiting"]) == (0, 0)


@pytest.mark.parametrize("limit", ["requestsPerMonth", "tokensPerMonth"])
async def test_three_replicas_never_exceed_a_months_quota_and_leave_next_to_nothing_of_it(
    start: Start, postgres_server: Postgres, limit: str
) -> None:
    url = postgres_server.create()
    requests = 100
    quota = requests if limit == "requestsPerMonth" else requests * COST
    replicas = [start(url, tier={"maxConcurrent": 50, limit: quota}) for _ in range(3)]
    total = sum([admitted(await volley(replicas, 50)) for _ in range(6)])
    # What is left may lie with a replica that is not asked any more, for some seconds.
    assert requests - 3 <= total <= requests


async def test_three_replicas_keep_a_minutes_limit_within_the_documented_bound(
    start: Start, postgres_server: Postgres
) -> None:
    url = postgres_server.create()
    limit = 120
    replicas = [
        start(url, tier={"maxConcurrent": 50, "requestsPerMinute": limit}) for _ in range(3)
    ]
    began = time.monotonic()
    total = 0
    while (elapsed := time.monotonic() - began) < 5:
        total += admitted(await volley(replicas, 50))
    # docs/limits.md: limit x (1 + t/60) + limit/10.
    assert limit * 0.9 <= total <= limit * (1 + (elapsed + 1) / 60) + limit / 10


async def rows(url: str) -> tuple[int, int]:
    """(rows of the log, requests of the daily sums)."""
    database = Database(url)
    try:
        async with database.read() as connection:
            stored = await connection.scalar(sa.select(sa.func.count()).select_from(inference_log))
            summed = await connection.scalar(sa.select(sa.func.sum(usage_daily.c.requests)))
    finally:
        await database.close()
    return stored or 0, summed or 0


async def answered_until(one: Whole, end: signal.Signals) -> list[float]:
    """The times of whole answers under the load of ten clients, until the server is told to end.

    That is after two seconds, or later on a slow machine: when over 100 answers are older than one.
    """
    answered: list[float] = []

    async def ask() -> None:
        # Each call on a connection of its own:
        # one that a server closes under a request would be ambiguous.
        async with httpx.AsyncClient(
            headers={**HEADERS, "Connection": "close"}, trust_env=False, timeout=10
        ) as client:
            while True:
                try:
                    answer = await client.post(f"{one.url}/v1/chat/completions", json=BODY)
                except httpx.TransportError:
                    return
                if answer.status_code != 200:
                    return
                answered.append(time.monotonic())

    asking = [asyncio.create_task(ask()) for _ in range(10)]
    await asyncio.sleep(2)
    while sum(moment < time.monotonic() - 1 for moment in answered) <= 100:
        assert not all(task.done() for task in asking), "the server ended by itself"
        await asyncio.sleep(0.1)
    one.process.send_signal(end)
    await asyncio.gather(*asking)
    await asyncio.to_thread(one.process.wait, 20)
    return answered


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_sigterm_under_load_loses_no_row(
    start: Start, postgres_server: Postgres, tmp_path: Path, kind: str
) -> None:
    url = postgres_server.create() if kind == "postgres" else f"sqlite:///{tmp_path}/u.db"
    one = start(url, tier={"maxConcurrent": 50}, server={"drainSeconds": 4})
    answered = await answered_until(one, signal.SIGTERM)
    assert one.process.returncode == 0
    stored, summed = await rows(url)
    assert len(answered) > 100
    assert stored == summed
    assert stored >= len(answered)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_kill_loses_the_rows_of_the_flush_window_only(
    start: Start, postgres_server: Postgres, tmp_path: Path, kind: str
) -> None:
    url = postgres_server.create() if kind == "postgres" else f"sqlite:///{tmp_path}/u.db"
    window_seconds = 0.5
    writing_seconds = 0.5
    one = start(url, tier={"maxConcurrent": 50}, database={"flushSeconds": window_seconds})
    answered = await answered_until(one, signal.SIGKILL)
    killed = answered[-1]
    stored, summed = await rows(url)
    assert stored == summed
    assert (
        stored
        >= sum(moment < killed - window_seconds - writing_seconds for moment in answered)
        > 100
    )


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server that may be stopped."""
    with postgres() as running:
        yield running


async def test_requests_go_on_while_the_database_is_away_and_their_rows_are_caught_up(
    start: Start, own_postgres: Postgres
) -> None:
    url = own_postgres.create()
    one = start(
        url, tier={"maxConcurrent": 50, "tokensPerMonth": 1_000_000, "requestsPerMinute": 10_000}
    )
    total = admitted(await volley([one], 50))
    own_postgres.psql(
        "postgres", "CHECKPOINT"
    )  # It is stopped as by a crash, and keeps its log lazily in tests.
    own_postgres.stop()
    for _ in range(4):
        total += admitted(await volley([one], 50))
        await asyncio.sleep(0.5)
    assert one.ready()
    assert one.metric("llm_database_up") == 0
    own_postgres.start()
    total += admitted(await volley([one], 50))
    assert total == 300
    await asyncio.to_thread(eventually, lambda: one.metric("llm_usage_rows_pending") == 0, 20)
    assert await rows(url) == (total, total)


async def test_a_server_starts_without_its_database_and_finds_it_later(
    start: Start, own_postgres: Postgres
) -> None:
    url = own_postgres.create()
    own_postgres.psql("postgres", "CHECKPOINT")
    own_postgres.stop()
    one = start(url, tier={"maxConcurrent": 50, "requestsPerMonth": 1000})
    total = admitted(await volley([one], 20))
    own_postgres.start()
    await asyncio.to_thread(eventually, lambda: one.metric("llm_usage_rows_pending") == 0, 20)
    assert await rows(url) == (total, total) == (20, 20)


async def test_a_stream_cut_at_a_token_is_billed_for_as_many_as_cancelled(
    start: Start, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/usage.db"
    one = start(url, tier={"maxConcurrent": 5, "tokensPerMonth": 1000}, token_seconds=0.05)
    async with (
        httpx.AsyncClient(headers=HEADERS, trust_env=False) as client,
        client.stream(
            "POST", f"{one.url}/v1/chat/completions", json={**BODY, "stream": True}
        ) as answer,
    ):
        seen = 0
        async for line in answer.aiter_lines():
            seen += '"content":"word' in line
            if seen == 5:
                break
    one.process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(one.process.wait, 20)
    database = Database(url)
    async with database.read() as connection:
        [row] = (await connection.execute(sa.select(inference_log))).all()
    await database.close()
    assert row.outcome == "cancelled"
    assert 5 <= row.completion_tokens < ANSWER_TOKENS
