"""Histories as clients and frameworks write them:
what is taken, and what the chat template gets of it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from fakes import FakeCodec, ScriptedEngine
from harness import Harness, chat_body
from llm_runtime.contract import FiltersConfig, ServerConfig
from unit.runtime.tools.templates import QWEN

A = {"role": "user", "content": "a"}
B = {"role": "user", "content": "b"}


@pytest.fixture
async def api(run: Any) -> AsyncIterator[Harness]:
    async with run(ScriptedEngine(codec=FakeCodec(QWEN))) as harness:
        yield harness


async def told(api: Harness, *messages: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    """What the chat template gets."""
    response = await api.chat(messages=list(messages), **fields)
    assert response.status_code == 200, response.text
    return api.engine.codec.chats[-1]


@pytest.mark.parametrize(
    "empty",
    [{"content": None}, {}, {"content": []}, {"content": ""}, {"content": None, "tool_calls": []}],
    ids=["null", "absent", "no-parts", "no-text", "no-calls"],
)
async def test_an_assistant_that_said_nothing_said_an_empty_text(api: Harness, empty: Any) -> None:
    [_, assistant, _] = await told(api, A, {"role": "assistant", **empty}, B)
    assert assistant == {"role": "assistant", "content": ""}


@pytest.mark.parametrize("empty", [{"content": None}, {}, {"content": []}, {"content": ""}])
async def test_a_tool_that_returned_nothing_returned_an_empty_text(
    api: Harness, empty: Any
) -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": None}}
    assistant = {"role": "assistant", "content": None, "tool_calls": [call]}
    [_, called, result] = await told(
        api, A, assistant, {"role": "tool", "tool_call_id": "1", **empty}
    )
    assert called["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}
    assert result == {"role": "tool", "content": "", "tool_call_id": "1", "name": "f"}


async def test_a_refusal_is_what_the_assistant_said(api: Harness) -> None:
    parts = [{"type": "refusal", "refusal": "no"}]
    for refused in (
        {"content": None, "refusal": "no"},
        {"content": "", "refusal": "no"},
        {"content": parts},
    ):
        assert (await told(api, A, {"role": "assistant", **refused}, B))[1]["content"] == "no"
    both = {"role": "assistant", "content": "well", "refusal": "no"}
    assert (await told(api, A, both, B))[1]["content"] == "well"


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
async def test_a_name_goes_to_the_template_with_every_role(api: Harness, role: str) -> None:
    named = {"role": role, "name": "Agent Smith", "content": "x"}
    assert (await told(api, named, A))[0]["name"] == "Agent Smith"
    assert "name" not in (await told(api, {**named, "name": ""}, A))[0]


async def test_a_tools_name_may_hold_dots_and_blanks(api: Harness) -> None:
    result = {"role": "tool", "tool_call_id": "1", "name": "mcp.files / read", "content": "x"}
    assert (await told(api, A, result))[-1]["name"] == "mcp.files / read"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
async def test_thoughts_reach_the_template_by_one_name(api: Harness, field: str) -> None:
    for thoughts in ("so", [{"type": "text", "text": "so"}]):
        [_, assistant, _] = await told(
            api, A, {"role": "assistant", "content": "x", field: thoughts}, B
        )
        assert assistant == {"role": "assistant", "content": "x", "reasoning_content": "so"}
    for nothing in ("", [], {"effort": "low"}, 5):
        [_, assistant, _] = await told(
            api, A, {"role": "assistant", "content": "x", field: nothing}, B
        )
        assert assistant == {"role": "assistant", "content": "x"}


async def test_a_part_that_thinks_is_no_text(api: Harness) -> None:
    parts = [
        {"type": "thinking", "thinking": "so", "signature": "s"},
        {"type": "text", "text": "x"},
    ]
    assert (await told(api, A, {"role": "assistant", "content": parts}, B))[1] == {
        "role": "assistant", "content": "x", "reasoning_content": "so",
    }  # fmt: skip


async def test_text_parts_are_lines(api: Harness) -> None:
    parts = [
        {"type": "text", "text": "Say", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "hi"},
    ]
    for role in ("system", "user", "assistant"):
        assert (await told(api, {"role": role, "content": parts}, B))[0]["content"] == "Say\nhi"
    result = {"role": "tool", "tool_call_id": "1", "content": parts}
    assert (await told(api, A, result))[-1]["content"] == "Say\nhi"


async def test_an_answer_as_litellm_hands_it_back_is_taken(api: Harness) -> None:
    answered = (await api.chat()).json()["choices"][0]["message"]
    extended = {
        **answered, "provider_specific_fields": {"refusal": None}, "function_call": None, "audio": None,
        "annotations": [], "images": [], "id": "msg_1", "is_error": False,
    }  # fmt: skip
    assert (await told(api, A, extended, B))[1] == {"role": "assistant", "content": "Hello there!"}


async def test_what_is_written_on_calls_and_tools_changes_nothing(api: Harness) -> None:
    function = {"name": "f", "arguments": "{}", "parsed_arguments": {"a": 1}}
    call = {
        "id": "",
        "index": 0,
        "type": "function",
        "function": function,
        "extra_content": {"google": {}},
    }
    tool = {
        "type": "function",
        "cache_control": {},
        "function": {"name": "f", "returns": {}, "description": "d"},
    }
    result = {"role": "tool", "tool_call_id": "", "content": "x", "is_error": True}
    [_, called, answered] = await told(
        api, A, {"role": "assistant", "tool_calls": [call]}, result, tools=[tool]
    )
    plain = {"id": "", "type": "function", "function": {"name": "f", "arguments": {}}}
    assert (called["tool_calls"], answered["name"]) == ([plain], "f")
    assert api.engine.codec.tools[-1][0]["function"].keys() == {"name", "description", "parameters"}


async def test_a_person_without_content_is_refused(api: Harness) -> None:
    for message in (
        {"role": "user"},
        {"role": "user", "content": None},
        {"role": "system", "text": "x"},
    ):
        error = (await api.chat(messages=[message])).json()["error"]
        assert error["param"] == "messages[0].content"


async def test_options_reach_the_template(api: Harness) -> None:
    options = api.engine.codec.options
    await told(
        api, A, chat_template_kwargs={"enable_thinking": False, "k": [1]}, reasoning_effort="low"
    )
    assert options[-1] == {"reasoning_effort": "low", "enable_thinking": False, "k": [1]}
    await told(api, A, reasoning_effort="none")
    assert options[-1] == {"reasoning_effort": "none", "enable_thinking": False}
    await told(api, A, reasoning_effort="none", chat_template_kwargs={"enable_thinking": True})
    assert options[-1]["enable_thinking"] is True


async def test_options_decide_an_answer_and_so_the_cache(run: Any) -> None:
    async with run() as api:
        first = await api.client.post(
            "/v1/chat/completions", json=chat_body(), headers={"Idempotency-Key": "k"}
        )
        other = chat_body(chat_template_kwargs={"enable_thinking": False})
        second = await api.client.post(
            "/v1/chat/completions", json=other, headers={"Idempotency-Key": "k"}
        )
    assert (first.status_code, second.json()["error"]["code"]) == (200, "idempotency_key_reused")


async def test_thoughts_and_options_count_as_characters_and_are_filtered(run: Any) -> None:
    thoughts = {"role": "assistant", "content": "x", "reasoning_content": "mail me@example.org"}
    async with run(server=ServerConfig(filters=FiltersConfig(pii="Mask"))) as api:
        assert "me@example.org" not in str(
            await told(api, A, thoughts, chat_template_kwargs={"a": "me@example.org"})
        )
        assert api.engine.codec.options[-1] == {"a": "[EMAIL]"}
        for fields in (
            {"messages": [A, {**thoughts, "reasoning_content": "x" * 40_000}]},
            {"messages": [{**A, "name": "x" * 40_000}]},
            {"chat_template_kwargs": {"documents": "x" * 40_000}},
        ):
            assert (await api.chat(**fields)).json()["error"]["code"] == "string_above_max_length"
