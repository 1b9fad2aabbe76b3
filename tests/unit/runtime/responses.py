"""What the tests of `/v1/responses` share."""

import json
from typing import Any

import httpx

from fakes import FakeCodec, ScriptedEngine
from harness import Harness
from llm_runtime.contract import SessionsConfig
from llm_runtime.sessions import Responses
from unit.runtime.tools.templates import QWEN

PATH = "/v1/responses"
THINKING = QWEN + "{# </think> #}"
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = ["<tool_call>\n", '{"name": "weather", "arguments": ', '{"city": "Kiel"}}', "\n</tool_call>"]
CALLED = {
    "type": "function_call",
    "call_id": "call_1",
    "name": "weather",
    "arguments": '{"city": "Kiel"}',
}
RAIN = {"type": "function_call_output", "call_id": "call_1", "output": "rain"}


def engine(script: Any = ("Hello", " there", "!"), template: str = QWEN) -> ScriptedEngine:
    return ScriptedEngine(script, codec=FakeCodec(template), max_model_length=4096)


def keeping(api: Harness) -> Responses:
    """Let the server keep responses, in memory."""
    store = Responses(SessionsConfig())
    api.put(responses=store)
    return store


async def ask(api: Harness, **fields: Any) -> httpx.Response:
    return await api.client.post(PATH, json={"model": "support-bot", "input": "hi you", **fields})


async def answered(api: Harness, **fields: Any) -> dict[str, Any]:
    answer = await ask(api, **fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def told(api: Harness, **fields: Any) -> list[dict[str, Any]]:
    """The conversation that the model reads."""
    await answered(api, **fields)
    conversation: list[dict[str, Any]] = api.engine.codec.chats[-1]
    return conversation


async def refused(api: Harness, **fields: Any) -> tuple[str | None, str]:
    """(field, sentence) of a request that must not be answered."""
    answer = await ask(api, **fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    return error["param"], error["message"]


def named(text: str) -> list[dict[str, Any]]:
    """The events of a stream. Each is named after its type, and they are numbered."""
    found = []
    for event in text.strip().split("\n\n"):
        name, _, data = event.partition("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(
        range(found[0]["sequence_number"], found[0]["sequence_number"] + len(found))
    )
    return found
