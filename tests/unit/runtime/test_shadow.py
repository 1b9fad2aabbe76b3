"""Shadow traffic: stable copies what it has answered, the candidate answers for nothing,
and only the tally remains."""

import asyncio
import base64
import json
import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes import ScriptedEngine
from harness import KEY, Harness, chat_body, events
from llm_runtime import errors
from llm_runtime.cache.completions import CompletionCache
from llm_runtime.contract import SHADOW_HEADER, CompletionCacheConfig, ServerConfig, ShadowFile
from llm_runtime.request import EngineStats
from llm_runtime.shadow import Orders
from llm_runtime.shadow.agreement import ModelAnswer, differences, failure, similarity
from llm_runtime.shadow.copies import HELD_BYTES, read, without_stream
from unit.runtime.responses import keeping
from unit.runtime.whole import HEADERS, server
from waiting import eventually, until

TOKEN = "t" * 43
STABLE = "bot-1111111111-abc-1"
CANDIDATE = "bot-2222222222-abc-1"
GREEDY = {"temperature": 0, "max_tokens": 10}


class Pair:
    """A stable pod in this process, and a candidate behind a real port."""

    def __init__(self, stable: Harness, candidate: Harness, write: Callable[..., None]) -> None:
        self.stable = stable
        self.candidate = candidate
        self.write = write

    async def settled(self, copies: int) -> dict[str, float]:
        """What stable's metrics say of its copies, once so many have ended."""
        await until(
            lambda: sum(v for k, v in self.tally().items() if k.startswith("copies")) >= copies
        )
        return self.tally()

    def tally(self) -> dict[str, float]:
        found = dict[str, float]()
        for family in self.stable.server.metrics.registry.collect():
            for sample in family.samples:
                if family.name.startswith("llm_shadow_") and sample.name.endswith("_total"):
                    labels = {
                        name: value for name, value in sample.labels.items() if name != "candidate"
                    }
                    found[" ".join([family.name.removeprefix("llm_shadow_"), *labels.values()])] = (
                        sample.value
                    )
        return found


def orders(path: Path, pod: str) -> Orders:
    times = iter(range(1, 1_000_000))
    return Orders(path, pod, clock=lambda: float(next(times)))


def order(url: str = "http://127.0.0.1:9", **fields: Any) -> str:
    fields = {
        "stable": "bot-1111111111",
        "candidate": "bot-2222222222",
        "url": url,
        "token": TOKEN,
        **fields,
    }
    return ShadowFile(**fields).model_dump_json(by_alias=True)


@pytest.fixture
async def pair(request: pytest.FixtureRequest, run: Any, live: Any, tmp_path: Path) -> Any:
    engines = getattr(request, "param", {})
    file = tmp_path / "shadow.json"
    settings = ServerConfig(request_timeout_seconds=30)
    with live(engines.get("candidate"), settings, shadow=orders(file, CANDIDATE)) as candidate:

        def write(**fields: Any) -> None:
            beside = tmp_path / "next"
            beside.write_text(order(**{"url": candidate.url, **fields}))
            beside.replace(file)

        write()
        async with run(engines.get("stable"), settings, shadow=orders(file, STABLE)) as stable:
            yield Pair(stable, candidate, write)


def other() -> dict[str, ScriptedEngine]:
    return {"candidate": ScriptedEngine(script=("Good", " evening", ",", " friend"))}


async def test_an_answer_is_compared_with_what_the_candidate_says_to_the_same_request(
    pair: Pair,
) -> None:
    answer = await pair.stable.chat(**GREEDY)
    found = await pair.settled(1)
    assert answer.json()["choices"][0]["message"]["content"] == "Hello there!"
    assert found["copies compared"] == 1
    assert {
        what: found[f"compared {what}"] for what in ("exact", "similarity", "finishReason")
    } == dict.fromkeys(("exact", "similarity", "finishReason"), 1)
    assert not any(value for name, value in found.items() if name.startswith("difference"))
    [asked] = pair.candidate.engine.requests
    [stable] = pair.stable.engine.requests
    assert asked.prompt_token_ids == stable.prompt_token_ids
    assert asked.sampling == stable.sampling


@pytest.mark.parametrize("pair", [other()], indirect=True)
async def test_a_candidate_that_says_something_else_differs(pair: Pair) -> None:
    await pair.stable.chat(**GREEDY)
    found = await pair.settled(1)
    assert found["difference exact"] == 1
    assert 0 < found["difference similarity"] <= 1
    assert found["difference finishReason"] == 0


async def test_a_stream_is_compared_whole(pair: Pair) -> None:
    answer = await pair.stable.chat(**GREEDY, stream=True, stream_options={"include_usage": True})
    assert events(answer.text)[-1] == "[DONE]"
    found = await pair.settled(1)
    assert (found["copies compared"], found["difference exact"]) == (1, 0)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "support-bot", "prompt": "a b", **GREEDY}),
        ("/v1/generate", {"prompt": "a b", **GREEDY}),
        ("/v1/stream", {"prompt": "a b", **GREEDY}),
        ("/v1/chat", {"messages": [{"role": "user", "content": "hi"}], **GREEDY}),
    ],
)
async def test_every_dialect_is_copied(pair: Pair, path: str, body: dict[str, Any]) -> None:
    assert (await pair.stable.client.post(path, json=body)).status_code == 200
    assert (await pair.settled(1))["copies compared"] == 1


async def test_the_likeliest_token_alone_is_greedy_at_any_temperature(pair: Pair) -> None:
    await pair.stable.chat(temperature=1, top_k=1)
    assert (await pair.settled(1))["compared exact"] == 1


async def test_sampled_answers_are_not_compared_by_their_text(pair: Pair) -> None:
    await pair.stable.chat(temperature=0.7, seed=1)
    found = await pair.settled(1)
    assert found["compared finishReason"] == 1
    assert "compared exact" not in found
    assert "compared similarity" not in found


async def test_a_copy_leaves_no_trace_at_the_candidate(pair: Pair) -> None:
    for way in (pair.stable, pair.candidate):
        way.server.serving.pipeline.cache = CompletionCache(CompletionCacheConfig())
    for _ in range(3):
        await pair.stable.chat(**GREEDY, user="me")
    await pair.settled(1)  # The same answer again comes out of the cache, and is not copied.
    await pair.stable.client.post(
        "/v1/chat", json={"messages": [{"role": "user", "content": "one"}], **GREEDY}
    )
    await pair.settled(2)
    candidate = pair.candidate
    assert len(candidate.engine.requests) == 2
    assert candidate.rows == []
    assert candidate.server.serving.pipeline.cache is not None
    assert candidate.server.serving.pipeline.cache.entries == 0
    text = candidate.server.metrics.render().decode()
    counted = (
        "api_requests_total{",
        "http_requests_total{",
        "tokens_generated_total{",
        "api_errors_total{",
    )
    assert not [
        line for line in text.splitlines() if line.startswith(counted) and not line.endswith(" 0.0")
    ]
    assert "llm_time_to_first_token_seconds_count 0.0" in text
    assert len(pair.stable.rows) == 4


async def test_what_can_not_be_compared_is_not_copied(pair: Pair) -> None:
    said = {"messages": [{"role": "user", "content": "hi"}], "session_id": "s", **GREEDY}
    for response in (
        await pair.stable.chat(n=2, temperature=0.5),
        await pair.stable.client.post("/v1/predict", json={"prompt": "a"}),
        await pair.stable.chat(temperature=9),  # Refused by stable.
    ):
        assert response.status_code in (200, 400, 404, 422)
    assert (await pair.stable.client.post("/v1/chat", json=said)).status_code in (200, 400)
    await pair.stable.chat(**GREEDY)
    assert (await pair.settled(1))["copies compared"] == 1
    assert len(pair.candidate.engine.requests) == 1


@pytest.mark.parametrize("pair", [{"candidate": ScriptedEngine(token_seconds=5)}], indirect=True)
async def test_copies_beyond_the_bound_are_dropped_and_no_client_waits_for_them(pair: Pair) -> None:
    pair.write(max_in_flight=2)
    answers = await asyncio.gather(
        *(pair.stable.complete(prompt=f"a {n}", **GREEDY) for n in range(10))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert (await pair.settled(8))["copies dropped"] == 8
    assert len(pair.candidate.engine.running) <= 2


@pytest.mark.parametrize("pair", [{"candidate": ScriptedEngine(token_seconds=5)}], indirect=True)
async def test_a_stable_pod_that_ends_cuts_its_copies(pair: Pair) -> None:
    await pair.stable.chat(**GREEDY)
    await until(lambda: len(pair.candidate.engine.running) == 1)
    copier = pair.stable.server.copier
    assert copier is not None
    assert copier.held_bytes > 0
    await copier.__aexit__()
    assert copier.held_bytes == 0
    await until(lambda: len(pair.candidate.engine.cancelled) == 1)


@pytest.mark.parametrize("counts", [(64, 0), (0, 1)])
async def test_a_candidate_that_has_no_place_refuses_a_copy(
    pair: Pair, counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    running, waiting = counts
    monkeypatch.setattr(
        pair.candidate.engine, "stats", lambda: EngineStats(running, waiting, 0.0, 0, alive=True)
    )
    await pair.stable.chat(**GREEDY)
    assert (await pair.settled(1)) == {"copies refused": 1}


async def test_a_candidate_that_is_away_costs_the_copy_alone(pair: Pair) -> None:
    pair.write(url="http://127.0.0.1:9")
    assert (await pair.stable.chat(**GREEDY)).status_code == 200
    assert (await pair.settled(1)) == {"copies lost": 1}


@pytest.mark.parametrize("pair", [{"candidate": ScriptedEngine(max_model_length=3)}], indirect=True)
async def test_a_candidate_that_does_not_take_what_stable_takes_differs_in_all(pair: Pair) -> None:
    await pair.stable.complete(prompt="a b c d e f", **GREEDY)
    found = await pair.settled(1)
    assert found.get("copies failed") == 1, found
    assert [found[f"difference {what}"] for what in ("exact", "similarity", "finishReason")] == [
        1,
        1,
        1,
    ]


@pytest.mark.parametrize("pair", [{"candidate": ScriptedEngine(token_seconds=5)}], indirect=True)
async def test_a_candidate_that_never_ends_is_late(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_runtime.shadow.copies.LEAST_SECONDS", 0.2)
    await pair.stable.chat(**GREEDY)
    found = await pair.settled(1)
    assert (found["copies late"], found["difference exact"]) == (1, 1)
    assert "fine candidate seconds" in " ".join(found)


async def test_nothing_is_copied_once_the_file_is_gone_and_nobody_s_copy_is_taken(
    pair: Pair, tmp_path: Path
) -> None:
    (tmp_path / "shadow.json").unlink()
    await pair.stable.chat(**GREEDY)
    refused = await pair.candidate.client.post(
        "/v1/chat/completions", json=chat_body(**GREEDY), headers={SHADOW_HEADER: TOKEN}
    )
    assert refused.status_code == 401
    assert pair.candidate.engine.requests == []


async def test_percent_zero_copies_nothing(pair: Pair) -> None:
    pair.write(percent=0)
    for number in range(20):
        await pair.stable.complete(prompt=f"a {number}", **GREEDY)
    assert pair.tally() == {}


async def test_the_candidate_copies_nothing_though_it_reads_the_same_file(pair: Pair) -> None:
    answered = await pair.candidate.client.post("/v1/chat/completions", json=chat_body(**GREEDY))
    assert answered.status_code == 200
    assert len(pair.candidate.engine.requests) == 1
    assert len(pair.candidate.rows) == 1


async def test_another_candidate_is_counted_anew(pair: Pair) -> None:
    await pair.stable.complete(prompt="a", **GREEDY)
    await pair.settled(1)
    pair.write(candidate="bot-3333333333", url="http://127.0.0.1:9")
    await pair.stable.complete(prompt="b", **GREEDY)
    await until(lambda: pair.tally() == {"copies lost": 1})


@pytest.mark.parametrize("token", ["", "x" * 43, TOKEN + "x", KEY])
async def test_a_client_can_not_have_its_request_unbilled(pair: Pair, token: str) -> None:
    for pod in (pair.stable, pair.candidate):
        answer = await pod.client.post(
            "/v1/chat/completions", json=chat_body(), headers={SHADOW_HEADER: token}
        )
        assert answer.status_code == 401
        assert pod.engine.requests == []
    # Nor does the right token open a pod that is no candidate.
    answer = await pair.stable.client.post(
        "/v1/chat/completions", json=chat_body(), headers={SHADOW_HEADER: TOKEN}
    )
    assert answer.status_code == 401


async def test_the_token_is_in_no_line_of_the_log(
    pair: Pair, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level(logging.DEBUG):
        await pair.stable.chat(**GREEDY)
        await pair.settled(1)
        (tmp_path / "shadow.json").write_text(
            order().replace('"percent":', f'"percent": "{TOKEN}", "x":')
        )
        await pair.stable.chat(temperature=1)
    assert "is not valid" in caplog.text
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(ShadowFile.model_validate_json(order()))


async def test_a_server_without_an_operator_takes_the_header_for_nothing(api: Harness) -> None:
    answer = await api.client.post(
        "/v1/chat/completions", json=chat_body(), headers={SHADOW_HEADER: TOKEN}
    )
    assert answer.status_code == 200
    assert len(api.rows) == 1


async def test_bodies_are_kept_within_a_bound(pair: Pair) -> None:
    copier = pair.stable.server.copier
    assert copier is not None
    copy = copier.choose("/v1/completions", "")
    assert copy is not None
    copier.held_bytes = HELD_BYTES
    copier.hold(copy, b"{}")
    copy.said = ModelAnswer("a", "stop", 1, 0.1)
    copier.send(copy)
    assert copier.held_bytes == HELD_BYTES
    assert pair.tally() == {"copies dropped": 1}


def test_two_servers_as_pods_run_them(tmp_path: Path) -> None:
    with (
        server(tmp_path / "stable", "none", tier={}, pod=STABLE) as stable,
        server(
            tmp_path / "candidate", "none", tier={"requests_per_minute": 1}, pod=CANDIDATE
        ) as candidate,
    ):
        for folder in ("stable", "candidate"):
            (tmp_path / folder / "shadow.json").write_text(order(candidate.url))
        for number in range(3):
            body = {"model": "mock", "prompt": f"a {number}", **GREEDY}
            answer = httpx.post(
                f"{stable.url}/v1/completions", json=body, headers=HEADERS, trust_env=False
            )
            assert answer.status_code == 200
        eventually(lambda: stable.metric("llm_shadow_copies_total") == 3)
        assert stable.metric("llm_shadow_compared_total") == 9
        assert stable.metric("llm_shadow_difference_total") == 0
        for name in ("api_requests_total", "tokens_generated_total", "llm_shadow_copies_total"):
            assert candidate.metric(name) == 0
        assert TOKEN not in stable.log.read_text() + candidate.log.read_text()


def test_answers_are_compared_by_what_says_something_of_them() -> None:
    stable = ModelAnswer('{"a": 1}', "stop", 5, 1.0)
    assert differences(stable, stable, greedy=True) == {
        "finishReason": 0,
        "exact": 0,
        "similarity": 0,
        "json": 0,
    }
    assert differences(stable, ModelAnswer("{", "length", 5, 1.0), greedy=False) == {
        "finishReason": 1,
        "json": 1,
    }
    assert differences(
        ModelAnswer("1", "stop", 1, 1.0), ModelAnswer("2", "stop", 1, 1.0), greedy=False
    ) == {"finishReason": 0}
    assert failure(ModelAnswer("a", "stop", 1, 1.0), greedy=False) == {"finishReason": 1}


def vector(*numbers: float) -> ModelAnswer:
    written = base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
    return ModelAnswer(written, "stop", 0, 1.0, vector=True)


@pytest.mark.parametrize(
    ("candidate", "exact", "similarity"),
    [
        (vector(1, 0), 0, 0),
        (vector(0.999999, 1e-6), 0, 0),
        (vector(1, 1), 1, 0.292893),
        (vector(0, 1), 1, 1),
        (vector(-1, 0), 1, 1),
        (vector(1, 0, 0), 1, 1),
        (ModelAnswer("no vector", "stop", 2, 1.0), 1, 1),
    ],
)
def test_embeddings_are_compared_by_their_angle(
    candidate: ModelAnswer, exact: float, similarity: float
) -> None:
    found = differences(vector(1, 0), candidate, greedy=True)
    wanted = {"finishReason": 0, "exact": exact, "similarity": similarity}
    assert found == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ("abcd", "abcd", 1.0),
        ("abcd", "bcde", 0.5),
        ("abcd", "wxyz", 0.0),
        ("", "", 1.0),
        ("a", "abcd", 0.0),
    ],
)
def test_similarity_is_the_share_of_equal_pieces(one: str, other: str, found: float) -> None:
    assert similarity(one, other) == found


def test_a_copy_asks_for_a_whole_answer() -> None:
    body = json.dumps(
        {"model": "m", "stream": True, "stream_options": {}, "temperature": 0}
    ).encode()
    assert json.loads(without_stream(body) or b"") == {"model": "m", "temperature": 0}
    assert without_stream(b'{"session_id": "s"}') is None
    assert without_stream(b'{"prompt": "a"}', "m:a@2.x") == b'{"prompt":"a","model":"m:a@2.x"}'


@pytest.mark.parametrize(
    ("fields", "copied"),
    [
        ({"input": "hi"}, True),
        ({"input": [{"role": "user", "content": "hi"}], "store": True}, True),
        ({"input": [{"type": "function_call_output"}]}, True),
        ({"input": "hi", "background": False, "previous_response_id": None}, True),
        ({"input": "hi", "background": True}, False),
        ({"input": "hi", "previous_response_id": "resp_1"}, False),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, False),
        ({"input": [{"id": "msg_1"}]}, False),
    ],
)
def test_a_response_that_refers_to_what_is_kept_is_not_copied(fields: Any, copied: bool) -> None:
    assert (without_stream(json.dumps(fields).encode()) is not None) is copied


async def test_a_copy_of_a_response_is_compared_and_kept_nowhere(pair: Pair) -> None:
    stores = [keeping(side) for side in (pair.stable, pair.candidate)]
    asked = {"model": "support-bot", "input": "hi", "temperature": 0, "store": True}
    assert (await pair.stable.client.post("/v1/responses", json=asked)).status_code == 200
    assert (await pair.settled(1))["copies compared"] == 1
    assert [len(list(store._known.items())) for store in stores] == [1, 0]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"text": 1}', b'{"text": "", "reason": "", "tokens": "x"}']
)
def test_what_is_no_answer_of_a_candidate_is_none(content: bytes) -> None:
    assert read(content) is None


def test_a_file_that_is_broken_copies_nothing_and_takes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "shadow.json"
    file.write_text(order())
    stable = orders(file, STABLE)
    candidate = orders(file, CANDIDATE)
    assert stable.copying
    assert candidate.copying == ()
    assert candidate.check(TOKEN) is False
    file.write_text('{"token": "short"}')
    assert stable.copying == ()
    with pytest.raises(errors.Unauthorized):
        candidate.check(TOKEN)
