"""What is refused costs little, and nobody else anything:
it is counted, bounded and slowed down before the work."""

import asyncio
import socket
import threading
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from fakes import FakeCodec, ScriptedEngine
from harness import KEY, Harness
from llm_runtime import pipeline
from llm_runtime.api import guard, throttle
from llm_runtime.api.throttle import Bodies, Pace
from llm_runtime.contract import Tier
from llm_runtime.limits import Limiter
from llm_runtime.request import Message
from waiting import eventually, until


class WatchedCodec(FakeCodec):
    """Knows in which threads it encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[str] = []

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        self.threads.append(threading.current_thread().name)
        return super().encode(text)[:4]


def limited(api: Harness, **limits: int | None) -> None:
    limiter = Limiter(slot_timeout_seconds=0.05)
    api.put(limiter=limiter)
    api.server.serving.pipeline.limiter = limiter
    tiers = api.server.callers.tiers
    tiers._configured["standard"] = Tier.model_validate({"name": "standard", **limits})
    tiers._tiers = tiers._with(tiers._above)
    tiers._callers.clear()


def conversation(count: int) -> list[Message]:
    return [{"role": "user", "content": "a"}] * count


async def test_a_used_up_limit_is_told_before_the_body_is_read(run: Any, live: Any) -> None:
    with live() as api:
        limited(api, requests_per_minute=1)
        assert (await api.chat()).status_code == 200
        url = httpx.URL(api.url)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n"
            "Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
        )
        with socket.create_connection((url.host, url.port), timeout=20) as connection:
            connection.sendall(head.encode())  # and not one byte of the body
            answer = connection.recv(65536)
        await api.client.aclose()
    assert answer.startswith(b"HTTP/1.1 429")


@pytest.mark.parametrize(
    "fields",
    [
        {"no_such_field": 1},
        {"model": "another"},
        {"messages": conversation(2049)},
        {"messages": conversation(1500)},
        {"messages": [{"role": "user", "content": "word " * 100}]},
    ],
)
async def test_a_refused_request_has_counted(run: Any, fields: dict[str, Any]) -> None:
    async with run() as api:
        limited(api, requests_per_minute=2)
        refused = [(await api.chat(**fields)).status_code for _ in range(3)]
    assert refused[0] in (400, 404)
    assert refused == [refused[0], refused[0], 429]


async def test_every_prompt_of_a_batch_counts_once(run: Any) -> None:
    async with run() as api:
        limited(api, requests_per_minute=3)
        assert (await api.complete(prompt=["a", "b", "c"])).status_code == 200
        assert (await api.complete(prompt="a")).status_code == 429
        limited(api, requests_per_minute=3)
        told = await api.complete(prompt=["a", "b", "c", "d"])
    assert (told.status_code, told.headers["x-should-retry"]) == (429, "false")


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (conversation(31_000), "at most 2048"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}] * 20_000}], "at most 2048"),
        (conversation(1001), "string too long"),
    ],
)
async def test_a_great_many_messages_or_parts_are_never_encoded(
    run: Any, messages: Any, problem: str
) -> None:
    async with run() as api:
        told = await api.chat(messages=messages)
        assert (told.status_code, api.engine.codec.chats) == (400, [])
    assert problem in told.json()["error"]["message"]


async def test_a_long_prompt_is_prepared_in_a_thread_and_a_short_one_at_once(run: Any) -> None:
    codec = WatchedCodec()
    async with run(ScriptedEngine(codec=codec)) as api:
        for prompt in ("short", "long " * 1000):
            assert (await api.complete(prompt=prompt)).status_code == 200
    main = threading.main_thread().name
    assert codec.threads[0] == main
    assert codec.threads[1] != main


async def test_after_a_slow_chat_template_even_short_prompts_are_prepared_in_a_thread(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = WatchedCodec()
    async with run(ScriptedEngine(codec=codec)) as api:
        for slow in (60, -1):  # Whatever it takes is slow.
            monkeypatch.setattr(pipeline, "SLOW_SECONDS", slow)
            assert (await api.chat()).status_code == 200
    main = threading.main_thread().name
    assert (codec.threads[0] == main, codec.threads[1] == main) == (True, False)


async def test_a_large_body_is_parsed_in_a_thread(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[str]()
    parse = guard.parse

    def watched(*args: Any) -> Any:
        seen.append(threading.current_thread().name)
        return parse(*args)

    monkeypatch.setattr(guard, "parse", watched)
    async with run() as api:
        await api.chat()
        await api.chat(messages=[{"role": "user", "content": "a" * 100_000}])
    main = threading.main_thread().name
    assert seen[0] == main
    assert seen[1] != main


async def test_who_waits_for_a_place_has_nothing_encoded_yet(run: Any) -> None:
    engine = ScriptedEngine(token_seconds=0.02, script=["x"] * 40)
    async with run(engine) as api:
        limited(api, max_concurrent=1)
        first = asyncio.create_task(api.complete(prompt="a"))
        await until(lambda: engine.running)
        engine.codec.words.clear()
        assert (await api.complete(prompt="another")).status_code == 429
        assert "another" not in engine.codec.words.values()
        await first


async def test_a_long_prompt_that_asks_for_more_than_is_left_is_never_encoded(run: Any) -> None:
    codec = WatchedCodec()
    async with run(ScriptedEngine(codec=codec)) as api:
        limited(api, tokens_per_minute=20)
        assert (await api.complete(prompt="a", max_tokens=15)).status_code == 200
        told = await api.complete(prompt="long " * 1000, max_tokens=19)
    assert (told.status_code, told.json()["error"]["code"]) == (429, "tokens_per_minute")
    assert len(codec.threads) == 1


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/models", 401), ("/info", 200), ("/status", 200)]
)
async def test_wrong_keys_of_one_address_are_answered_ever_slower_and_right_ones_at_once(
    run: Any, monkeypatch: pytest.MonkeyPatch, path: str, status: int
) -> None:
    waited = list[float]()

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(throttle, "asyncio", SimpleNamespace(sleep=sleep))
    async with run() as api:
        for _ in range(12):
            answer = await api.client.get(path, headers={"X-API-Key": "guess"})
            assert answer.status_code == status
        slowed = list(waited)
        assert (await api.chat()).status_code == 200
        assert (await api.client.get("/info", headers={"X-API-Key": ""})).status_code == 200
    assert len(slowed) == 2
    assert 0 < slowed[0] < slowed[1]
    assert waited == slowed


def test_refusals_leave_at_their_pace_and_no_client_waits_for_another() -> None:
    now = 100.0
    pace = Pace(rate=10, burst=5, longest_seconds=3, clock=lambda: now)
    assert [pace.delay("a") for _ in range(5)] == [0] * 5
    assert [round(pace.delay("a"), 3) for _ in range(3)] == [0.1, 0.2, 0.3]
    assert pace.delay("b") == 0
    assert max(pace.delay("a") for _ in range(100)) == pytest.approx(3)
    now += 60
    assert pace.delay("a") == 0


async def test_large_bodies_of_one_caller_wait_for_each_other_and_leave_nothing_behind() -> None:
    bodies = Bodies()
    inside = 0
    most = 0

    async def body(caller: str) -> None:
        nonlocal inside, most
        async with bodies.place(caller, 5):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(body("a") for _ in range(50)))
    assert most == throttle.BODIES
    assert not bodies._places


def test_unfinished_bodies_of_one_key_take_no_memory_without_bound(live: Any) -> None:
    """So many are read; of the others a connection holds what came before anybody asked for it."""
    with live() as api:
        url = httpx.URL(api.url)
        held = list[socket.socket]()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n"
            "Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
        )
        try:
            for _ in range(throttle.BODIES + 20):
                held.append(socket.create_connection((url.host, url.port), timeout=20))
                held[-1].sendall(head.encode() + b" " * 1000)
            places = api.server.throttle.bodies._places
            eventually(lambda: places and next(iter(places.values())).waiting == 20)
            [slots] = places.values()
            assert slots.running == throttle.BODIES
        finally:
            for connection in held:
                connection.close()
