"""OpenAI's dialect: whole and streamed answers, as its clients expect them."""

from typing import Any

import pytest

from fakes import ScriptedEngine, token_id
from harness import Harness, events
from llm_runtime.request import Constraint, FinishReason, Sampling

UNCACHED = {"prompt_tokens_details": {"cached_tokens": 0}}


async def test_a_chat_completion_has_openais_form(api: Harness) -> None:
    answer = (await api.chat()).json()
    assert answer.pop("id").startswith("chatcmpl-")
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "chat.completion",
        "model": "support-bot",
        "system_fingerprint": "support-bot-v3",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello there!", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6, **UNCACHED},
    }


async def test_a_text_completion_has_openais_form(api: Harness) -> None:
    answer = (await api.complete()).json()
    assert answer.pop("id").startswith("cmpl-")
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "text_completion",
        "model": "support-bot",
        "system_fingerprint": "support-bot-v3",
        "choices": [
            {"index": 0, "text": "Hello there!", "logprobs": None, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5, **UNCACHED},
    }


async def test_a_streamed_chat_is_role_texts_reason_usage_done(api: Harness) -> None:
    chunks = events((await api.chat(stream=True, stream_options={"include_usage": True})).text)
    assert chunks.pop() == "[DONE]"
    last = chunks.pop()
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 3,
        "total_tokens": 6,
        **UNCACHED,
    }
    assert all(
        chunk["usage"] is None and chunk["object"] == "chat.completion.chunk" for chunk in chunks
    )
    assert len({chunk["id"] for chunk in chunks}) == 1
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [choice["delta"] for choice in choices[1:]] == [
        {"content": "Hello"},
        {"content": " there"},
        {"content": "!"},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None] * 4 + ["stop"]


async def test_without_include_usage_no_chunk_speaks_of_usage(api: Harness) -> None:
    response = await api.complete(stream=True)
    chunks = events(response.text)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert chunks.pop() == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello there!"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert not any("usage" in chunk for chunk in chunks)


async def test_n_gives_choices_with_seeds_of_their_own(api: Harness) -> None:
    answer = (await api.chat(n=3, seed=5)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [request.sampling.seed for request in api.engine.requests] == [5, 6, 7]
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 9,
        "total_tokens": 12,
        **UNCACHED,
    }


async def test_streamed_choices_each_come_whole(api: Harness) -> None:
    chunks = events((await api.chat(n=2, stream=True)).text)[:-1]
    for index in (0, 1):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in own) == "Hello there!"
        assert own[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("prompt", "sent"),
    [
        ("a b", [("a", "b")]),
        (["a", "b c"], [("a",), ("b", "c")]),
        ([7, 8, 9], [(7, 8, 9)]),
        ([[7], [8, 9]], [(7,), (8, 9)]),
    ],
)
async def test_a_prompt_may_be_text_or_tokens_one_or_several(
    api: Harness, prompt: Any, sent: Any
) -> None:
    answer = (await api.complete(prompt=prompt)).json()
    expected = [
        tuple(token_id(item) if isinstance(item, str) else item for item in ids) for ids in sent
    ]
    assert [request.prompt_token_ids for request in api.engine.requests] == expected
    assert len(answer["choices"]) == len(sent)


async def test_chat_logprobs_name_token_bytes_and_rivals(api: Harness) -> None:
    logprobs = (await api.chat(logprobs=True, top_logprobs=1)).json()["choices"][0]["logprobs"]
    assert [entry["token"] for entry in logprobs["content"]] == ["Hello", " there", "!"]
    assert logprobs["content"][2] == {
        "token": "!",
        "logprob": -0.5,
        "bytes": [33],
        "top_logprobs": [{"token": "t0", "logprob": -1.0, "bytes": [116, 48]}],
    }


async def test_completion_logprobs_are_parallel_lists(api: Harness) -> None:
    logprobs = (await api.complete(logprobs=1)).json()["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["Hello", " there", "!"],
        "token_logprobs": [-0.5, -0.5, -0.5],
        "top_logprobs": [{"t0": -1.0}] * 3,
        "text_offset": [0, 5, 11],
    }


async def test_streamed_logprobs_add_up_to_the_whole_ones(api: Harness) -> None:
    chunks = events((await api.complete(logprobs=0, stream=True)).text)[:-1]
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [token for part in parts for token in part["tokens"]] == ["Hello", " there", "!"]
    assert [offset for part in parts for offset in part["text_offset"]] == [0, 5, 11]


async def test_a_stop_string_ends_the_text_before_it(api: Harness) -> None:
    choice = (await api.complete(stop="here")).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("Hello t", "stop")


async def test_max_tokens_ends_with_length(api: Harness) -> None:
    for fields in ({"max_tokens": 2}, {"max_completion_tokens": 2}):
        choice = (await api.chat(**fields)).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello there", "length")


async def test_unasked_max_tokens_is_the_room_for_chat_and_sixteen_for_text(api: Harness) -> None:
    await api.chat()
    await api.complete()
    assert [request.sampling.max_tokens for request in api.engine.requests] == [64 - 3, 16]


async def test_what_a_request_leaves_out_is_as_the_models_makers_recommend(api: Harness) -> None:
    api.engine.codec.sampling_defaults = {"temperature": 0.6, "top_k": 20}
    await api.complete(temperature=1.0)
    await api.chat(temperature=None, top_k=5)
    asked, left_out = (request.sampling for request in api.engine.requests[-2:])
    assert (asked.temperature, asked.top_k, asked.top_p) == (1.0, 20, 1.0)
    assert (left_out.temperature, left_out.top_k, left_out.top_p) == (0.6, 5, 1.0)


async def test_top_p_zero_is_greedy(api: Harness) -> None:
    await api.chat(top_p=0)
    sampling = api.engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_p) == (0.0, 1.0)


async def test_content_parts_and_developer_role_reach_the_template_as_text_and_system(
    api: Harness,
) -> None:
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": " you"}]
    await api.chat(
        messages=[{"role": "developer", "content": "Be brief"}, {"role": "user", "content": parts}]
    )
    [chat] = api.engine.codec.chats
    assert chat == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "Hi\n you"},
    ]


async def test_the_configured_system_prompt_is_there_unless_the_client_brings_one(run: Any) -> None:
    async with run(system_prompt="Be kind") as api:
        await api.chat()
        await api.chat(
            messages=[{"role": "system", "content": "Be brief"}, {"role": "user", "content": "hi"}]
        )
    assert [chat[0]["content"] for chat in api.engine.codec.chats] == ["Be kind", "Be brief"]


async def test_an_answers_message_may_be_sent_back_as_it_came(api: Harness) -> None:
    message = (await api.chat()).json()["choices"][0]["message"]
    extended = {
        **message,
        "annotations": [],
        "audio": None,
        "tool_calls": None,
        "function_call": None,
    }
    again = await api.chat(
        messages=[{"role": "user", "content": "hi"}, extended, {"role": "user", "content": "on"}]
    )
    assert again.status_code == 200, again.text


async def test_values_that_ask_for_nothing_are_accepted(api: Harness) -> None:
    idle = {
        "presence_penalty": 0.0,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "tools": None,
        "user": "u",
    }
    assert (await api.chat(**idle)).status_code == 200
    assert (
        await api.complete(echo=False, best_of=1, suffix=None, frequency_penalty=0)
    ).status_code == 200


async def test_every_sampling_field_reaches_the_engine(api: Harness) -> None:
    fields = {
        "presence_penalty": 1, "frequency_penalty": -0.5, "logit_bias": {"5": -100, "7": 1.5}, "top_k": 3, "min_p": 0.1,
        "repetition_penalty": 1.2, "stop_token_ids": [4, 4, 6], "ignore_eos": True, "temperature": 0.5, "top_p": 0.9,
        "seed": 1, "stop": ["x"],
    }  # fmt: skip
    for answer in (
        await api.chat(**fields, max_tokens=9),
        await api.complete(**fields, max_tokens=9),
    ):
        assert answer.status_code == 200, answer.text
    expected = Sampling(
        max_tokens=9, temperature=0.5, top_p=0.9, top_k=3, min_p=0.1, repetition_penalty=1.2, presence_penalty=1.0,
        frequency_penalty=-0.5, logit_bias=((5, -100.0), (7, 1.5)), seed=1, stop=("x",),
        stop_token_ids=frozenset({4, 6}), ignore_eos=True,
    )  # fmt: skip
    assert [request.sampling for request in api.engine.requests] == [expected, expected]


async def test_top_k_of_minus_one_is_off(api: Harness) -> None:
    await api.chat(top_k=-1)
    assert api.engine.requests[0].sampling.top_k == 0


SCHEMA = {"type": "object", "properties": {"b": {"enum": [None, "é"]}, "a": {}}}


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Constraint("json_object")),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
                }
            },
            Constraint(
                "json_schema",
                '{"type":"object","properties":{"b":{"enum":[null,"é"]},"a":{}}}',
                strict=True,
            ),
        ),
        ({"structured_outputs": {"regex": "[ab]+"}}, Constraint("regex", "[ab]+")),
        (
            {"structured_outputs": {"json": {"type": "null"}}},
            Constraint("json_schema", '{"type":"null"}'),
        ),
        (
            {"structured_outputs": {"json": '{"type": "null"}'}},
            Constraint("json_schema", '{"type": "null"}'),
        ),
        ({"structured_outputs": {"choice": ["a.b", "c|d"]}}, Constraint("regex", r"a\.b|c\|d")),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}},
            Constraint("regex", "a"),
        ),
    ],
)
async def test_a_constraint_reaches_the_engine_checked(
    api: Harness, fields: Any, constraint: Any
) -> None:
    for answer in (await api.chat(**fields), await api.complete(**fields)):
        assert answer.status_code == 200, answer.text
    assert [request.sampling.constraint for request in api.engine.requests] == [
        constraint,
        constraint,
    ]
    assert api.engine.codec.constraints == [constraint] * 2 * (constraint is not None)


async def test_a_request_names_its_tenant(api: Harness) -> None:
    await api.chat()
    assert (api.engine.requests[0].tenant, api.engine.requests[0].priority) == ("web", 0)


async def test_cached_tokens_count_once_for_each_prompt(run: Any) -> None:
    async with run(ScriptedEngine(cached_tokens=1)) as api:
        answer = (await api.complete(prompt=["a b", "c"], n=2)).json()
        streamed = events(
            (await api.chat(stream=True, stream_options={"include_usage": True})).text
        )
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert streamed[-2]["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}


async def test_an_adapter_is_asked_for_behind_a_colon(run: Any) -> None:
    async with run(ScriptedEngine(adapters=("legal",))) as api:
        answers = [await api.chat(model=f"support-bot{end}") for end in (":legal", "")]
        text = await api.complete(model="support-bot:legal")
    assert [request.adapter for request in api.engine.requests] == ["legal", "", "legal"]
    assert [answers[0].json()["model"], text.json()["model"]] == ["support-bot:legal"] * 2


async def test_an_unknown_adapter_is_a_404_that_names_the_known_ones(run: Any) -> None:
    async with run(ScriptedEngine(adapters=("legal", "french"))) as api:
        error = (await api.chat(model="support-bot:nope")).json()["error"]
        other = await api.chat(model="other:legal")
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'support-bot:legal', 'support-bot:french'" in error["message"]
    assert other.status_code == 404


async def test_models_lists_adapters_with_their_parent(run: Any) -> None:
    async with run(ScriptedEngine(adapters=("legal",))) as api:
        listed = (await api.client.get("/v1/models")).json()["data"]
        one = (await api.client.get("/v1/models/support-bot:legal")).json()
        missing = await api.client.get("/v1/models/support-bot:nope")
    assert [(model["id"], model.get("parent")) for model in listed] == [
        ("support-bot", None),
        ("support-bot:legal", "support-bot"),
    ]
    assert (one["id"], missing.status_code) == ("support-bot:legal", 404)


async def test_models_lists_the_one_model(api: Harness) -> None:
    listed = (await api.client.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["support-bot"]
    assert (await api.client.get("/v1/models/support-bot")).json()["object"] == "model"
    missing = await api.client.get("/v1/models/other/one")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("ending", "status"), [(FinishReason.ERROR, 500), (FinishReason.CANCELLED, 503)]
)
async def test_an_engine_that_gives_up_is_an_error_without_its_inner_words(
    run: Any, ending: Any, status: int
) -> None:
    async with run(ScriptedEngine(ending=ending)) as api:
        whole = await api.chat()
        streamed = await api.chat(stream=True)
    assert whole.status_code == status
    assert events(streamed.text)[-1]["error"]["type"] == "server_error"
    assert "[DONE]" not in streamed.text
    assert "secret" not in whole.text + streamed.text
    assert [row.outcome for row in api.rows] == ["failed" if status == 500 else "interrupted"] * 2
