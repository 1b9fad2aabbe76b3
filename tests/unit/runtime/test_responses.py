"""The Responses API: what is asked, and how whole answers look."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fakes import FakeCodec, ScriptedEngine
from harness import Harness
from llm_runtime.cache.completions import CompletionCache
from llm_runtime.contract import CompletionCacheConfig, FiltersConfig, ServerConfig, Tier
from llm_runtime.limits import Limiter
from unit.runtime.responses import (
    CALL,
    CALLED,
    PATH,
    RAIN,
    THINKING,
    WEATHER,
    answered,
    ask,
    engine,
    keeping,
    refused,
    told,
)
from unit.runtime.test_manage import USER, serve
from unit.runtime.tools.templates import NO_TOOLS

HI = {"role": "user", "content": "hi you"}


@pytest.fixture
async def caller(run: Any) -> AsyncIterator[Harness]:
    async with run(engine()) as harness:
        yield harness


def message(text: str, role: str = "user", type_: str = "input_text") -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": type_, "text": text}]}


# --- Answers


async def test_a_response_has_openais_form(caller: Harness) -> None:
    caller.engine.cached_tokens = 2
    answer = await answered(caller, instructions="Be brief", metadata={"a": "b"}, user="me")
    stem = answer["id"].removeprefix("resp_")
    assert len(stem) == 32
    assert abs(answer.pop("created_at") - time.time()) < 5
    assert abs(answer.pop("completed_at") - time.time()) < 5
    assert answer == {
        "id": f"resp_{stem}",
        "object": "response",
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": "Be brief",
        "max_output_tokens": None,
        "metadata": {"a": "b"},
        "model": "support-bot",
        "output": [
            {
                "id": f"msg_{stem}_0",
                "type": "message",
                "status": "completed",
                "role": "assistant",
                "content": [
                    {
                        "type": "output_text",
                        "text": "Hello there!",
                        "annotations": [],
                        "logprobs": [],
                    }
                ],
            }
        ],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": 6,
            "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
            "output_tokens": 3,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 9,
        },
        "user": "me",
    }


async def test_thoughts_text_and_calls_are_items(run: Any) -> None:
    script = ["<think>", "\nHm, a city.", "</think>\n\n", "Let me look.", *CALL, *CALL]
    async with run(engine(script, THINKING)) as api:
        answer = await answered(api, tools=[WEATHER])
    thought, text, first, second = answer["output"]
    stem = answer["id"].removeprefix("resp_")
    assert thought == {
        "id": f"rs_{stem}_0",
        "type": "reasoning",
        "status": "completed",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "Hm, a city."}],
    }
    assert text["content"][0]["text"] == "Let me look."
    assert (first.pop("id"), second.pop("id")) == (f"fc_{stem}_2", f"fc_{stem}_3")
    assert first.pop("call_id") != second.pop("call_id")
    called = {"type": "function_call", "name": "weather", "arguments": '{"city": "Kiel"}'}
    assert first == second == {**called, "status": "completed"}
    assert answer["usage"]["output_tokens_details"] == {"reasoning_tokens": 3}
    assert answer["tools"] == [{**WEATHER, "strict": False}]


async def test_an_answer_that_is_cut_is_incomplete(run: Any) -> None:
    async with run(engine()) as api:
        answer = await answered(api, max_output_tokens=2)
        assert (answer["status"], answer["completed_at"]) == ("incomplete", None)
        assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
        [item] = answer["output"]
        assert (item["status"], item["content"][0]["text"]) == ("incomplete", "Hello there")
    async with run(engine(CALL)) as api:
        [item] = (await answered(api, tools=[WEATHER], max_output_tokens=2))["output"]
        assert (item["status"], item["arguments"]) == ("incomplete", "")


async def test_an_answer_that_says_nothing_is_an_empty_message(run: Any) -> None:
    async with run(engine([""])) as api:
        [item] = (await answered(api))["output"]
    assert item["content"][0]["text"] == ""


async def test_log_probabilities_come_where_they_are_included(caller: Harness) -> None:
    include = ["message.output_text.logprobs"]
    [item] = (await answered(caller, include=include, top_logprobs=1))["output"]
    first, *_ = known = item["content"][0]["logprobs"]
    assert [token["token"] for token in known] == ["Hello", " there", "!"]
    rival = {"token": "t0", "bytes": [116, 48], "logprob": -1.0}
    assert first == {
        "token": "Hello",
        "bytes": [72, 101, 108, 108, 111],
        "logprob": -0.5,
        "top_logprobs": [rival],
    }
    field, _ = await refused(caller, top_logprobs=1)
    assert field == "top_logprobs"


async def test_numbers_of_a_tool_are_as_the_client_wrote_them(caller: Harness) -> None:
    number = 123456789012345678901234567890
    tool = {**WEATHER, "parameters": {"type": "object", "maxProperties": number}}
    assert (await answered(caller, tools=[tool]))["tools"][0]["parameters"] == tool["parameters"]


# --- Input


async def test_items_become_one_message_for_each_turn(caller: Harness) -> None:
    thought = [{"type": "reasoning_text", "text": "Hm"}]
    items = [
        {"role": "developer", "content": "Be kind"},
        message("hi"),
        {"type": "reasoning", "summary": [], "content": thought, "encrypted_content": "x"},
        message("Let me look", "assistant", "output_text"),
        CALLED,
        {**CALLED, "call_id": "call_2"},
        RAIN,
        {**RAIN, "call_id": "call_2", "output": [{"type": "input_text", "text": "sun"}]},
        {"role": "system", "content": "Now in short"},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}],
        },
    ]
    calls = [
        {
            "id": id_,
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": "Kiel"}},
        }
        for id_ in ("call_1", "call_2")
    ]
    said = await told(caller, input=items, instructions="Be brief", tools=[WEATHER])
    assert said == [
        {"role": "system", "content": "Be brief\nBe kind"},
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "Let me look",
            "reasoning_content": "Hm",
            "tool_calls": calls,
        },
        {"role": "tool", "content": "rain", "tool_call_id": "call_1", "name": "weather"},
        {"role": "tool", "content": "sun", "tool_call_id": "call_2", "name": "weather"},
        {"role": "system", "content": "Now in short"},
        {"role": "user", "content": "a\nb"},
    ]


async def test_an_answer_can_be_handed_back_as_it_came(run: Any) -> None:
    script = ["<think>", "Hm", "</think>", *CALL]
    async with run(engine(script, THINKING)) as api:
        output = (await answered(api, tools=[WEATHER]))["output"]
        call_id = output[-1]["call_id"]
        said = await told(api, tools=[WEATHER], input=[HI, *output, {**RAIN, "call_id": call_id}])
    assert [turn["role"] for turn in said] == ["user", "assistant", "tool"]
    assert said[1]["reasoning_content"] == "Hm"
    assert said[1]["tool_calls"][0]["id"] == said[2]["tool_call_id"] == call_id


@pytest.mark.parametrize(
    ("items", "field", "words"),
    [
        ([{**HI, "content": [{"type": "input_image", "image_url": "x"}]}], "input[0].content[0].type", "text"),
        ([{**HI, "content": [{"type": "input_file", "file_id": "x"}]}], "input[0].content[0].type", "files"),
        ([HI, {"type": "web_search_call", "id": "x"}], "input[1].type", "runs no tools"),
        ([HI, RAIN], "input[1].call_id", "no function_call"),
        ([HI, CALLED], "input[1]", "no function_call_output"),
        ([HI, {"type": "function_call", "name": "f", "arguments": ""}], "input[1]", "call_id"),
        ([HI, {"role": "user"}], "input[1]", "content"),
        ([{"role": "tool", "content": "x"}], "input[0].role", "Input should be"),
        ([], "input", "at least 1 item"),
        (5, "input", "array"),
    ],
)  # fmt: skip
async def test_input_that_makes_no_conversation_is_refused_by_its_place(
    caller: Harness, items: Any, field: str, words: str
) -> None:
    param, sentence = await refused(caller, input=items)
    assert param == field
    assert words in sentence
    assert caller.engine.requests == []


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"conversation": "conv_1"}, "conversation", "previous_response_id"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "instructions"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "run it yourself"),
        ({"tools": [{"type": "custom", "name": "x"}]}, "tools[0].type", "type function"),
        ({"tools": [WEATHER], "tool_choice": {"type": "file_search"}}, "tool_choice.type", "runs no tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "not among"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tools": [WEATHER, WEATHER]}, "tools", "same name"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "must be there"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "16"),
        ({"include": ["nonsense"]}, "include[0]", "logprobs"),
        ({"stream_options": {}}, "stream_options", "stream: true"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "keeps no responses"),
        ({"background": True}, "background", "keeps no responses"),
        ({"store": True}, "store", "keeps no responses"),
        ({"seed": 1}, "seed", "not supported"),
    ],
)  # fmt: skip
async def test_what_is_not_done_is_refused_with_what_to_do_instead(
    caller: Harness, fields: Any, field: str, words: str
) -> None:
    param, sentence = await refused(caller, **fields)
    assert (param, caller.engine.requests) == (field, [])
    assert words in sentence


# --- What bounds and binds the answer


async def test_sampling_is_the_requests_or_else_the_models(caller: Harness) -> None:
    caller.engine.codec.sampling_defaults = {"temperature": 0.3, "top_k": 7}
    answer = await answered(caller, top_p=0.5, max_output_tokens=9)
    sampling = caller.engine.requests[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.3, 0.5, 7)
    assert sampling.max_tokens == 9
    assert (answer["temperature"], answer["top_p"]) == (0.3, 0.5)


async def test_effort_reaches_the_chat_template(caller: Harness) -> None:
    answer = await answered(caller, reasoning={"effort": "none", "summary": "auto"})
    options = {"reasoning_effort": "none", "enable_thinking": False}
    assert caller.engine.codec.options[-1] == options
    assert answer["reasoning"]["effort"] == "none"


@pytest.mark.parametrize(
    ("format_", "kind", "strict"),
    [
        ({"type": "json_object"}, "json_object", False),
        ({"type": "json_schema", "name": "x", "schema": {"const": None}}, "json_schema", False),
        (
            {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True},
            "json_schema",
            True,
        ),
    ],
)
async def test_a_format_binds_the_answer(
    caller: Harness, format_: Any, kind: str, strict: bool
) -> None:
    answer = await answered(caller, text={"format": format_, "verbosity": "low"})
    [constraint] = caller.engine.codec.constraints
    assert (constraint.kind, constraint.strict) == (kind, strict)
    assert json.loads(constraint.text or "{}") == format_.get("schema", {})
    assert answer["text"] == {"format": format_}


async def test_a_schema_that_nothing_matches_is_refused_by_its_field(caller: Harness) -> None:
    format_ = {"type": "json_schema", "name": "x", "schema": {"const": "impossible"}}
    field, _ = await refused(caller, text={"format": format_})
    assert field == "text.format"


@pytest.mark.parametrize(
    ("choice", "bound", "shown"),
    [
        ("auto", False, ["weather", "time"]),
        ("none", False, []),
        ("required", True, ["weather", "time"]),
        ({"type": "function", "name": "time"}, True, ["weather", "time"]),
        (
            {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "time"}],
            },
            False,
            ["time"],
        ),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "time"}],
            },
            True,
            ["time"],
        ),
    ],
)
async def test_what_may_and_must_be_called(
    caller: Harness, choice: Any, bound: bool, shown: list[str]
) -> None:
    tools = [WEATHER, {"type": "function", "name": "time"}]
    answer = await answered(caller, tools=tools, tool_choice=choice)
    assert answer["tool_choice"] == choice
    offered = [tool["function"]["name"] for tool in caller.engine.codec.tools[-1]]
    assert offered == shown
    constraint = caller.engine.requests[-1].sampling.constraint
    assert bool(constraint) is bound
    if isinstance(choice, dict) and constraint:
        assert "weather" not in constraint.text


async def test_a_call_at_a_time_where_parallel_ones_are_not_wanted(run: Any) -> None:
    async with run(engine([*CALL, *CALL])) as api:
        answer = await answered(api, tools=[WEATHER], parallel_tool_calls=False)
    assert [item["type"] for item in answer["output"]] == ["function_call"]


async def test_a_model_without_tools_says_so(run: Any) -> None:
    async with run(engine(template=NO_TOOLS)) as api:
        assert (await refused(api, tools=[WEATHER]))[0] == "tools"
        assert (await refused(api, input=[HI, CALLED, RAIN]))[0] == "input[1]"


@pytest.mark.parametrize("truncation", ["disabled", "auto"])
async def test_a_conversation_that_is_too_long_loses_its_oldest_turns_only_if_it_may(
    run: Any, truncation: str
) -> None:
    made = ScriptedEngine(codec=FakeCodec(THINKING), max_model_length=40)
    turns = [
        item
        for number in range(8)
        for item in (message(f"q{number} a b c"), message(f"a{number}", "assistant", "output_text"))
    ]
    items = [*turns[:2], CALLED, RAIN, *turns[2:], message("last")]
    async with run(made) as api:
        response = await ask(
            api, input=items, instructions="Be brief", truncation=truncation, max_output_tokens=3
        )
        if truncation == "disabled":
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
            return
        assert response.status_code == 200, response.text
        kept = api.engine.codec.chats[-1]
    assert kept[0] == {"role": "system", "content": "Be brief"}
    assert kept[1]["role"] == "user"
    assert kept[-1] == {"role": "user", "content": "last"}
    assert 3 <= len(kept) < len(items)


# --- As everywhere


async def test_a_response_is_a_row_and_its_user_a_hash(caller: Harness) -> None:
    await answered(caller, safety_identifier="me")
    [row] = caller.rows
    assert (row.endpoint, row.prompt_tokens, row.completion_tokens) == (PATH, 3, 3)
    assert row.user_hash
    assert "me" not in row.user_hash


async def test_equal_deterministic_requests_run_once(caller: Harness) -> None:
    caller.server.serving.pipeline.cache = CompletionCache(CompletionCacheConfig())
    first = await answered(caller, temperature=0)
    second = await answered(caller, temperature=0)
    assert len(caller.engine.requests) == 1
    assert first["id"] != second["id"]
    assert first["output"][0]["content"] == second["output"][0]["content"]
    assert [row.cached for row in caller.rows] == [False, True]


async def test_an_idempotency_key_gives_the_same_text(caller: Harness) -> None:
    caller.client.headers["Idempotency-Key"] = "once"
    texts = [(await answered(caller))["output"][0]["content"] for _ in range(2)]
    assert texts[0] == texts[1]
    assert len(caller.engine.requests) == 1


async def test_limits_hold() -> None:
    tier = Tier(name="standard", requests_per_minute=1)
    async with serve(tiers=[tier], limiter=Limiter()) as managed:
        body = {"model": "support-bot", "input": "hi"}
        first = await managed.client.post(PATH, json=body, headers=USER)
        second = await managed.client.post(PATH, json=body, headers=USER)
    assert (first.status_code, second.status_code) == (200, 429)
    assert second.json()["error"]["type"] == "rate_limit_error"


async def test_filters_mask_what_the_model_sees_and_what_is_kept(run: Any) -> None:
    masks = ServerConfig(filters=FiltersConfig(pii="Mask", output="Mask"))
    async with run(engine(["Ask ", "x@example.com", "."]), masks) as api:
        store = keeping(api)
        answer = await answered(
            api, input="I am me@example.com", instructions="Of boss@example.com"
        )
        assert api.engine.codec.chats[-1][1]["content"] == "I am [EMAIL]"
        assert answer["output"][0]["content"][0]["text"] == "Ask [EMAIL]."
        kept = (await store.find("web", [answer["id"]]))[answer["id"]]
    assert kept.input[0]["content"][0]["text"] == "I am [EMAIL]"
    assert kept.response["instructions"] == "Of [EMAIL]"
    assert "@" not in json.dumps(kept.document())
