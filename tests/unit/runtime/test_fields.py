"""docs/fields.md: every value in its tables is sent,
and every field that the code knows is in them."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeCodec, ScriptedEngine
from harness import Harness
from llm_runtime.api.anthropic.content import InputBlock, InputMessage, TextBlock
from llm_runtime.api.anthropic.messages import (
    CountBody,
    MessageBody,
    Metadata,
    OutputConfig,
    OutputFormat,
    Thinking,
)
from llm_runtime.api.anthropic.offer import ClientTool, ToolChoice
from llm_runtime.api.body import Body
from llm_runtime.api.openai.chat import ChatBody
from llm_runtime.api.openai.common import StreamOptions
from llm_runtime.api.openai.completions import CompletionBody
from llm_runtime.api.openai.embeddings import EmbeddingsBody
from llm_runtime.api.openai.messages import CalledFunction, ChatMessage, Part, ToolCall
from llm_runtime.api.openai.offer import Function, OfferedTool
from llm_runtime.api.openai.tokens import DetokenizeBody, TokenizeBody
from llm_runtime.api.responses.body import (
    Reasoning,
    ResponseBody,
    TextConfig,
    TextFormat,
)
from llm_runtime.api.responses.body import StreamOptions as ResponseStreamOptions
from llm_runtime.api.responses.items import InputItem
from llm_runtime.api.responses.items import Part as ItemPart
from llm_runtime.api.responses.offer import AllowedTool, FunctionTool
from llm_runtime.api.responses.offer import ToolChoice as ResponseToolChoice
from unit.runtime.test_embeddings import embedder
from unit.runtime.tools.templates import QWEN

DOC = Path(__file__).parents[3] / "docs" / "fields.md"
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
TOKENIZE = "/tokenize"
DETOKENIZE = "/detokenize"
MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"

Section = dict[tuple[str, str], str]
"""What becomes of a field with a value, which is JSON."""


def tables() -> dict[str, Section]:
    """Each section's rows, one for each field and value."""
    sections: dict[str, Section] = {}
    for line in DOC.read_text().splitlines():
        if line.startswith("## "):
            section = sections.setdefault(line.removeprefix("## "), {})
        elif line.startswith("| `") and line.count(" | ") == 3:
            fields, values, fate, _ = (cell.strip() for cell in line.strip("|").split("|"))
            for field in re.findall(r"`([^`]+)`", fields):
                section |= {(field, value): fate for value in re.findall(r"`([^`]*)`", values)}
    return {name: rows for name, rows in sections.items() if rows}


TABLES = tables()


def chat() -> dict[str, Any]:
    """A conversation in which everything has its place."""
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    return {
        "model": "support-bot",
        "max_tokens": 5,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": "well", "tool_calls": [call]},
            {"role": "tool", "content": "rain", "tool_call_id": "call_1"},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }


def bare_chat() -> dict[str, Any]:
    return {"model": "support-bot", "messages": [{"role": "user", "content": "hi you"}]}


def text() -> dict[str, Any]:
    return {"model": "support-bot", "prompt": "hi you"}


def texts() -> dict[str, Any]:
    return {"model": "support-bot", "input": "hi you"}


def tokens() -> dict[str, Any]:
    return {"tokens": [7]}


def stream() -> dict[str, Any]:
    return {**bare_chat(), "stream": True, "stream_options": {}}


def bare_message() -> dict[str, Any]:
    return {**bare_chat(), "max_tokens": 5}


def plain_messages() -> dict[str, Any]:
    said = [("user", "hi"), ("assistant", "well"), ("user", "go on")]
    return {**bare_message(), "messages": [{"role": role, "content": text} for role, text in said]}


def message() -> dict[str, Any]:
    """A request to Anthropic's dialect in which everything has its place."""
    call = {"type": "tool_use", "id": "call_1", "name": "f", "input": {}}
    thought = {"type": "thinking", "thinking": "Hm"}
    rain = [{"type": "text", "text": "rain"}]
    result = {"type": "tool_result", "tool_use_id": "call_1", "content": rain}
    return {
        **bare_message(),
        "system": [{"type": "text", "text": "Be brief"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": [thought, {"type": "text", "text": "well"}, call]},
            {"role": "user", "content": [result]},
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "auto"},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "metadata": {},
    }


def formatted() -> dict[str, Any]:
    output = {"format": {"type": "json_schema", "schema": {}}}
    return {**bare_message(), "output_config": output}


def bare_response() -> dict[str, Any]:
    return {"model": "support-bot", "input": "hi you"}


def response() -> dict[str, Any]:
    """A request for a response in which everything has its place."""
    return {
        "model": "support-bot",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm"}]},
            {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
        ],
        "tools": [{"type": "function", "name": "f"}],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {},
        "reasoning": {},
        "stream": True,
        "stream_options": {},
    }


def allowing() -> dict[str, Any]:
    tools = [{"type": "function", "name": "f"}]
    choice = {"type": "allowed_tools", "mode": "auto", "tools": tools}
    return {**bare_response(), "tools": [dict(tool) for tool in tools], "tool_choice": choice}


def formatted_response() -> dict[str, Any]:
    text = {"format": {"type": "json_schema", "name": "x", "schema": {}}}
    return {**bare_response(), "text": text}


Place = tuple[type[Body], str, Callable[[], dict[str, Any]], list[Any]]
PLACES: dict[str, Place] = {
    "At the top of a chat completion": (ChatBody, CHAT, bare_chat, []),
    "In `stream_options`": (StreamOptions, CHAT, stream, ["stream_options"]),
    "In a message": (ChatMessage, CHAT, chat, ["messages", 1]),
    "In a part of a content": (Part, CHAT, chat, ["messages", 0, "content", 0]),
    "In a call": (ToolCall, CHAT, chat, ["messages", 1, "tool_calls", 0]),
    "In a called function": (
        CalledFunction,
        CHAT,
        chat,
        ["messages", 1, "tool_calls", 0, "function"],
    ),
    "In a tool": (OfferedTool, CHAT, chat, ["tools", 0]),
    "In the function of a tool": (Function, CHAT, chat, ["tools", 0, "function"]),
    "At the top of a text completion": (CompletionBody, TEXT, text, []),
    "At the top of an embeddings request": (EmbeddingsBody, EMBEDDINGS, texts, []),
    "At the top of a request for tokens": (TokenizeBody, TOKENIZE, bare_chat, []),
    "At the top of a request for a text": (DetokenizeBody, DETOKENIZE, tokens, []),
    "At the top of a message request": (MessageBody, MESSAGES, bare_message, []),
    "In a message of a message request": (InputMessage, MESSAGES, plain_messages, ["messages", 1]),
    "In a block of text": (InputBlock, MESSAGES, message, ["messages", 0, "content", 0]),
    "In a thought": (InputBlock, MESSAGES, message, ["messages", 1, "content", 0]),
    "In a call of a message": (InputBlock, MESSAGES, message, ["messages", 1, "content", 2]),
    "In a result": (InputBlock, MESSAGES, message, ["messages", 2, "content", 0]),
    "In a text of `system` or of a result": (TextBlock, MESSAGES, message, ["system", 0]),
    "In a tool of a message request": (ClientTool, MESSAGES, message, ["tools", 0]),
    "In `tool_choice`": (ToolChoice, MESSAGES, message, ["tool_choice"]),
    "In `thinking`": (Thinking, MESSAGES, message, ["thinking"]),
    "In `output_config`": (OutputConfig, MESSAGES, formatted, ["output_config"]),
    "In `output_config.format`": (OutputFormat, MESSAGES, formatted, ["output_config", "format"]),
    "In `metadata`": (Metadata, MESSAGES, message, ["metadata"]),
    "At the top of a count of tokens": (CountBody, COUNT, bare_chat, []),
    "At the top of a response request": (ResponseBody, RESPONSES, bare_response, []),
    "In a message item": (InputItem, RESPONSES, response, ["input", 0]),
    "In a part of an item": (ItemPart, RESPONSES, response, ["input", 0, "content", 0]),
    "In a reasoning item": (InputItem, RESPONSES, response, ["input", 1]),
    "In a call of the input": (InputItem, RESPONSES, response, ["input", 2]),
    "In an output of a call": (InputItem, RESPONSES, response, ["input", 3]),
    "In a tool of a response request": (FunctionTool, RESPONSES, response, ["tools", 0]),
    "In the `tool_choice` of a response request": (
        ResponseToolChoice,
        RESPONSES,
        response,
        ["tool_choice"],
    ),
    "In an allowed tool": (AllowedTool, RESPONSES, allowing, ["tool_choice", "tools", 0]),
    "In `text`": (TextConfig, RESPONSES, response, ["text"]),
    "In `text.format`": (TextFormat, RESPONSES, formatted_response, ["text", "format"]),
    "In `reasoning`": (Reasoning, RESPONSES, response, ["reasoning"]),
    "In the `stream_options` of a response request": (
        ResponseStreamOptions,
        RESPONSES,
        response,
        ["stream_options"],
    ),
}
AS_ANOTHER: dict[type[Body], str] = {
    CompletionBody: "At the top of a chat completion",
    CountBody: "At the top of a message request",
    TokenizeBody: "At the top of a chat completion",
}
"""Bodies whose table says only how they differ from another one."""


def at(body: Any, steps: list[Any]) -> Any:
    for step in steps:
        body = body[step]
    return body


def named(steps: list[Any], field: str) -> str:
    """`messages[1].prefix`, as errors have it."""
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in [*steps, field])
    return path.removeprefix(".")


def cases() -> Iterator[Any]:
    for section, rows in TABLES.items():
        for (field, value), fate in rows.items():
            yield pytest.param(section, field, value, fate, id=f"{section}-{field}-{value}")


@pytest.fixture
async def api(run: Any, request: pytest.FixtureRequest) -> Any:
    place = PLACES[request.getfixturevalue("section")]
    engine = embedder() if place[1] == EMBEDDINGS else ScriptedEngine(codec=FakeCodec(QWEN))
    async with run(engine) as harness:
        yield harness


@pytest.mark.parametrize(("section", "field", "value", "fate"), list(cases()))
async def test_a_field_is_taken_ignored_or_refused_as_the_table_says(
    api: Harness, section: str, field: str, value: str, fate: str
) -> None:
    model, path, body_of, steps = PLACES[section]
    plain = body_of()
    told = body_of()
    at(told, steps)[field] = json.loads(value)
    if model in (Part, ItemPart) and field in ("refusal", "thinking"):
        at(told, steps)["type"] = field
    response = await api.client.post(path, json=told)
    if fate == "refused":
        error = response.json()["error"]
        # Anthropic's errors have no field but the message, which begins with it.
        param = error["param"] if "param" in error else error["message"].partition(":")[0]
        assert (response.status_code, param) == (400, named(steps, field)), response.text
        assert api.engine.requests == []
        return
    assert response.status_code == 200, response.text
    if fate == "ignored":
        assert (await api.client.post(path, json=plain)).status_code == 200
        first, second = api.engine.requests
        codec = api.engine.codec
        assert (first.prompt_token_ids, first.sampling) == (
            second.prompt_token_ids,
            second.sampling,
        )
        for asked in (codec.chats, codec.tools, codec.options):
            assert asked[:1] == asked[1:], "the model was told something else"


@pytest.mark.parametrize("section", PLACES)
def test_every_field_that_the_code_knows_is_in_its_table(section: str) -> None:
    model = PLACES[section][0]
    known = (
        {field.alias or name for name, field in model.model_fields.items()}
        | model.no_effect.keys()
        | model.hints
    )
    tables = [other for other, place in PLACES.items() if place[0] is model]
    if model in AS_ANOTHER:
        tables.append(AS_ANOTHER[model])
    told = {field for other in tables for field, _ in TABLES[other]}
    assert known <= told, known - told


def test_every_table_is_tried() -> None:
    assert TABLES.keys() == PLACES.keys()
    assert {fate for rows in TABLES.values() for fate in rows.values()} == {
        "taken",
        "ignored",
        "refused",
    }
