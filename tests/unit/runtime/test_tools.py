"""Tools over HTTP: what reaches the template, what counts as a call, what is refused."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fakes import FakeCodec, ScriptedEngine
from harness import Harness, chat_body, events
from unit.runtime.tools.templates import NO_TOOLS, QWEN, UNKNOWN

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
CALL = [
    "Sure",
    ".\n",
    "<tool_call>\n",
    '{"name": "weather", "arguments": ',
    '{"city": "Kiel"}}',
    "\n</tool_call>",
]
ASKED = [{"role": "user", "content": "weather in Kiel"}]


def engine(script: list[str] | None = None, template: str = QWEN, **options: Any) -> ScriptedEngine:
    return ScriptedEngine(script or CALL, codec=FakeCodec(template), **options)


@pytest.fixture
async def caller(run: Any) -> AsyncIterator[Harness]:
    async with run(engine()) as api:
        yield api


async def test_a_call_becomes_tool_calls_with_text_around_it(caller: Harness) -> None:
    [choice] = (await caller.chat(tools=[WEATHER])).json()["choices"]
    [call] = choice["message"]["tool_calls"]
    assert call.pop("id").startswith("call_")
    assert call == {
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Kiel"}'},
    }
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Sure.", "tool_calls")
    assert caller.engine.codec.tools == [(WEATHER,)]


async def test_a_streamed_call_is_its_head_and_its_arguments(caller: Harness) -> None:
    chunks = events((await caller.chat(tools=[WEATHER], stream=True)).text)[:-1]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Sure."
    head, arguments = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert head.pop("id").startswith("call_")
    assert head == {
        "index": 0,
        "type": "function",
        "function": {"name": "weather", "arguments": ""},
    }
    assert arguments == {"index": 0, "function": {"arguments": '{"city": "Kiel"}'}}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_call_alone_has_no_content(run: Any) -> None:
    async with run(engine(CALL[2:])) as api:
        message = (await api.chat(tools=[WEATHER])).json()["choices"][0]["message"]
    assert message["content"] is None


async def test_every_choice_has_calls_of_its_own(caller: Harness) -> None:
    choices = (await caller.chat(tools=[WEATHER], n=2)).json()["choices"]
    assert len({choice["message"]["tool_calls"][0]["id"] for choice in choices}) == 2


async def test_tools_that_are_not_offered_are_not_called(caller: Harness) -> None:
    for fields in ({"tools": [WEATHER], "tool_choice": "none"}, {}, {"tools": []}):
        choice = (await caller.chat(**fields)).json()["choices"][0]
        assert "tool_calls" not in choice["message"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("".join(CALL), "stop")
    assert caller.engine.codec.tools == [()] * 3


@pytest.mark.parametrize(("tokens", "calls"), [(3, []), (4, [""]), (5, ['{"city": "Kiel"}'])])
async def test_of_a_call_that_is_cut_short_there_is_what_was_written(
    caller: Harness, tokens: int, calls: list[str]
) -> None:
    choice = (await caller.chat(tools=[WEATHER], max_tokens=tokens)).json()["choices"][0]
    found = [call["function"]["arguments"] for call in choice["message"].get("tool_calls", [])]
    assert (choice["finish_reason"], choice["message"]["content"].strip(), found) == (
        "length",
        "Sure.",
        calls,
    )
    chunks = events((await caller.chat(tools=[WEATHER], max_tokens=tokens, stream=True)).text)[:-1]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content") or "" for delta in deltas).strip() == "Sure."
    streamed = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert "".join(call["function"]["arguments"] for call in streamed) == "".join(calls)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


async def test_results_go_back_to_the_model_with_their_calls(caller: Harness) -> None:
    answered = (await caller.chat(tools=[WEATHER])).json()["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": answered["tool_calls"][0]["id"], "content": "rain"}
    response = await caller.chat(
        tools=[WEATHER], messages=[*ASKED, {**answered, "content": None}, result]
    )
    assert response.status_code == 200, response.text
    [_, call, told] = caller.engine.codec.chats[-1]
    assert call["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Kiel"}}
    assert call["content"] == ""
    assert told == {**result, "name": "weather"}


NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    ("fields", "bound"),
    [
        ({}, False),
        ({"tool_choice": "auto"}, False),
        ({"tool_choice": "required"}, True),
        ({"tool_choice": NAMED}, True),
        ({"tools": [{**WEATHER, "function": {**WEATHER["function"], "strict": True}}]}, True),  # type: ignore[dict-item]
        ({"response_format": {"type": "json_object"}}, True),
    ],
)
async def test_only_what_must_be_is_enforced(caller: Harness, fields: Any, bound: bool) -> None:
    response = await caller.chat(**{"tools": [WEATHER], **fields})
    assert response.status_code == 200, response.text
    constraint = caller.engine.requests[-1].sampling.constraint
    assert (constraint is not None and constraint.kind == "grammar") is bound


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [WEATHER] * 129}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice.mode"),
        ({"tools": [WEATHER], "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"tools": [WEATHER], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"functions": [{"name": "x"}]}, "functions"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ],
)
async def test_tools_that_make_no_sense_are_refused_by_name(
    caller: Harness, fields: Any, param: str
) -> None:
    response = await caller.chat(**fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


@pytest.mark.parametrize(
    "arguments", ["{", "[]", "5", '{"a":' * 100 + "1" + "}" * 100, '{"a": "\\ud800"}']
)
async def test_arguments_that_are_no_object_go_back_as_the_model_wrote_them(
    caller: Harness, arguments: str
) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    response = await caller.chat(messages=[*ASKED, {"role": "assistant", "tool_calls": [call]}])
    assert response.status_code == 200, response.text
    assert caller.engine.codec.chats[-1][1]["tool_calls"][0]["function"]["arguments"] == arguments


async def test_a_schema_too_deep_to_be_written_is_refused(caller: Harness) -> None:
    for depth in (70, 900, 5000):
        deep = '{"items":' * depth + "{}" + "}" * depth
        body = json.dumps(chat_body(tools=[WEATHER])).replace(
            '"required": ["city"]', f'"x": {deep}'
        )
        response = await caller.client.post(
            "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 400, response.text[:300]


@pytest.mark.parametrize("template", ["", NO_TOOLS])
async def test_a_model_that_knows_no_tools_says_so(run: Any, template: str) -> None:
    result = [*ASKED, {"role": "tool", "tool_call_id": "1", "content": "x"}]
    async with run(engine(template=template)) as api:
        offered = await api.chat(tools=[WEATHER])
        told = await api.chat(messages=result)
    assert (offered.status_code, offered.json()["error"]["param"]) == (400, "tools")
    assert "knows no tools" in offered.json()["error"]["message"]
    assert (told.status_code, told.json()["error"]["param"]) == (400, "messages[1]")


async def test_calls_in_a_form_that_is_not_known_are_refused(run: Any) -> None:
    async with run(engine(template=UNKNOWN)) as api:
        error = (await api.chat(tools=[WEATHER])).json()["error"]
    assert error["param"] == "tools"
    assert "can't read" in error["message"]


async def test_tools_count_as_characters_of_the_prompt(caller: Harness) -> None:
    long = {"type": "function", "function": {"name": "f", "description": "x" * 40_000}}
    error = (await caller.chat(tools=[long])).json()["error"]
    assert error["code"] == "string_above_max_length"


THINKING = QWEN + "{# </think> #}"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_thought_is_reasoning_content_and_no_call(run: Any, stream: bool) -> None:
    script = ["<think>", "\nI could ", *CALL[2:], "</thi", "nk>\n\n", "Fine", "."]
    async with run(engine(script, THINKING)) as api:
        answer = await api.chat(tools=[WEATHER], stream=stream)
    if stream:
        deltas = [chunk["choices"][0]["delta"] for chunk in events(answer.text)[:-1]]
        message = {
            name: "".join(delta.get(name) or "" for delta in deltas)
            for name in ("content", "reasoning_content")
        }
        assert not any("tool_calls" in delta for delta in deltas)
    else:
        message = answer.json()["choices"][0]["message"]
        assert "tool_calls" not in message
    assert message["content"] == "Fine."
    assert message["reasoning_content"] == "I could " + "".join(CALL[2:])


async def test_words_of_calls_and_thoughts_show_to_their_reader_though_they_are_special_tokens(
    run: Any,
) -> None:
    asked = engine(template=THINKING)
    asked.codec.control_ids = {"<tool_call>": 7, "</tool_call>": 8, "<think>": 9, "<|end|>": 10}
    async with run(asked) as api:
        await api.chat(tools=[WEATHER], tool_choice="required")
        await api.chat()
        await api.complete(prompt="a")
    assert [request.shown_token_ids for request in asked.requests] == [(7, 8, 9), (7, 8, 9), ()]
    grammar = asked.requests[0].sampling.constraint
    assert grammar is not None
    assert "<[7]>" in grammar.text


async def test_info_says_what_the_template_can_not(run: Any) -> None:
    async with run(engine(template=NO_TOOLS)) as api:
        chat = (await api.client.get("/info")).json()["chat"]
    assert (chat["chat"], chat["tools"], chat["calls"]) == (True, False, None)
    assert "knows no tools" in chat["lacks"][0]
