"""Streams over a real port: order, heartbeats, clients that leave, time that runs out."""

import asyncio
import json
from typing import Any

import pytest

from fakes import ScriptedEngine
from harness import KEY, chat_body, events
from llm_runtime.api.anthropic.answer import PING
from llm_runtime.contract import ServerConfig
from llm_runtime.stream import HEARTBEAT, EventStream, merge
from waiting import eventually, until

SLOW = 0.02


def slow(words: int = 500) -> ScriptedEngine:
    return ScriptedEngine(script=["w "] * words, token_seconds=SLOW, max_model_length=10_000)


async def test_events_arrive_one_by_one(live: Any) -> None:
    with live(ScriptedEngine(token_seconds=0.1)) as api:
        loop = asyncio.get_running_loop()
        arrivals = []
        async with api.client.stream(
            "POST", "/v1/chat/completions", json=chat_body(stream=True)
        ) as response:
            async for line in response.aiter_lines():
                if line:
                    arrivals.append(loop.time())
    assert len(arrivals) == 6
    assert arrivals[3] - arrivals[0] > 0.15


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_the_engine_at_once(live: Any, stream: bool) -> None:
    with live(slow()) as api:
        asking = asyncio.create_task(
            api.client.post("/v1/chat/completions", json=chat_body(stream=stream, n=2))
        )
        await until(
            lambda: [choice.position > 1 for choice in list(api.engine.running)] == [True, True]
        )
        asking.cancel()
        await asyncio.wait([asking])
        eventually(lambda: len(api.engine.cancelled) == 2 and api.rows)
        [row] = api.rows
    assert row.outcome == "cancelled"
    assert 0 < row.completion_tokens < 200
    assert api.engine.running == set()


async def test_time_that_runs_out_is_a_503_or_an_event(run: Any) -> None:
    async with run(slow(), server=ServerConfig(request_timeout_seconds=0.1)) as api:
        whole = await api.chat()
        streamed = await api.chat(stream=True)
    error = whole.json()["error"]
    assert (whole.status_code, error["code"], whole.headers["x-should-retry"]) == (
        503,
        "request_timeout",
        "false",
    )
    assert events(streamed.text)[-1]["error"]["code"] == "request_timeout"
    assert "[DONE]" not in streamed.text
    assert [row.outcome for row in api.rows] == ["timeout", "timeout"]
    assert len(api.engine.cancelled) == 2


@pytest.mark.parametrize(
    ("marks", "heartbeat", "done"),
    [
        ({}, HEARTBEAT, b"data: [DONE]\n\n"),
        ({"heartbeat": PING, "done": b""}, b'event: ping\ndata: {"type":"ping"}\n\n', b""),
    ],
    ids=["comments", "Anthropic's pings"],
)
async def test_silence_is_filled(marks: Any, heartbeat: bytes, done: bytes) -> None:
    async def late() -> Any:
        await asyncio.sleep(0.1)
        yield b"data: late\n\n"

    stream = EventStream(
        Owner(),
        late(),
        fault=lambda _: b"",
        timeout_seconds=5,
        heartbeat_seconds=0.03,
        **marks,
    )
    sent = await send(stream)
    assert sent[:2] == [heartbeat, heartbeat]
    assert sent[-2:] == [b"data: late\n\n", done]


async def test_an_unforeseen_fault_in_a_stream_is_an_event_not_a_cut() -> None:
    async def faulty() -> Any:
        yield b"data: 1\n\n"
        raise RuntimeError("secret")

    def fault(refusal: Any) -> bytes:
        return f"data: {json.dumps({'error': refusal.message})}\n\n".encode()

    sent = await send(EventStream(Owner(), faulty(), fault=fault, timeout_seconds=5))
    assert sent[0] == b"data: 1\n\n"
    assert b"error" in sent[-1]
    assert b"secret" not in sent[-1]


class Owner:
    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


async def send(stream: EventStream) -> list[bytes]:
    sent: list[bytes] = []

    async def collect(message: Any) -> None:
        if message["type"] == "http.response.body":
            sent.append(message["body"])

    await stream({"type": "http"}, asyncio.Event().wait, collect)  # type: ignore[arg-type]
    return sent


async def test_merge_keeps_each_sources_order_and_raises_what_a_source_raises() -> None:
    class Numbers:
        def __init__(self, *bursts: list[int] | Exception) -> None:
            self.bursts = [*bursts, []]

        async def take(self) -> list[int]:
            await asyncio.sleep(0)
            burst = self.bursts.pop(0)
            if isinstance(burst, Exception):
                raise burst
            return burst

    merged = [item async for item in merge([Numbers([0], [1, 2]), Numbers([0], [1])])]
    assert [number for index, burst in merged for number in burst if index == 0] == [0, 1, 2]
    assert [number for index, burst in merged for number in burst if index == 1] == [0, 1]
    with pytest.raises(ValueError, match="odd"):
        async for _ in merge([Numbers([1]), Numbers([1], ValueError("odd"))]):
            pass


async def test_openais_own_client_is_content(live: Any) -> None:
    openai = pytest.importorskip("openai")
    with live() as api:
        client = openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key=KEY, max_retries=0)
        ask: dict[str, Any] = chat_body()
        answer = await client.chat.completions.create(**ask, n=2, logprobs=True, top_logprobs=2)
        assert [choice.message.content for choice in answer.choices] == ["Hello there!"] * 2
        assert answer.choices[0].logprobs.content[0].top_logprobs[1].token == "t1"
        text = ""
        chunks = await client.chat.completions.create(
            **ask, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in chunks:
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
        assert (text, chunk.usage.total_tokens) == ("Hello there!", 6)
        completion = await client.completions.create(
            model="support-bot", prompt=["a", "b"], logprobs=1
        )
        assert [choice.text for choice in completion.choices] == ["Hello there!"] * 2
        assert [model.id async for model in client.models.list()] == ["support-bot"]
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(**{**ask, "model": "other"})
        with pytest.raises(openai.BadRequestError, match="tools"):
            await client.chat.completions.create(
                **ask, tools=[{"type": "function", "function": {"name": "f"}}]
            )
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="wrong").models.list()
        await client.close()


async def test_openais_own_client_hears_of_a_fault_in_a_stream(live: Any) -> None:
    openai = pytest.importorskip("openai")
    with live(slow(), server=ServerConfig(request_timeout_seconds=0.1)) as api:
        client = openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key=KEY, max_retries=0)
        with pytest.raises(openai.APIError, match="not complete after"):
            async for _ in await client.chat.completions.create(**chat_body(), stream=True):
                pass
        await client.close()
