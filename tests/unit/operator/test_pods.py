"""What the operator reads off a pod's own metrics,
and how it asks a pod: over HTTP, of real servers."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from devstack.ports import free_port
from llm_operator.ports.pods import Answer, HttpPods, read
from llm_operator.state import Download, Load
from llm_runtime import contract
from llm_runtime.metrics import Metrics, Sources
from llm_runtime.request import EngineStats

POD = {"metadata": {"name": "p"}, "status": {"podIP": "127.0.0.1"}}
CHAT = {"model": "bot", "messages": [{"role": "user", "content": "The capital of France?"}]}
Handler = Callable[[web.Request], Awaitable[web.Response]]


@asynccontextmanager
async def answering(monkeypatch: pytest.MonkeyPatch, handler: Handler) -> AsyncIterator[HttpPods]:
    """A pod whose every path is answered by `handler`."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setattr(contract, "PORT", runner.addresses[0][1])
    pods = HttpPods()
    try:
        yield pods
    finally:
        await pods.close()
        await runner.cleanup()


@asynccontextmanager
async def silent(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HttpPods]:
    """A pod that takes connections and says nothing; nobody waits for it longer than 0.2 s."""

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    monkeypatch.setattr(contract, "PORT", server.sockets[0].getsockname()[1])
    monkeypatch.setattr("llm_operator.ports.pods.TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr("llm_operator.ports.pods.ANSWER_SECONDS", 0.2)
    pods = HttpPods()
    try:
        yield pods
    finally:
        await pods.close()
        server.close()
        await server.wait_closed()


def says(text: str, status: int = 200) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(text=text, status=status)

    return handler


def test_what_a_runtime_exposes_is_what_the_operator_reads():
    metrics = Metrics()
    metrics.count_request("POST", "/v1/completions", 200, 0.1, api=True)
    metrics.count_request("POST", "/v1/completions", 503, 0.1, api=True)
    metrics.first_token.observe(0.03)
    metrics.inter_token.observe(0.02, 5)
    metrics.watch(
        Sources(
            adapters=lambda: [("legal", "2", True), ("tone", "1", False)],
            failed_adapters=lambda: [("tone", "1", "ModelCorrupt")],
        )
    )

    figures = read(metrics.render().decode())

    assert (figures.requests, figures.errors) == (2, 1)
    assert dict(figures.adapters) == {"legal": "2"}
    assert dict(figures.adapter_failures) == {"tone": "ModelCorrupt"}
    assert figures.first_token[0.025] == 0
    assert figures.first_token[0.05] == figures.first_token[math.inf] == 1
    assert figures.inter_token[math.inf] == 5
    assert figures.download is None


def test_the_load_of_a_pod_is_known_once_it_has_a_model():
    metrics = Metrics()
    engine = list[EngineStats | None]([None])
    metrics.watch(Sources(engine=lambda: engine[0]))
    assert read(metrics.render().decode()).load is None
    engine[0] = EngineStats(running=3, waiting=2, kv_cache_usage_ratio=0.25, steps=1, alive=True)
    assert read(metrics.render().decode()).load == Load(3, 2, 0, 0.25)


def test_samples_of_a_bucket_of_5_percent_are_read_where_the_runtime_has_them():
    metrics = Metrics()
    for seconds in (0.0001, 0.03, 0.03, 0.0318, 1000.0):
        metrics.first_token.observe(seconds)
        metrics.first_token_fine.observe(seconds)
    text = metrics.render().decode()

    found = read(text).first_token

    assert tuple(found) == (*contract.FINE_BOUNDS_SECONDS, math.inf)
    assert [found[bound] for bound in (0.001, 0.02898, 0.03043, 0.03195, 61.49, math.inf)] == [
        1,
        1,
        3,
        4,
        4,
        5,
    ]
    assert text.count("llm_time_to_first_token_fine_total{") == 4


def test_a_fetching_pod_tells_how_far_it_is():
    text = "\n".join(
        f"# TYPE {name} gauge\n{name} {value}"
        for name, value in (
            (contract.METRIC_DOWNLOADED_BYTES, 630),
            (contract.METRIC_DOWNLOAD_SIZE_BYTES, 1000),
            (contract.METRIC_DOWNLOAD_RATE, 41),
        )
    )
    assert read(text + "\n").download == Download(630, 1000, 41)


@pytest.mark.parametrize("text", ["<html>", "a{", "a b c d\n"])
def test_anything_else_is_a_value_error(text: str):
    with pytest.raises(ValueError, match=r"."):
        read(text)


@pytest.mark.parametrize("figure", ["NaN", "+Inf", "-1", "1e300"])
@pytest.mark.parametrize("name", [contract.METRIC_API_REQUESTS, contract.METRIC_SHADOW_COPIES])
def test_a_figure_that_nobody_can_have_counted_is_a_value_error(name: str, figure: str):
    labels = 'status="200",candidate="bot-new",result="compared"'
    with pytest.raises(ValueError, match="nothing was counted"):
        read(f"# TYPE {name} counter\n{name}_total{{{labels}}} {figure}\n")


@pytest.mark.parametrize(("text", "status"), [("", 500), ("<html>", 200)])
async def test_a_pod_that_answers_nonsense_has_no_figures(
    text: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering(monkeypatch, says(text, status)) as pods:
        assert await pods.figures(POD) is None


async def test_a_pod_that_says_nothing_has_no_figures_and_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with silent(monkeypatch) as pods:
        assert await pods.figures(POD) is None
        answer = await pods.ask(POD, "", CHAT)
        assert (answer.status, "Timeout" in answer.text) == (0, True)


async def test_a_pod_without_an_address_is_not_asked() -> None:
    pods = HttpPods()
    nowhere: dict[str, Any] = {"metadata": {"name": "p"}, "status": {}}
    assert await pods.figures(nowhere) is None
    assert await pods.ask(nowhere, "", CHAT) == Answer(0, "the pod has no address yet")
    await pods.close()


async def test_a_pod_that_does_not_listen_yet_has_not_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contract, "PORT", free_port())
    pods = HttpPods()
    answer = await pods.ask(POD, "", CHAT)
    assert (answer.status, "ConnectError" in answer.text) == (0, True)
    await pods.close()


@pytest.mark.parametrize("template", [True, False], ids=["with a chat template", "without"])
async def test_a_prompt_is_said_by_a_user_and_continued_only_where_there_is_no_chat(
    monkeypatch: pytest.MonkeyPatch, template: bool
) -> None:
    heard: list[tuple[str, str | None, Any]] = []

    async def openai(request: web.Request) -> web.Response:
        heard.append((request.path, request.headers.get("Authorization"), await request.json()))
        chat = request.path.endswith("/chat/completions")
        if chat and not template:
            error = {"message": "the model has no chat template", "code": contract.NO_CHAT_TEMPLATE}
            return web.json_response({"error": error}, status=400)
        choice: dict[str, Any] = (
            {"message": {"role": "assistant", "content": "Paris"}} if chat else {"text": " Paris"}
        )
        return web.json_response({"choices": [choice]})

    prompt = {
        "model": "bot",
        "prompt": "The capital of France is",
        "max_tokens": 8,
        "temperature": 0,
    }
    said = {**prompt, "messages": [{"role": "user", "content": prompt["prompt"]}]}
    del said["prompt"]
    async with answering(monkeypatch, openai) as pods:
        answer = await pods.ask(POD, "llmk_a", prompt)
    asked = [
        ("/v1/chat/completions", "Bearer llmk_a", said),
        ("/v1/completions", "Bearer llmk_a", prompt),
    ]
    assert heard == asked[: 1 if template else 2]
    assert answer == Answer(200, "Paris" if template else " Paris")


async def test_chats_go_to_their_endpoint_with_the_key_and_come_back_as_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[tuple[str, str | None, Any]] = []

    async def openai(request: web.Request) -> web.Response:
        heard.append((request.path, request.headers.get("Authorization"), await request.json()))
        return web.json_response(
            {"choices": [{"message": {"role": "assistant", "content": "Paris"}}]}
        )

    async with answering(monkeypatch, openai) as pods:
        assert await pods.ask(POD, "llmk_a", CHAT) == Answer(200, "Paris")
        assert await pods.ask(POD, "", CHAT) == Answer(200, "Paris")
    assert heard == [("/v1/chat/completions", key, CHAT) for key in ("Bearer llmk_a", None)]


async def test_a_refusal_comes_back_with_its_status_and_what_it_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with answering(
        monkeypatch, says('{"error": {"message": "wrong key"}}' + " " * 1000, 401)
    ) as pods:
        answer = await pods.ask(POD, "llmk_a", CHAT)
    assert answer.status == 401
    assert "wrong key" in answer.text
    assert len(answer.text) == 500


@pytest.mark.parametrize(
    "text",
    [
        "<html>",
        "[]",
        "null",
        '{"choices": []}',
        '{"choices": [{"message": "Paris"}]}',
        "[" * 100_000,
    ],
)
async def test_an_answer_that_is_none_of_the_api_is_no_answer(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering(monkeypatch, says(text)) as pods:
        answer = await pods.ask(POD, "", CHAT)
    assert answer.status == 0
    assert answer.text


async def test_an_answer_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_operator.ports.pods.MAX_BYTES", 1000)
    async with answering(
        monkeypatch, says(json.dumps({"choices": [{"text": "a" * 2000}]}))
    ) as pods:
        answer = await pods.ask(POD, "", CHAT)
        assert (answer.status, "more than 1000 bytes" in answer.text) == (0, True)
        assert await pods.figures(POD) is None


def test_tokens_of_answers_speed_and_memory_are_read_and_an_older_runtime_has_none() -> None:
    metrics = Metrics()
    metrics.watch(Sources(memory_bytes=lambda: 5 << 30))
    untouched = read(metrics.render().decode())
    assert (untouched.answer_tokens, untouched.token_gap, untouched.memory_bytes) == (
        {},
        {},
        float(5 << 30),
    )
    metrics.answer_tokens_fine.observe(7)
    metrics.answer_tokens_fine.observe(1000, 2)
    found = read(metrics.render().decode()).answer_tokens
    assert found is not None
    assert (found[6.0], found[7.0], found[math.inf]) == (0, 1, 3)
    older = "\n".join(
        line
        for line in metrics.render().decode().split("\n")
        if "_fine" not in line and contract.METRIC_MEMORY not in line
    )
    said = read(older)
    assert (said.answer_tokens, said.token_gap, said.memory_bytes) == (None, None, None)


async def test_a_load_probe_is_asked_with_the_operators_key_and_an_older_runtime_says_404(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard = []
    figures = contract.LoadFigures(answers=3, tokens_per_second=9.5, first_token_seconds=(0.1, 0.2))

    async def handler(request: web.Request) -> web.Response:
        heard.append((request.path, request.headers["Authorization"], await request.json()))
        if len(heard) > 1:
            return web.Response(status=404, text="no such path")
        return web.Response(
            text=figures.model_dump_json(by_alias=True), content_type="application/json"
        )

    async with answering(monkeypatch, handler) as pods:
        assert await pods.probe(POD, "llmk_a_b", {"seconds": 1.0}) == figures
        assert await pods.probe(POD, "llmk_a_b", {"seconds": 1.0}) == Answer(404, "no such path")
    assert heard[0] == ("/load-probe", "Bearer llmk_a_b", {"seconds": 1.0})
