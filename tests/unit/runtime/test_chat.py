"""/v1/chat: conversations with and without a session."""

from typing import Any

import pytest

from fakes import FakeCodec, ScriptedEngine
from harness import Harness, events
from llm_runtime.request import FinishReason, Message

HI = [{"role": "user", "content": "hi you"}]


class Remembered:
    """Sessions in a dictionary."""

    def __init__(self) -> None:
        self.said: dict[tuple[str, str], list[Message]] = {}

    async def history(self, tenant: str, session_id: str) -> list[Message]:
        return list(self.said.get((tenant, session_id), ()))

    async def append(self, tenant: str, session_id: str, messages: list[Message]) -> None:
        self.said.setdefault((tenant, session_id), []).extend(messages)


async def chat(api: Harness, **fields: Any) -> Any:
    return await api.client.post("/v1/chat", json={"messages": HI, **fields})


async def test_chat_answers_in_its_own_form(api: Harness) -> None:
    assert (await chat(api, max_tokens=10, temperature=0.7)).json() == {
        "message": {"role": "assistant", "content": "Hello there!"},
        "model": "support-bot",
        "tokens_generated": 3,
        "cached": False,
    }
    assert [(row.endpoint, row.completion_tokens) for row in api.rows] == [("/v1/chat", 3)]


async def test_chat_streams_the_events_of_v1_stream(api: Harness) -> None:
    response = await chat(api, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    last = {
        "text": "",
        "finish_reason": "stop",
        "model": "support-bot",
        "tokens_generated": 3,
        "cached": False,
    }
    assert events(response.text) == [
        {"text": "Hello"},
        {"text": " there"},
        {"text": "!"},
        last,
        "[DONE]",
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_session_remembers_both_sides(api: Harness, stream: bool) -> None:
    api.put(sessions=Remembered())
    await chat(api, session_id="s", stream=stream)
    await chat(api, session_id="s", messages=[{"role": "user", "content": "more"}], stream=stream)
    await chat(api, session_id="other")
    told = [[message["content"] for message in messages] for messages in api.engine.codec.chats]
    assert told == [["hi you"], ["hi you", "Hello there!", "more"], ["hi you"]]


async def test_a_turn_that_fails_is_not_remembered(run: Any) -> None:
    async with run(ScriptedEngine(ending=FinishReason.ERROR)) as api:
        remembered = Remembered()
        api.put(sessions=remembered)
        whole = await chat(api, session_id="s")
        streamed = await chat(api, session_id="s", stream=True)
    assert (whole.status_code, events(streamed.text)[-1]["error"]) == (500, "internal_server_error")
    assert remembered.said == {}


async def test_without_sessions_a_session_id_is_refused(api: Harness) -> None:
    response = await chat(api, session_id="s")
    assert (response.status_code, response.json()["details"]["field"]) == (400, "session_id")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
        ({"session_id": "x" * 257}, "session_id"),
        ({"session_id": ""}, "session_id"),
        ({"n": 2}, "n"),
    ],
)
async def test_chat_names_the_field_it_refuses(api: Harness, fields: Any, field: str) -> None:
    response = await chat(api, **fields)
    assert (response.status_code, response.json()["details"]["field"]) == (400, field)


async def test_an_adapter_may_be_asked_for_in_every_dialect_with_a_model(run: Any) -> None:
    name = "support-bot:legal"
    async with run(ScriptedEngine(adapters=("legal",))) as api:
        answers = [
            await chat(api, model=name),
            await api.client.post("/v1/generate", json={"prompt": "a", "model": name}),
            await api.client.post("/generate", json={"prompt": "a", "model_name": name}),
        ]
    assert [request.adapter for request in api.engine.requests] == ["legal"] * 3
    assert [answer.json()["model"] for answer in answers[:2]] == [name] * 2


@pytest.mark.parametrize("stream", [False, True])
async def test_thoughts_are_no_part_of_what_was_said_nor_remembered(run: Any, stream: bool) -> None:
    template = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    script = ["<think>", "\nHm", ".</th", "ink>", "\n\nHello", "!"]
    async with run(ScriptedEngine(script, codec=FakeCodec(template))) as api:
        api.engine.codec.control_ids = {"<think>": 7, "</think>": 8, "<|end|>": 9}
        remembered = Remembered()
        api.put(sessions=remembered)
        answer = await chat(api, session_id="s", stream=stream)
        assert api.engine.requests[-1].shown_token_ids == (7, 8)
    if stream:
        parts = events(answer.text)[:-1]
        said = {
            name: "".join(part.get(name) or "" for part in parts)
            for name in ("text", "reasoning_content")
        }
        assert said == {"text": "Hello!", "reasoning_content": "Hm."}
    else:
        expected = {"role": "assistant", "content": "Hello!", "reasoning_content": "Hm."}
        assert answer.json()["message"] == expected
    [told] = remembered.said.values()
    assert told[-1] == {"role": "assistant", "content": "Hello!"}
