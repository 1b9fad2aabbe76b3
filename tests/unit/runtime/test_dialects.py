"""The dialects beside OpenAI's: /predict, /v1/generate, /v1/stream, /generate;
/info and /status."""

from pathlib import Path
from typing import Any

import pytest

from fakes import FakeCodec, ScriptedEngine
from harness import Harness, events


async def test_predict_answers_in_its_own_form(api: Harness) -> None:
    answer = (await api.client.post("/predict", json={"prompt": "a b"})).json()
    assert answer.pop("processing_time") > 0
    assert answer.pop("timestamp").endswith("Z")
    assert answer == {
        "generated_text": "Hello there!",
        "prompt": "a b",
        "tokens_generated": 3,
        "model_name": "support-bot",
        "model_version": "3",
    }


async def test_predict_translates_its_names(api: Harness) -> None:
    body = {
        "prompt": "a b",
        "max_length": 2,
        "temperature": 0.5,
        "top_p": 0.5,
        "stop_tokens": ["x", "y"],
    }
    await api.client.post("/predict", json=body)
    sampling = api.engine.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.stop) == (
        2,
        0.5,
        0.5,
        ("x", "y"),
    )


async def test_generate_answers_in_its_own_form(api: Harness) -> None:
    answer = (await api.client.post("/v1/generate", json={"prompt": "a b"})).json()
    assert answer == {
        "model": "support-bot",
        "output": "Hello there!",
        "generated_text": "Hello there!",
        "prompt": "a b",
        "tokens_generated": 3,
        "cached": False,
    }


@pytest.mark.parametrize("name", ["max_new_tokens", "max_tokens"])
async def test_generate_knows_both_names_of_its_length(api: Harness, name: str) -> None:
    answer = await api.client.post(
        "/v1/generate", json={"prompt": "a", name: 1, "top_k": 5, "stop": "z", "seed": 1}
    )
    assert answer.json()["output"] == "Hello"
    assert api.engine.requests[0].sampling.top_k == 5


async def test_defaults_shrink_to_the_room_that_is_left(api: Harness) -> None:
    await api.client.post("/predict", json={"prompt": "a b"})
    await api.client.post("/v1/generate", json={"prompt": "a b"})
    assert [request.sampling.max_tokens for request in api.engine.requests] == [62, 62]


async def test_stream_sends_texts_then_the_reason_then_done(api: Harness) -> None:
    response = await api.client.post("/v1/stream", json={"prompt": "a b"})
    assert events(response.text) == [
        {"text": "Hello"},
        {"text": " there"},
        {"text": "!"},
        {
            "text": "",
            "finish_reason": "stop",
            "model": "support-bot",
            "tokens_generated": 3,
            "cached": False,
        },
        "[DONE]",
    ]


async def test_refusals_name_kind_field_and_request(api: Harness) -> None:
    response = await api.client.post(
        "/predict", json={"max_length": 0}, headers={"X-Request-ID": "mine-1"}
    )
    answer = response.json()
    assert response.status_code == 400
    assert answer.pop("timestamp")
    assert answer == {
        "error": "validation_error",
        "message": "max_length: Input should be greater than or equal to 1",
        "details": {
            "field": "max_length",
            "code": "invalid_value",
            "problems": [
                {"field": "max_length", "problem": "Input should be greater than or equal to 1"},
                {"field": "prompt", "problem": "required"},
            ],
        },
        "request_id": "mine-1",
    }
    assert response.headers["x-request-id"] == "mine-1"


async def test_generate_refuses_another_model_and_streaming_here(api: Harness) -> None:
    assert (
        await api.client.post("/v1/generate", json={"prompt": "a", "model": "other"})
    ).status_code == 404
    refused = await api.client.post("/v1/generate", json={"prompt": "a", "stream": True})
    assert (refused.status_code, refused.json()["details"]["field"]) == (400, "stream")


async def test_idempotency_key_is_read_by_every_dialect(api: Harness) -> None:
    bodies: dict[str, dict[str, object]] = {
        "/v1/completions": {"model": "support-bot", "prompt": "a"},
        "/v1/chat/completions": {
            "model": "support-bot",
            "messages": [{"role": "user", "content": "a"}],
        },
        "/v1/generate": {"prompt": "b"},
        "/predict": {"prompt": "c"},
    }
    for path, body in bodies.items():
        headers = {"Idempotency-Key": path}
        answers = [await api.client.post(path, json=body, headers=headers) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200]
        other = await api.client.post(path, json=body | {"temperature": 0.3}, headers=headers)
        assert other.status_code == 400
        assert "idempotency_key_reused" in other.text
    assert len(api.engine.requests) == len(bodies)
    assert [row.cached for row in api.rows] == [False, True] * len(bodies)


async def test_a_batch_is_a_list_in_the_order_of_its_prompts(api: Harness) -> None:
    answers = (
        await api.client.post("/predict/batch", json={"prompts": ["a", "b c"], "max_length": 2})
    ).json()
    assert [(one["prompt"], one["generated_text"], one["tokens_generated"]) for one in answers] == [
        ("a", "Hello there", 2),
        ("b c", "Hello there", 2),
    ]
    assert set(answers[0]) == {
        "generated_text", "prompt", "tokens_generated", "processing_time", "model_name", "model_version", "timestamp",
    }  # fmt: skip
    assert [(row.choices, row.completion_tokens) for row in api.rows] == [(2, 4)]


@pytest.mark.parametrize(
    ("prompts", "field"),
    [([], "prompts"), ([""], "prompts[0]"), (["a"] * 129, "prompts"), ("a", "prompts")],
)
async def test_a_batch_that_is_none_is_refused(api: Harness, prompts: object, field: str) -> None:
    response = await api.client.post("/predict/batch", json={"prompts": prompts})
    assert (response.status_code, response.json()["details"]["field"]) == (400, field)


async def test_completions_carry_the_log_probability_of_every_token(api: Harness) -> None:
    parameters = {
        "temperature": 0.7, "max_new_tokens": 2, "top_p": 0.9, "num_return_sequences": 2, "stop_sequences": [],
    }  # fmt: skip
    body = {"model_name": "support-bot", "prompt": "a b", "parameters": parameters}
    answer = (await api.client.post("/generate", json=body)).json()
    assert answer.pop("request_time") > 0
    tokens = [{"text": "Hello", "logprob": -0.5}, {"text": " there", "logprob": -0.5}]
    assert answer == {
        "success": True,
        "completions": [{"text": "Hello there", "tokens": tokens}] * 2,
        "generated_text": "Hello there",
    }


async def test_completions_also_come_from_a_prompt_and_a_number(api: Harness) -> None:
    answer = (
        await api.client.post("/generate", json={"prompt": "Hello world", "max_new_tokens": 1})
    ).json()
    assert answer["generated_text"] == "Hello"
    both = {"prompt": "a", "max_new_tokens": 1, "parameters": {"max_new_tokens": 2}}
    refused = await api.client.post("/generate", json=both)
    assert (refused.status_code, refused.json()["details"]["field"]) == (400, "max_new_tokens")
    assert (
        await api.client.post("/generate", json={"prompt": "a", "model_name": "other"})
    ).status_code == 404


THINKING = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
TOLD = ["<think>", "\nHm", ".</th", "ink>", "\n\nHello", "!"]


async def answer_of(api: Harness, path: str, prompt: str) -> tuple[str, str | None]:
    """The text and the thoughts of a dialect's answer."""
    if path == "/predict/batch":
        [answer] = (await api.client.post(path, json={"prompts": [prompt]})).json()
        return answer["generated_text"], answer.get("reasoning_content")
    response = await api.client.post(path, json={"prompt": prompt})
    if path == "/v1/stream":
        parts = events(response.text)[:-1]
        text, thoughts = (
            "".join(part.get(name) or "" for part in parts)
            for name in ("text", "reasoning_content")
        )
        return text, thoughts or None
    answer = response.json()
    if path != "/generate":
        return answer["generated_text"], answer.get("reasoning_content")
    [completion] = answer["completions"]
    assert completion["text"] == answer["generated_text"]
    return completion["text"], completion.get("reasoning_content")


@pytest.mark.parametrize(
    "path", ["/predict", "/predict/batch", "/v1/generate", "/v1/stream", "/generate"]
)
@pytest.mark.parametrize(
    ("prompt", "script", "expected"),
    [
        ("a", TOLD, ("Hello!", "Hm.")),
        ("a<think>\n", TOLD[1:], ("Hello!", "Hm.")),
        ("a<think>b</think>", ["Hello", "!"], ("Hello!", None)),
        ("a", ["Hello", "!"], ("Hello!", None)),
        ("a", ["The word ", "<think>"], ("The word <think>", None)),
    ],
    ids=["thought", "opened by the prompt", "closed by the prompt", "none", "quoted"],
)
async def test_thoughts_are_no_part_of_a_text(
    run: Any, path: str, prompt: str, script: list[str], expected: tuple[str, str | None]
) -> None:
    async with run(ScriptedEngine(script, codec=FakeCodec(THINKING))) as api:
        api.engine.codec.control_ids = {"<think>": 7, "</think>": 8, "<|end|>": 9}
        assert await answer_of(api, path, prompt) == expected
        assert api.engine.requests[-1].shown_token_ids == (7, 8)


CALL = ["<tool_call>", '{"name": "f", "arguments": {}}', "</tool_call>"]
CHANNELS = [
    "<|channel|>analysis",
    "<|message|>Hm.<|end|><|start|>assistant",
    "<|channel|>final<|message|>Hello!",
]


@pytest.mark.parametrize(
    ("template", "script", "expected"),
    [
        ("qwen3", CALL, ("".join(CALL), None)),
        ("gpt-oss", CHANNELS, ("Hello!", "Hm.")),
        ("gpt-oss", ["Hi"], ("Hi", None)),
    ],
)
@pytest.mark.parametrize("path", ["/v1/generate", "/v1/stream"])
async def test_channels_are_read_and_calls_that_nobody_offered_are_text(
    run: Any, path: str, template: str, script: list[str], expected: tuple[str, str | None]
) -> None:
    known = (Path(__file__).parent / "chat_templates" / f"{template}.jinja").read_text()
    async with run(ScriptedEngine(script, codec=FakeCodec(known))) as api:
        assert await answer_of(api, path, "a") == expected


async def test_info_describes_the_registered_model_without_a_key(run: Any) -> None:
    async with run(headers={}) as api:
        info = (await api.client.get("/info")).json()
    assert info.pop("runtime_version")
    assert info.pop("chat")["chat"] is False
    assert info == {
        "name": "support-bot",
        "version": "3",
        "source": "models:/support-bot/3",
        "model_name": "support-bot",
        "model_version": "3",
        "adapters": [],
        "max_model_length": 64,
        "model_loaded": True,
        "task": "generate",
        "embedding": None,
    }


async def test_status_tells_device_engine_and_queue_without_a_key(run: Any) -> None:
    async with run(headers={}) as api:
        status = (await api.client.get("/status")).json()
    assert status["status"] == "cpu: model loaded on CPU"
    assert (status["queue"], status["engine"]["kind"]) == ({"running": 0, "waiting": 0}, "batched")
    assert status["prefix_cache"] == {"prompt_tokens": 0, "cached_tokens": 0}
