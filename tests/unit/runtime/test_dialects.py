"""The dialects beside OpenAI's: /predict, /v1/generate and /v1/stream."""

import pytest

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
    body = {"prompt": "a b", "max_length": 2, "temperature": 0.5, "top_p": 0.5, "stop_tokens": ["x", "y"]}
    await api.client.post("/predict", json=body)
    sampling = api.engine.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.stop) == (2, 0.5, 0.5, ("x", "y"))


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
    answer = await api.client.post("/v1/generate", json={"prompt": "a", name: 1, "top_k": 5, "stop": "z", "seed": 1})
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
        {"text": "", "finish_reason": "stop", "tokens_generated": 3, "cached": False},
        "[DONE]",
    ]


async def test_refusals_name_kind_field_and_request(api: Harness) -> None:
    response = await api.client.post("/predict", json={"max_length": 0}, headers={"X-Request-ID": "mine-1"})
    answer = response.json()
    assert response.status_code == 400
    assert answer.pop("timestamp")
    assert answer == {
        "error": "validation_error",
        "message": "prompt: required",
        "details": {
            "field": "prompt",
            "code": "missing_required_parameter",
            "problems": [
                {"field": "prompt", "problem": "required"},
                {"field": "max_length", "problem": "Input should be greater than or equal to 1"},
            ],
        },
        "request_id": "mine-1",
    }
    assert response.headers["x-request-id"] == "mine-1"


async def test_generate_refuses_another_model_and_streaming_here(api: Harness) -> None:
    assert (await api.client.post("/v1/generate", json={"prompt": "a", "model": "other"})).status_code == 404
    refused = await api.client.post("/v1/generate", json={"prompt": "a", "stream": True})
    assert (refused.status_code, refused.json()["details"]["field"]) == (400, "stream")


async def test_idempotency_key_is_read_by_every_dialect(api: Harness) -> None:
    bodies: dict[str, dict[str, object]] = {
        "/v1/completions": {"model": "support-bot", "prompt": "a"},
        "/v1/chat/completions": {"model": "support-bot", "messages": [{"role": "user", "content": "a"}]},
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
