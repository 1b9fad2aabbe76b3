"""Anthropic's dialect: `/v1/messages` and `/v1/messages/count_tokens`."""

import json
from typing import Any

import httpx
import pytest

from fakes import FakeCodec, ScriptedEngine
from harness import EXPIRED, KEY, SUSPENDED, Harness
from llm_runtime.cache.completions import CompletionCache
from llm_runtime.contract import (
    CompletionCacheConfig,
    FiltersConfig,
    ServerConfig,
    Tier,
)
from llm_runtime.limits import Limiter
from llm_runtime.request import FinishReason
from unit.runtime.test_manage import USER, serve
from unit.runtime.tools.templates import NO_TOOLS, QWEN

PATH = "/v1/messages"
COUNT = f"{PATH}/count_tokens"
THINKING = QWEN + "{# </think> #}"
WEATHER = {
    "name": "weather",
    "description": "Of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = ["<tool_call>\n", '{"name": "weather", "arguments": ', '{"city": "Kiel"}}', "\n</tool_call>"]
USE = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Kiel"}}
RESULT = {"type": "tool_result", "tool_use_id": "call_1", "content": "rain"}
HI = {"role": "user", "content": "hi you"}


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "support-bot", "max_tokens": 20, "messages": [HI], **fields}


async def ask(api: Harness, **fields: Any) -> httpx.Response:
    return await api.client.post(PATH, json=body(**fields))


async def told(api: Harness, **fields: Any) -> list[dict[str, Any]]:
    """The conversation that the model reads."""
    answer = await ask(api, **fields)
    assert answer.status_code == 200, answer.text
    conversation: list[dict[str, Any]] = api.engine.codec.chats[-1]
    return conversation


def engine(script: Any = ("Hello", " there", "!"), template: str = QWEN) -> ScriptedEngine:
    return ScriptedEngine(script, codec=FakeCodec(template), max_model_length=4096)


@pytest.fixture
async def caller(run: Any) -> Any:
    async with run(engine()) as harness:
        yield harness


def named(text: str) -> list[dict[str, Any]]:
    """The events of a stream. Each is named after its type."""
    found = []
    for event in text.strip().split("\n\n"):
        name, _, data = event.partition("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


# --- Answers


async def test_a_message_is_answered_in_anthropics_form(caller: Harness) -> None:
    response = await ask(caller)
    answer = response.json()
    assert answer.pop("id").startswith("msg-")
    assert answer == {
        "type": "message",
        "role": "assistant",
        "model": "support-bot",
        "content": [{"type": "text", "text": "Hello there!"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 3,
        },
    }
    assert response.headers["request-id"] == response.headers["x-request-id"]


async def test_a_stream_has_all_of_anthropics_events_in_their_order(run: Any) -> None:
    asked = engine()
    asked.cached_tokens = 2
    async with run(asked) as api:
        response = await ask(api, stream=True)
    start, begun, ping, *deltas, ended, delta, stop = named(response.text)
    assert response.headers["request-id"]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert (start["type"], stop) == ("message_start", {"type": "message_stop"})
    message = start["message"]
    assert (message["content"], message["stop_reason"]) == ([], None)
    used = {"input_tokens": 1, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 2}
    assert message["usage"] == {**used, "output_tokens": 1}
    block = {"type": "text", "text": ""}
    assert begun == {"type": "content_block_start", "index": 0, "content_block": block}
    assert ping == {"type": "ping"}
    assert deltas == [
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": text},
        }
        for text in ("Hello", " there", "!")
    ]
    assert ended == {"type": "content_block_stop", "index": 0}
    assert delta == {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {**used, "output_tokens": 3},
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "reason", "sequence", "text"),
    [
        ({}, "end_turn", None, "Hello there!"),
        ({"max_tokens": 2}, "max_tokens", None, "Hello there"),
        ({"stop_sequences": ["x", "re"]}, "stop_sequence", "re", "Hello the"),
        ({"stop_sequences": ["!", "there"]}, "stop_sequence", "there", "Hello "),
    ],
)
async def test_an_answer_says_why_it_ended(
    caller: Harness, stream: bool, fields: Any, reason: str, sequence: str | None, text: str
) -> None:
    response = await ask(caller, stream=stream, **fields)
    if stream:
        found = named(response.text)
        answer = found[-2]["delta"]
        said = "".join(event["delta"].get("text", "") for event in found if "delta" in event)
    else:
        answer = response.json()
        said = answer["content"][0]["text"]
    assert (answer["stop_reason"], answer["stop_sequence"], said) == (reason, sequence, text)


async def test_thoughts_and_calls_are_blocks(run: Any) -> None:
    script = ["<think>", "\nHm.", "</think>\n\n", "Let me look.", *CALL, *CALL]
    async with run(engine(script, THINKING)) as api:
        answer = (await ask(api, tools=[WEATHER])).json()
        streamed = named((await ask(api, tools=[WEATHER], stream=True)).text)
    thought, text, first, second = answer["content"]
    assert thought == {"type": "thinking", "thinking": "Hm.", "signature": ""}
    assert text == {"type": "text", "text": "Let me look."}
    assert first.pop("id") != second.pop("id")
    assert first == second == {"type": "tool_use", "name": "weather", "input": {"city": "Kiel"}}
    assert answer["stop_reason"] == streamed[-2]["delta"]["stop_reason"] == "tool_use"
    assert [
        (event["type"].removeprefix("content_block_"), event["index"])
        for event in streamed
        if "index" in event
    ] == [(step, index) for index in range(4) for step in ("start", "delta", "stop")]
    assert [event["delta"] for event in streamed if event["type"] == "content_block_delta"] == [
        {"type": "thinking_delta", "thinking": "Hm."},
        {"type": "text_delta", "text": "Let me look."},
        *[{"type": "input_json_delta", "partial_json": '{"city": "Kiel"}'}] * 2,
    ]


@pytest.mark.parametrize(
    ("tokens", "arguments", "read"), [(3, '{"city": "Ki', {"city": "Ki"}), (2, "", {})]
)
async def test_a_call_that_is_cut_has_the_input_that_was_written(
    run: Any, tokens: int, arguments: str, read: Any
) -> None:
    script = ["<tool_call>\n", '{"name": "weather", "arguments": ', '{"city": "Ki', "el", '"}}']
    asked = {"tools": [WEATHER], "max_tokens": tokens}
    async with run(engine(script)) as api:
        answer = (await ask(api, **asked)).json()
        streamed = named((await ask(api, stream=True, **asked)).text)
    [block] = answer["content"]
    assert (block["input"], answer["stop_reason"]) == (read, "max_tokens")
    [delta] = [event["delta"] for event in streamed if event["type"] == "content_block_delta"]
    assert delta["partial_json"] == arguments


async def test_numbers_of_a_call_are_as_the_model_wrote_them(run: Any) -> None:
    number = "123456789012345678901234567890"
    script = [f'<tool_call>\n{{"name": "weather", "arguments": {{"n": {number}}}}}\n</tool_call>']
    async with run(engine(script)) as api:
        response = await ask(api, tools=[WEATHER])
    assert f'{{"n": {number}}}' in response.text


# --- What the model is told


async def test_a_round_with_a_tool_reaches_the_template_in_its_form(caller: Harness) -> None:
    thought = {"type": "thinking", "thinking": "Hm", "signature": "sig"}
    hidden = {"type": "redacted_thinking", "data": "x"}
    said = [thought, hidden, {"type": "text", "text": "Well"}, USE]
    results = [RESULT, {"type": "text", "text": "And?"}]
    conversation = await told(
        caller,
        system=[{"type": "text", "text": "Be brief"}, {"type": "text", "text": "Be kind"}],
        messages=[
            HI,
            {"role": "assistant", "content": said},
            {"role": "user", "content": results},
        ],
        tools=[WEATHER],
    )
    function = {"name": "weather", "arguments": {"city": "Kiel"}}
    assert conversation == [
        {"role": "system", "content": "Be brief\nBe kind"},
        HI,
        {
            "role": "assistant",
            "content": "Well",
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
            "reasoning_content": "Hm",
        },
        {"role": "tool", "content": "rain", "tool_call_id": "call_1", "name": "weather"},
        {"role": "user", "content": "And?"},
    ]
    [offered] = caller.engine.codec.tools[-1]
    assert offered["function"] == {
        "name": "weather",
        "description": "Of a city.",
        "parameters": WEATHER["input_schema"],
    }


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({}, "rain"),
        ({"is_error": True}, "Error: rain"),
        ({"is_error": True, "content": []}, "Error"),
        ({"content": {"sky": "grün"}}, '{"sky": "grün"}'),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "a\nb"),
        ({"content": None}, ""),
    ],
)
async def test_results_are_texts(caller: Harness, result: Any, text: str) -> None:
    messages = [
        HI,
        {"role": "assistant", "content": [USE]},
        {"role": "user", "content": [{**RESULT, **result}]},
    ]
    assert (await told(caller, messages=messages, tools=[WEATHER]))[-1]["content"] == text


async def test_messages_of_one_role_in_a_row_are_one(caller: Harness) -> None:
    other = {**USE, "id": "call_2"}
    messages = [
        {"role": "system", "content": "Be brief"},
        HI,
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": [USE]},
        {"role": "assistant", "content": [other]},
        {"role": "user", "content": [{**RESULT, "tool_use_id": "call_2"}]},
        {"role": "user", "content": [RESULT]},
        {"role": "system", "content": "Be kind"},
    ]
    conversation = await told(caller, messages=messages, tools=[WEATHER])
    assert [message["role"] for message in conversation] == [
        "system", "user", "assistant", "tool", "tool", "system",
    ]  # fmt: skip
    assert conversation[1]["content"] == "hi you\nagain"
    assert len(conversation[2]["tool_calls"]) == 2


async def test_an_answer_may_be_sent_back_whole(run: Any) -> None:
    async with run(engine(["<think>Hm</think>", *CALL], THINKING)) as api:
        answer = (await ask(api, tools=[WEATHER])).json()
        result = {**RESULT, "tool_use_id": answer["content"][-1]["id"]}
        messages = [HI, answer, {"role": "user", "content": [result]}]
        assert (await ask(api, tools=[WEATHER], messages=messages)).status_code == 200


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {}),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False, "thinking": False}),
        ({"thinking": {"type": "adaptive"}}, {"enable_thinking": True, "thinking": True}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 9}},
            {"enable_thinking": True, "thinking": True, "thinking_budget": 9},
        ),
        ({"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
    ],
)
async def test_thinking_is_asked_of_the_chat_template(
    caller: Harness, fields: Any, options: Any
) -> None:
    await ask(caller, **fields)
    assert caller.engine.codec.options[-1] == options


async def test_sampling_is_what_was_asked_or_what_the_model_recommends(caller: Harness) -> None:
    caller.engine.codec.sampling_defaults = {"temperature": 0.6, "top_k": 20}
    await ask(caller, temperature=0.3, top_p=0.5, stop_sequences=["x"])
    await ask(caller, top_k=5)
    first, second = (request.sampling for request in caller.engine.requests)
    assert (first.temperature, first.top_p, first.top_k) == (0.3, 0.5, 20)
    assert (first.max_tokens, first.stop) == (20, ("x",))
    assert (second.temperature, second.top_p, second.top_k) == (0.6, 1.0, 5)


@pytest.mark.parametrize(
    ("choice", "tools", "bound", "calls"),
    [
        ({"type": "auto"}, 1, False, 2),
        ({"type": "auto", "disable_parallel_tool_use": True}, 1, False, 1),
        ({"type": "any"}, 1, True, 2),
        ({"type": "any", "disable_parallel_tool_use": True}, 1, True, 1),
        ({"type": "tool", "name": "weather"}, 1, True, 1),
        ({"type": "none"}, 0, False, 0),
    ],
)
async def test_tool_choice_decides_what_is_offered_and_bound(
    run: Any, choice: Any, tools: int, bound: bool, calls: int
) -> None:
    async with run(engine([*CALL, *CALL])) as api:
        answer = (await ask(api, tools=[WEATHER], tool_choice=choice)).json()
        assert len(api.engine.codec.tools[-1]) == tools
        assert (api.engine.requests[-1].sampling.constraint is not None) == bound
    found = [block for block in answer["content"] if block["type"] == "tool_use"]
    assert len(found) == calls


async def test_strict_tools_and_formats_are_enforced(caller: Harness) -> None:
    await ask(caller, tools=[{**WEATHER, "strict": True}])
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    output = {"format": {"type": "json_schema", "schema": schema}}
    await ask(caller, output_config=output)
    tools, answer = (request.sampling.constraint for request in caller.engine.requests)
    assert tools is not None
    assert tools.kind == "grammar"
    assert answer is not None
    assert (answer.kind, json.loads(answer.text), answer.strict) == ("json_schema", schema, True)
    impossible = {"format": {"type": "json_schema", "schema": {"title": "impossible"}}}
    refused = (await ask(caller, output_config=impossible)).json()["error"]
    assert refused["message"].startswith("output_config.format: ")


# --- Counting


async def test_tokens_are_counted_as_they_are_billed_and_nothing_runs(caller: Harness) -> None:
    prompt = {"system": "Be brief", "tools": [WEATHER]}
    counted = await caller.client.post(
        COUNT, json={"model": "support-bot", "messages": [HI], **prompt}
    )
    assert counted.json() == {"input_tokens": 6}
    assert (caller.engine.requests, list(caller.rows)) == ([], [])
    answer = (await ask(caller, **prompt)).json()
    assert answer["usage"]["input_tokens"] == 6
    assert counted.headers["request-id"]


async def test_a_count_is_a_request_of_the_limits_without_tokens() -> None:
    tier = Tier(name="standard", requests_per_minute=2, tokens_per_minute=1000)
    asked = {"model": "support-bot", "messages": [HI]}
    async with serve(tiers=[tier], limiter=Limiter()) as server:
        counts = [await server.client.post(COUNT, json=asked, headers=USER) for _ in range(3)]
    assert [answer.status_code for answer in counts] == [200, 200, 429]
    assert counts[1].headers["x-ratelimit-remaining-tokens"] == "1000"
    assert counts[2].json()["error"]["type"] == "rate_limit_error"
    assert counts[2].headers["retry-after"]


# --- As everywhere


async def test_a_message_leaves_a_usage_row(caller: Harness) -> None:
    await ask(caller, metadata={"user_id": "u-1"}, stream=True)
    [row] = caller.rows
    assert (row.endpoint, row.prompt_tokens, row.completion_tokens) == (PATH, 3, 3)
    assert row.user_hash
    assert row.stream


async def test_a_cached_answer_knows_its_stop_sequence(run: Any) -> None:
    async with run(engine()) as api:
        api.server.serving.pipeline.cache = CompletionCache(CompletionCacheConfig())
        asked = {"temperature": 0, "stop_sequences": ["!"]}
        first = (await ask(api, **asked)).json()
        again = (await ask(api, **asked)).json()
        streamed = named((await ask(api, stream=True, **asked)).text)
    assert len(api.engine.requests) == 1
    assert first["stop_sequence"] == again["stop_sequence"] == "!"
    assert streamed[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "!"}
    assert again["content"] == first["content"]


async def test_filters_hold(run: Any) -> None:
    server = ServerConfig(filters=FiltersConfig(pii="Reject", output="Mask"))
    async with run(engine(["Ask ", "joe@exa", "mple.com", "."]), server=server) as api:
        assert (await ask(api)).json()["content"][0]["text"] == "Ask [EMAIL]."
        mail = [{"role": "user", "content": "I am joe@example.com"}]
        for path, fields in ((PATH, {}), (COUNT, {})):
            asked = {**body(messages=mail), **fields}
            if path == COUNT:
                del asked["max_tokens"]
            error = (await api.client.post(path, json=asked)).json()["error"]
            assert error["details"] == {"error_code": "pii_detected"}


async def test_a_failure_inside_a_stream_is_an_event(run: Any) -> None:
    failing = engine()
    failing.ending = FinishReason.ERROR
    async with run(failing) as api:
        response = await ask(api, stream=True)
        whole = await ask(api)
    last = named(response.text)[-1]
    assert (last["type"], last["error"]["type"]) == ("error", "api_error")
    assert last["request_id"] == response.headers["request-id"]
    assert (whole.status_code, whole.json()["error"]["type"]) == (500, "api_error")


# --- Errors


@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [
        ({}, 401, "authentication_error"),
        ({"x-api-key": "nobody's"}, 401, "authentication_error"),
        ({"x-api-key": SUSPENDED}, 403, "permission_error"),
        ({"authorization": f"Bearer {EXPIRED}"}, 403, "permission_error"),
        ({"x-api-key": KEY, "anthropic-version": "2023-01-01"}, 400, "invalid_request_error"),
        ({"x-api-key": KEY, "anthropic-version": "2023-06-01"}, 200, ""),
        ({"x-api-key": KEY, "anthropic-version": "2026-10-21"}, 200, ""),
        ({"authorization": f"Bearer {KEY}", "anthropic-beta": "x-2026-01-01"}, 200, ""),
    ],
)
@pytest.mark.parametrize("path", [PATH, COUNT])
async def test_keys_and_versions(
    run: Any, path: str, headers: dict[str, str], status: int, kind: str
) -> None:
    async with run(engine(), headers={}) as api:
        asked = body()
        if path == COUNT:
            del asked["max_tokens"]
        response = await api.client.post(f"{path}?beta=true", json=asked, headers=headers)
    assert response.status_code == status, response.text
    if kind:
        answer = response.json()
        assert (answer["type"], answer["error"]["type"]) == ("error", kind)
        assert answer["request_id"] == response.headers["request-id"]


async def test_paths_below_and_beside_have_the_same_shape(caller: Harness) -> None:
    batches = await caller.client.post("/v1/messages/batches", json={})
    doubled = await caller.client.post("/v1/v1/messages", json={})
    got = await caller.client.get(PATH)
    for answer, status, kind in (
        (batches, 404, "not_found_error"),
        (doubled, 404, "not_found_error"),
        (got, 405, "invalid_request_error"),
    ):
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
    assert COUNT in batches.json()["error"]["message"]
    assert "end before /v1" in doubled.json()["error"]["message"]
    beside = (await caller.client.post("/v1/messagesque", json={})).json()
    assert beside["error"]["type"] == "invalid_request_error"
    assert "type" not in beside


async def test_limits_queues_and_shutdowns_are_told_in_anthropics_words(run: Any) -> None:
    full = engine()
    full.max_running = 0
    async with run(full) as api:
        busy = await ask(api)
        full.draining = True
        leaving = await ask(api)
        large = await api.client.post(
            PATH, json=body(messages=[{**HI, "content": "x" * 2_000_000}])
        )
    assert (busy.status_code, busy.json()["error"]["type"]) == (429, "rate_limit_error")
    assert busy.headers["retry-after"] == "1"
    assert (leaving.status_code, leaving.json()["error"]["type"]) == (503, "overloaded_error")
    assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


TEXT = {"type": "text", "text": "x"}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"messages": [assistant(TEXT), HI]}, "messages[0].role: a conversation begins"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role: a conversation"),
        ({"messages": [HI, assistant(TEXT)]}, "messages[1].role: an answer is begun anew"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role: "),
        ({"messages": [user()]}, "messages[0].content: is empty"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content: is empty"),
        ({"messages": [{"role": "user"}]}, "messages[0].content: required"),
        (
            {"messages": [user({"type": "image", "source": {}})]},
            "messages[0].content[0].type: must be one of",
        ),
        ({"messages": [user({"text": "x"})]}, "messages[0].content[0].type: required"),
        ({"messages": [user({"type": "text"})]}, "messages[0].content[0]: a block of type text"),
        ({"messages": [user({"type": "text", "text": "\ud800"})]}, "The body is not JSON"),
        ({"messages": [user("x")]}, "messages[0].content[0]: "),
        ({"messages": [user(RESULT)]}, "messages[0].content[0].tool_use_id: is no tool_use"),
        ({"messages": [user(USE)]}, "messages[0].content[0].type: a message of role user holds"),
        (
            {"messages": [HI, assistant(RESULT), HI]},
            "messages[1].content[0].type: a message of role assistant holds",
        ),
        ({"messages": [HI, assistant(USE), HI]}, "messages[2].content: lacks a tool_result"),
        (
            {"messages": [HI, assistant(USE), user(TEXT, RESULT)]},
            "messages[2].content: has something before",
        ),
        (
            {"messages": [HI, assistant(USE), user(RESULT, RESULT)]},
            "messages[2].content[1].tool_use_id: is no tool_use",
        ),
        (
            {"messages": [HI, assistant(USE, USE), user(RESULT)]},
            "messages[1].content: two blocks",
        ),
        (
            {"messages": [HI, assistant({**USE, "input": "{}"}), user(RESULT)]},
            "messages[1].content[0].input: ",
        ),
        (
            {"messages": [HI, assistant(USE), user({**RESULT, "content": [{"type": "image"}]})]},
            "messages[2].content[0].content[0].type: must be text here; the model reads text only",
        ),
        ({"messages": []}, "messages: "),
        ({"messages": "hi"}, "messages: "),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"max_tokens": -1}, "max_tokens: "),
        ({"max_tokens": None}, "max_tokens: required"),
        ({"max_tokens": 1.5}, "max_tokens: "),
        ({"model": None}, "model: required"),
        ({"tools": [WEATHER, WEATHER]}, "tools: two tools have the same name"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name: "),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema: required"),
        (
            {"tools": [{**WEATHER, "input_schema": {"type": "array"}}]},
            "tools[0].input_schema: must",
        ),
        (
            {"tools": [{"type": "web_search_20250305", "name": "w"}]},
            "tools[0].type: must be custom here",
        ),
        ({"tools": [WEATHER] * 129}, "tools: "),
        ({"tool_choice": {"type": "any"}}, "tool_choice: wants a call"),
        ({"tool_choice": {"type": "tool"}, "tools": [WEATHER]}, "tool_choice.name: must be"),
        (
            {"tool_choice": {"type": "tool", "name": "other"}, "tools": [WEATHER]},
            "tool_choice: names a tool",
        ),
        ({"tool_choice": "auto", "tools": [WEATHER]}, "tool_choice: "),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens: must be there"),
        ({"stop_sequences": "END"}, "stop_sequences: "),
        ({"stop_sequences": [""]}, "stop_sequences[0]: "),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences: "),
        ({"temperature": 3}, "temperature: "),
        ({"metadata": {"name": "x"}}, "metadata.name: not supported"),
        ({"system": [{"type": "image"}]}, "system[0].type: "),
        ({"nonsense": 1}, "nonsense: not supported by this server"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(
    caller: Harness, fields: Any, says: str
) -> None:
    content = json.dumps(body(**fields))
    headers = {"Content-Type": "application/json"}
    response = await caller.client.post(PATH, content=content, headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["message"].startswith(says), error["message"]
    assert caller.engine.requests == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b'{"model": "support-bot", "max_tokens": 5, "messages": [{"role": "user", "content": "\xff"}]}',
        b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        json.dumps(body()).encode("utf-16"),
    ],
    ids=["nothing", "half", "list", "text", "not UTF-8", "deep", "UTF-16"],
)
async def test_what_is_no_json_is_refused(caller: Harness, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    for path in (PATH, COUNT):
        response = await caller.client.post(path, content=content, headers=headers)
        assert (response.status_code, response.json()["type"]) == (400, "error"), response.text


@pytest.mark.parametrize("depth", [70, 150, 5000])
async def test_what_is_nested_too_deeply_is_refused(caller: Harness, depth: int) -> None:
    deep = '{"a":' * depth + "{}" + "}" * depth
    call = json.dumps(body(messages=[HI, assistant({**USE, "input": {"x": 0}}), user(RESULT)]))
    tool = json.dumps(body(tools=[{**WEATHER, "input_schema": {"x": 0}}]))
    for content in (call, tool):
        response = await caller.client.post(
            PATH,
            content=content.replace('{"x": 0}', f'{{"x": {deep}}}'),
            headers={"Content-Type": "application/json"},
        )
        assert response.status_code == 400, response.text[:300]


async def test_another_model_is_not_found(caller: Harness) -> None:
    for path in (PATH, COUNT):
        asked = body(model="claude-opus-4-5")
        if path == COUNT:
            del asked["max_tokens"]
        response = await caller.client.post(path, json=asked)
        assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found_error")
        assert "'support-bot'" in response.json()["error"]["message"]


async def test_a_prompt_that_is_too_long_is_told_in_words_that_clients_know(run: Any) -> None:
    short = engine()
    short.max_model_length = 10
    async with run(short) as api:
        words = await ask(api, max_tokens=5, messages=[{"role": "user", "content": "x " * 20}])
        letters = await ask(api, messages=[{"role": "user", "content": "x" * 40_000}])
        tokens = await ask(api, max_tokens=20)
    for answer in (words, letters):
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith("prompt is too long: ")
    assert tokens.json()["error"]["details"] == {"error_code": "context_length_exceeded"}
    assert "too long:" not in tokens.json()["error"]["message"]


async def test_a_model_that_knows_no_tools_says_so(run: Any) -> None:
    async with run(engine(template=NO_TOOLS)) as api:
        offered = (await ask(api, tools=[WEATHER])).json()["error"]["message"]
        messages = [HI, assistant(USE), user(RESULT)]
        spoken = (await ask(api, messages=messages)).json()["error"]["message"]
    assert "knows no tools" in offered
    assert "knows no tools" in spoken
