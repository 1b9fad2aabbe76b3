"""Minutes that are shared through a real Redis."""

import asyncio
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from devstack.ports import free_port
from llm_runtime import errors
from llm_runtime.contract import Tier
from llm_runtime.limits import Limiter
from llm_runtime.limits.broker import StoreAway
from llm_runtime.limits.exchange import Ask, minute
from llm_runtime.limits.leaky_bucket import LeakyBucket
from llm_runtime.limits.redis import RedisStore
from llm_runtime.request import Caller
from waiting import eventually, until

PROGRAM = shutil.which("redis-server") or shutil.which("valkey-server")
pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(PROGRAM is None, reason="apt-get install redis-server"),
]


class Server:
    """A running Redis, on a port of its own and without a file."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        options = [
            "--port",
            str(self.port),
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            str(self._folder),
        ]
        self.process = subprocess.Popen([str(PROGRAM), *options], stdout=subprocess.DEVNULL)
        eventually(lambda: socket.create_connection(("127.0.0.1", self.port)).close() is None)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


def caller(name: str, **limits: int) -> Caller:
    return Caller(
        name, name, Tier.model_validate({"name": "gold", "max_concurrent": None, **limits})
    )


async def test_the_script_computes_what_the_pure_function_computes(server: Server) -> None:
    chance = random.Random(5)
    store = RedisStore(server.url)
    bucket = LeakyBucket()
    limit = 100_000  # Large numbers: what drains between two calls does not hide a slip.
    for _ in range(300):
        need = chance.choice([0, chance.randint(0, 30_000)])
        ask = Ask(
            "k/tokens_per_minute", limit, None, chance.randint(-5_000, 30_000), need,
            need + chance.randint(0, 5_000) if need else 0, chance.randint(0, 9_000), replicas=3,
        )  # fmt: skip
        [grant] = await store.exchange([ask])
        expected = minute(bucket, ask, time.time())
        drained = limit / 60 * 0.2
        if abs(expected.amount - grant.amount) > drained:
            # Only at the very edge may time between both decide otherwise.
            assert (
                abs(limit - bucket.used - ask.need) < drained
                or abs(limit - grant.used - ask.need) < drained
            )
        bucket.used = grant.used
        bucket.at = time.time()
    await store.leave()


async def test_fifty_parallel_calls_on_two_replicas_do_not_overshoot(server: Server) -> None:
    who = caller("parallel", tokens_per_minute=100)
    async with (
        Limiter(minutes=RedisStore(server.url)) as first,
        Limiter(minutes=RedisStore(server.url)) as second,
    ):
        calls = [limits.admit(who, 20) for _ in range(25) for limits in (first, second)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(not isinstance(answer, Exception) for answer in answers) == 5


async def test_two_replicas_share_one_minute_within_the_bound(server: Server) -> None:
    limit = 6_000
    who = caller("bound", tokens_per_minute=6_000)
    used = 0
    began = time.monotonic()

    async def ask(limits: Limiter) -> None:
        nonlocal used
        while time.monotonic() < began + 1.2:
            try:
                (await limits.admit(who, 20)).settle(15)
            except errors.RateLimited:
                await asyncio.sleep(0.01)
            else:
                used += 15
                await asyncio.sleep(0)

    async with (
        Limiter(minutes=RedisStore(server.url)) as first,
        Limiter(minutes=RedisStore(server.url)) as second,
    ):
        await asyncio.gather(*(ask(limits) for limits in (first, second) for _ in range(8)))
    exact = limit + limit / 60 * (time.monotonic() - began)
    assert used <= exact + limit / 10
    assert used > 0.9 * exact


async def test_redis_away_leaves_local_buckets_and_one_line_in_the_log(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    who = caller("away", tokens_per_minute=1000)
    async with Limiter(minutes=RedisStore(server.url)) as limits:
        (await limits.admit(who, 400)).settle(400)
        server.stop()
        for _ in range(6):
            (await limits.admit(who, 100)).settle(100)
        with pytest.raises(errors.RateLimited):
            await limits.admit(who, 200)
        assert limits.away
        server.start()
        await until(lambda: not limits.away)
        await asyncio.sleep(0.3)
        with pytest.raises(errors.RateLimited):
            await limits.admit(
                who, 500
            )  # What was used meanwhile counts, although Redis has lost its memory.
    assert sum("Redis does not answer" in record.message for record in caplog.records) == 1


ASK = Ask("k/tokens_per_minute", 1000, None, 0, 1, 1, 0, replicas=1)


async def test_the_first_question_after_a_restart_is_answered(server: Server) -> None:
    store = RedisStore(server.url)
    for ask in (
        lambda: store.exchange([ASK]),
        store.heartbeat,
        lambda: store.exchange([ASK]),
        store.leave,
    ):
        await store.heartbeat()
        server.stop()
        server.start()
        await ask()


async def test_an_exchange_that_fails_keeps_no_place_in_the_pool(server: Server) -> None:
    store = RedisStore(f"{server.url}?max_connections=2")
    admin = Redis.from_url(server.url)
    await admin.execute_command(
        "ACL", "SETUSER", "default", "-script"
    )  # It fails while it looks for its scripts.
    try:
        for _ in range(5):
            with pytest.raises(StoreAway, match="no permissions"):
                await store.exchange([ASK])
    finally:
        await admin.execute_command("ACL", "SETUSER", "default", "+script")
        await admin.aclose()
    await store.exchange([ASK])
    await store.heartbeat()
    await store.leave()


async def test_unused_tokens_go_back_at_the_end(server: Server) -> None:
    who = caller("end", tokens_per_minute=1000)
    async with Limiter(minutes=RedisStore(server.url)) as limits:
        (await limits.admit(who, 900)).settle(100)
    async with Limiter(minutes=RedisStore(server.url)) as limits:
        await limits.admit(who, 890)


def test_an_address_that_is_none_ends_the_start() -> None:
    with pytest.raises(errors.ConfigInvalid, match="redis://"):
        RedisStore("http://example.org")
