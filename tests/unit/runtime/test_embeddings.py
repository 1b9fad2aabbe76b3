"""`POST /v1/embeddings`, with a scripted engine behind it."""

import base64
import math
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI

from fakes import ScriptedEngine
from harness import KEY, Harness
from llm_runtime.contract import FilterPattern, FiltersConfig, ServerConfig
from llm_runtime.pipeline import MAX_INPUTS
from llm_runtime.request import EmbeddingModel, EmbeddingPrompt

VECTOR = (0.5, 0.5, 0.5, -0.5)
WRITTEN = base64.b64encode(struct.pack("<4f", *VECTOR)).decode()
MODEL = EmbeddingModel(
    dimensions=4,
    normalised=True,
    prompts={"query": EmbeddingPrompt("query: ", 2), "plain": EmbeddingPrompt("")},
)


def embedder(**options: Any) -> ScriptedEngine:
    return ScriptedEngine(script=[WRITTEN], **{"embedding": MODEL, **options})


@pytest.fixture
async def api(run: Callable[..., Any]) -> AsyncIterator[Harness]:
    async with run(embedder()) as harness:
        yield harness


async def embed(api: Harness, texts: Any, **fields: Any) -> httpx.Response:
    body = {"model": "support-bot", "input": texts, **fields}
    return await api.client.post("/v1/embeddings", json=body)


async def test_each_text_gets_its_vector_in_order_and_is_billed_by_its_tokens(api: Harness) -> None:
    response = await embed(api, ["one two", "three"])
    assert response.json() == {
        "object": "list",
        "model": "support-bot",
        "data": [
            {"object": "embedding", "index": 0, "embedding": list(VECTOR)},
            {"object": "embedding", "index": 1, "embedding": list(VECTOR)},
        ],
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }
    [row] = api.rows
    assert (row.prompt_tokens, row.completion_tokens, row.choices) == (3, 0, 2)
    assert row.endpoint == "/v1/embeddings"
    assert row.first_token_seconds is not None
    assert all(request.embeds for request in api.engine.requests)


@pytest.mark.parametrize(
    ("texts", "ids"),
    [("a b", 1), (["a b"], 1), ([5, 6, 7], 1), ([[5, 6], [7]], 2)],
)
async def test_a_text_or_tokens_one_or_several(api: Harness, texts: Any, ids: int) -> None:
    response = await embed(api, texts)
    assert len(response.json()["data"]) == ids == len(api.engine.requests)


async def test_vectors_come_as_base64_and_cut_ones_have_the_length_one_again(api: Harness) -> None:
    whole = (await embed(api, "a", encoding_format="base64")).json()["data"][0]["embedding"]
    assert whole == WRITTEN
    cut = (await embed(api, "a", dimensions=2)).json()["data"][0]["embedding"]
    assert cut == pytest.approx([math.sqrt(0.5)] * 2)
    both = (await embed(api, "a", dimensions=2, encoding_format="base64")).json()
    assert struct.unpack("<2f", base64.b64decode(both["data"][0]["embedding"])) == pytest.approx(
        cut
    )


async def test_a_model_that_does_not_normalise_is_cut_as_it_is(run: Callable[..., Any]) -> None:
    model = EmbeddingModel(dimensions=4, normalised=False, matryoshka=(2,))
    async with run(embedder(embedding=model)) as api:
        response = await embed(api, "a", dimensions=2)
        assert response.json()["data"][0]["embedding"] == [0.5, 0.5]
        refused = await embed(api, "a", dimensions=3)
        assert refused.status_code == 400
        assert "cut to 2, 4 dimensions, not to 3" in refused.json()["error"]["message"]


async def test_a_named_prompt_goes_before_each_text_and_the_default_one_before_others(
    run: Callable[..., Any],
) -> None:
    model = EmbeddingModel(4, normalised=True, prompts=MODEL.prompts, default_prompt="query")
    async with run(embedder(embedding=model)) as api:
        for fields in ({}, {"prompt_name": "query"}, {"prompt_name": "plain"}):
            await embed(api, "a", **fields)
        await embed(api, [9, 8])
        words = [
            [api.engine.codec.words.get(token, token) for token in request.prompt_token_ids]
            for request in api.engine.requests
        ]
        assert words == [["query:", "a"], ["query:", "a"], ["a"], [9, 8]]
        assert [request.unpooled_tokens for request in api.engine.requests] == [2, 2, 0, 0]


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"input": ""}, "input", "it is empty"),
        ({"input": ["a", ""]}, "input", "number 1 of it is empty"),
        ({"input": []}, "input", "at least 1 item"),
        ({"input": [[]]}, "input", "it is empty"),
        ({"input": ["a", 5]}, "input", "must be a string, a list of strings"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "input", "has 2049 texts, and at most 2048"),
        (
            {"input": "w " * 65},
            "input",
            "maximum context length is 64 tokens. However, input has 65",
        ),
        ({"input": ["a", "w " * 65]}, "input[1]", "However, input[1] has 65 tokens"),
        ({"input": ["a", "w" * 40_000]}, "input[1]", "maximum length 32000"),
        ({"dimensions": 5}, "dimensions", "have 4 dimensions; ask for as many or fewer, not 5"),
        ({"dimensions": 0}, "dimensions", "greater than or equal to 1"),
        ({"encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
        ({"prompt_name": "other"}, "prompt_name", "no prompt 'other'; it has 'query', 'plain'"),
        ({"prompt_name": "query", "input": [5]}, "prompt_name", "goes before texts"),
        ({"truncate_prompt_tokens": -1}, "truncate_prompt_tokens", "not supported"),
    ],
)
async def test_bad_input_gets_a_sentence_in_openais_shape(
    api: Harness, fields: dict[str, Any], param: str, says: str
) -> None:
    response = await embed(api, **{"texts": "a", **_texts(fields)})
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert says in error["message"]
    assert not api.engine.requests
    assert not api.rows or api.rows[-1].outcome != "completed"


def _texts(fields: dict[str, Any]) -> dict[str, Any]:
    return {"texts" if name == "input" else name: value for name, value in fields.items()}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/responses", {"input": "hi"}),
    ],
)
async def test_a_model_for_embeddings_says_so_to_who_wants_an_answer(
    api: Harness, path: str, body: dict[str, Any]
) -> None:
    response = await api.client.post(path, json={"model": "support-bot", **body})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "model_not_supported")
    assert "makes embeddings and generates nothing; ask it at /v1/embeddings" in error["message"]


async def test_a_model_for_answers_says_so_to_who_wants_embeddings(run: Callable[..., Any]) -> None:
    async with run() as api:
        error = (await embed(api, "a")).json()["error"]
        assert (error["param"], error["code"]) == ("model", "model_not_supported")
        assert "generates texts and makes no embeddings" in error["message"]
        assert (await embed(api, "a", model="other")).status_code == 404


async def test_it_says_what_it_does(api: Harness) -> None:
    [model] = (await api.client.get("/v1/models")).json()["data"]
    assert (model["task"], model["dimensions"]) == ("embed", 4)
    info = (await api.client.get("/info")).json()
    assert info["task"] == "embed"
    assert info["chat"] is None
    assert info["embedding"] == {
        "dimensions": 4,
        "matryoshka_dimensions": None,
        "normalised": True,
        "prompts": {"query": "query: ", "plain": ""},
        "default_prompt": None,
    }


async def test_filters_hide_personal_data_from_the_model_and_leave_vectors_alone(
    run: Callable[..., Any],
) -> None:
    every = FilterPattern(name="letters", regex="[A-Za-z0-9+/=]{8,}")
    filters = FiltersConfig(pii="Mask", output="Mask", patterns=(every,))
    async with run(embedder(), server=ServerConfig(filters=filters)) as api:
        response = await embed(api, "write to me@example.com")
        assert response.json()["data"][0]["embedding"] == list(VECTOR)
        words = [api.engine.codec.words[t] for t in api.engine.requests[0].prompt_token_ids]
        assert words == ["write", "to", "[EMAIL]"]


async def test_a_repeated_request_with_its_key_is_answered_from_the_first(api: Harness) -> None:
    headers = {"Idempotency-Key": "k1"}
    body = {"model": "support-bot", "input": ["a", "b"]}
    answers = [
        (await api.client.post("/v1/embeddings", json=body, headers=headers)).json()
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert len(api.engine.requests) == 2
    await embed(api, ["a", "b"])  # Without a key nothing is kept: vectors are large.
    assert len(api.engine.requests) == 4


def test_openais_own_client_reads_vectors_and_errors(live: Callable[..., Any]) -> None:
    with live(embedder()) as harness:
        client = OpenAI(base_url=f"{harness.url}/v1", api_key=KEY, max_retries=0)
        found = client.embeddings.create(model="support-bot", input=["a b", "c"])
        assert [each.embedding for each in found.data] == [list(VECTOR)] * 2
        assert found.usage.prompt_tokens == 3
        with pytest.raises(BadRequestError, match="at most 2048 are embedded at once"):
            client.embeddings.create(model="support-bot", input=["a"] * 10_000)


async def test_the_tokens_of_a_text_to_embed_can_be_asked_but_not_those_of_a_conversation(
    api: Harness,
) -> None:
    response = await api.client.post("/tokenize", json={"prompt": "one two"})
    assert (response.status_code, response.json()["count"]) == (200, 2)
    messages = [{"role": "user", "content": "one two"}]
    refused = await api.client.post("/tokenize", json={"messages": messages})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "model_not_supported"
