"""Everything that must be refused is refused with a 4xx that names the field;
nothing a client sends makes a 500."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fakes import ScriptedEngine
from harness import Harness, chat_body
from llm_runtime.contract import ServerConfig

USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "text", "json_schema": {"name": "n", "schema": {}}}},
            "response_format",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a b", "schema": {}},
                }
            },
            "response_format.json_schema.name",
        ),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "a"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"regex": "impossible"}}, "structured_outputs"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
        ),
        ({"guided_regex": "a"}, "guided_regex"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"presence_penalty": "1"}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {"1": float("inf")}}, "logit_bias.1"),
        ({"logit_bias": {"one": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"05": 1}}, "logit_bias"),
        ({"logit_bias": {str(number): 1 for number in range(1025)}}, "logit_bias"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 11}, "repetition_penalty"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"stop_token_ids": list(range(65))}, "stop_token_ids"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"stop": "x" * 10_000}, "stop[0]"),
        ({"no_such_field": 1}, "no_such_field"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [USER, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{**USER, "name": 5}]}, "messages[0].name"),
        ({"messages": [{**USER, "prefix": True}]}, "messages[0].prefix"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": {"eos_token": "x"}}, "chat_template_kwargs.eos_token"),
        ({"model": None}, "model"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 1.5}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ""}, "stop[0]"),
        ({"stop": [1]}, "stop[0]"),
        ({"seed": 2**63}, "seed"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"user": 5}, "user"),
    ],
)
async def test_chat_names_the_field_it_refuses(
    api: Harness, fields: dict[str, Any], param: str
) -> None:
    response = await api.client.post(
        "/v1/chat/completions", content=_json(chat_body(**fields)), headers=JSON
    )
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["type"]) == (
        400,
        param,
        "invalid_request_error",
    )
    assert param.split(".")[0].split("[")[0] in error["message"]
    assert api.engine.requests == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[1], "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "n"),
        ({"prompt": "a " * 64}, "prompt"),
        ({"prompt": "a" * 32_001}, "prompt"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -2, "echo": True}, "max_tokens"),
        ({"echo": 1}, "echo"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt": [5] * 65, "max_tokens": 0, "echo": True}, "prompt"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": True}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"max_completion_tokens": 3}, "max_completion_tokens"),
    ],
)
async def test_completions_names_the_field_it_refuses(
    api: Harness, fields: dict[str, Any], param: str
) -> None:
    body = {"model": "support-bot", "prompt": "a b", **fields}
    response = await api.client.post("/v1/completions", content=_json(body), headers=JSON)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
    assert api.engine.requests == []


JSON = {"Content-Type": "application/json"}


def _json(body: Any) -> bytes:
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/generate", "/v1/stream", "/predict"]
)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b'{"prompt": NaN}',
        b"[" * 100_000,
        b'{"a":1}',
        b"{" * 5,
    ],
    ids=["empty", "cut", "list", "null", "string", "not-utf8", "nan", "deep", "unknown", "braces"],
)
async def test_a_body_that_makes_no_sense_is_a_400(api: Harness, path: str, body: bytes) -> None:
    response = await api.client.post(path, content=body, headers=JSON)
    assert response.status_code == 400, response.text
    assert "Traceback" not in response.text


@pytest.mark.parametrize("depth", [100, 500, 900, 1100, 5000])
async def test_a_schema_of_any_depth_makes_no_500(api: Harness, depth: int) -> None:
    body = b'{"items":' * depth + b"{}" + b"}" * depth
    text = b'{"model": "support-bot", "prompt": "a", "structured_outputs": {"json": %s}}' % body
    response = await api.client.post("/v1/completions", content=text, headers=JSON)
    assert response.status_code in (200, 400), response.text


@pytest.mark.parametrize(
    "body", [b'{"\\ud800": 1, "prompt": "a"}', b'{"prompt": "\\udfff"}', b'{"prompt": "a\\ud800b"}']
)
async def test_half_a_surrogate_pair_is_a_400_that_says_where(api: Harness, body: bytes) -> None:
    for path in ("/v1/completions", "/predict"):
        response = await api.client.post(path, content=body, headers=JSON)
        assert response.status_code == 400
        assert "escape at line 1 column" in response.text


async def test_a_form_is_told_to_be_json(api: Harness) -> None:
    response = await api.client.post("/predict", content=b'{"prompt": "a"}')
    assert response.status_code == 400
    assert "application/json" in response.json()["message"]


async def test_temperature_nan_is_a_400(api: Harness) -> None:
    response = await api.client.post(
        "/predict", content=b'{"prompt": "a", "temperature": NaN}', headers=JSON
    )
    assert response.json()["details"]["field"] == "temperature"


async def test_another_model_is_a_404_in_openais_words(api: Harness) -> None:
    response = await api.chat(model="gpt-5")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (
        404,
        "model_not_found",
        "model",
    )


async def test_a_prompt_that_leaves_no_room_names_both_lengths(api: Harness) -> None:
    error = (await api.complete(prompt="a " * 64)).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["message"].count("64") == 2


async def test_a_declared_oversize_body_is_a_413(run: Any) -> None:
    async with run(server=ServerConfig(max_request_bytes=1024)) as api:
        response = await api.complete(prompt="a" * 2000)
        own = await api.client.post("/predict", json={"prompt": "a" * 2000})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
    assert (own.status_code, own.json()["error"]) == (413, "payload_too_large")


async def test_a_chunked_oversize_body_is_a_413_before_it_is_read_whole(run: Any) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b"x" * 100

    async with run(server=ServerConfig(max_request_bytes=1024)) as api:
        response = await api.client.post("/v1/completions", content=endless(), headers=JSON)
    assert response.status_code == 413
    assert sent < 20


async def test_a_full_queue_is_a_429_that_says_when(run: Any) -> None:
    async with run(ScriptedEngine(max_running=1, token_seconds=0.05)) as api:
        first = asyncio.create_task(api.chat())
        await asyncio.sleep(0.02)
        second = await api.chat(stream=True)
        assert (await first).status_code == 200
    assert (second.status_code, second.headers["retry-after"]) == (429, "1")


async def test_choices_are_admitted_all_or_none(run: Any) -> None:
    async with run(ScriptedEngine(max_running=2)) as api:
        response = await api.chat(n=3)
    assert response.status_code == 429
    assert len(api.engine.cancelled) == 2
    assert api.rows == []


async def test_unknown_paths_and_methods_answer_in_shape(api: Harness) -> None:
    missing = await api.client.get("/nope")
    wrong = await api.client.get("/predict")
    assert (missing.status_code, missing.json()["error"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["error"], wrong.headers["allow"]) == (
        405,
        "method_not_allowed",
        "POST",
    )
    assert "param" in (await api.client.get("/v1/completions")).json()["error"]


async def test_a_fault_of_ours_is_a_500_that_tells_nothing(run: Any) -> None:
    class Broken(ScriptedEngine):
        def generate(self, request: Any) -> Any:
            raise RuntimeError("secret inner words")

    async with run(Broken()) as api:
        whole = await api.chat()
        own = await api.client.post("/predict", json={"prompt": "a"})
    assert (whole.status_code, own.json()["error"]) == (500, "internal_server_error")
    assert "secret" not in whole.text + own.text
    assert own.headers["x-request-id"] in own.text


async def test_an_untrusted_host_is_refused_but_probes_are_not(run: Any) -> None:
    async with run(server=ServerConfig(trusted_hosts=("llm.example.com", "*.svc"))) as api:
        statuses = [
            (await api.client.get(path, headers={"Host": host})).status_code
            for path, host in (
                ("/v1/models", "evil"),
                ("/v1/models", "LLM.example.com:80"),
                ("/v1/models", "a.b.svc"),
                ("/readyz", "10.0.0.1:8000"),
            )
        ]
    assert statuses == [400, 200, 200, 200]


async def test_cors_answers_configured_origins_only(run: Any) -> None:
    async with run(server=ServerConfig(cors_origins=("https://app",))) as api:
        asked = {"Origin": "https://app", "Access-Control-Request-Method": "POST"}
        allowed = await api.client.options("/v1/completions", headers=asked)
        other = await api.client.get("/livez", headers={"Origin": "https://evil"})
    assert allowed.headers["access-control-allow-origin"] == "https://app"
    assert "access-control-allow-origin" not in other.headers
