"""What the operator reads off a pod's own metrics."""

import asyncio
import math

import pytest
from aiohttp import web

from llm_operator.pods import HttpPods, read
from llm_operator.state import Download
from llm_runtime import contract
from llm_runtime.metrics import Metrics


def test_what_a_runtime_exposes_is_what_the_operator_reads():
    metrics = Metrics()
    metrics.count_request("POST", "/v1/completions", 200, 0.1, api=True)
    metrics.count_request("POST", "/v1/completions", 503, 0.1, api=True)
    metrics.first_token.observe(0.03)
    metrics.inter_token.observe(0.02, 5)
    metrics.adapters = lambda: [("legal", "2", True), ("tone", "1", False)]
    metrics.failed_adapters = lambda: [("tone", "1", "ModelCorrupt")]

    figures = read(metrics.render().decode())

    assert (figures.requests, figures.errors) == (2, 1)
    assert dict(figures.adapters) == {"legal": "2"}
    assert dict(figures.adapter_failures) == {"tone": "ModelCorrupt"}
    assert figures.first_token[0.025] == 0
    assert figures.first_token[0.05] == figures.first_token[math.inf] == 1
    assert figures.inter_token[math.inf] == 5
    assert figures.download is None


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


@pytest.mark.parametrize("answer", [web.Response(status=500), web.Response(text="<html>"), None])
def test_a_pod_that_answers_nonsense_or_nothing_has_no_figures(answer, monkeypatch):
    async def scenario():
        async def respond(request: web.Request) -> web.Response:
            return answer if answer is not None else await asyncio.sleep(60)

        app = web.Application()
        app.router.add_get(contract.METRICS_PATH, respond)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        monkeypatch.setattr(contract, "PORT", runner.addresses[0][1])
        monkeypatch.setattr("llm_operator.pods.TIMEOUT_SECONDS", 0.2)
        pods = HttpPods()
        try:
            return await pods.figures({"metadata": {"name": "p"}, "status": {"podIP": "127.0.0.1"}})
        finally:
            await pods.close()
            await runner.cleanup()

    assert asyncio.run(scenario()) is None


def test_a_pod_without_an_address_is_not_asked():
    async def scenario():
        pods = HttpPods()
        try:
            return await pods.figures({"metadata": {"name": "p"}, "status": {}})
        finally:
            await pods.close()

    assert asyncio.run(scenario()) is None
