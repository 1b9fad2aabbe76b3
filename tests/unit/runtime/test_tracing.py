"""Spans of generation requests: whose child they are, what they say, what they never say,
and how they travel."""

import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fakes import ScriptedEngine
from harness import Harness
from llm_runtime import errors, tracing
from llm_runtime.tracing import Tracing
from unit.runtime.responses import keeping
from waiting import until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def traced(run: Any, spans: InMemorySpanExporter) -> AsyncIterator[Harness]:
    async with run(ScriptedEngine(), tracing=Tracing(SimpleSpanProcessor(spans))) as api:
        yield api


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_is_a_span_of_its_callers_trace(
    traced: Harness, spans: InMemorySpanExporter, stream: bool
) -> None:
    traced.client.headers["traceparent"] = f"00-{TRACE}-{PARENT}-01"
    answer = await traced.chat(max_tokens=2, temperature=0.5, stream=stream)
    [span] = spans.get_finished_spans()
    assert span.name == "chat support-bot"
    assert span.parent
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    found = dict(span.attributes or {})
    assert found.pop("gen_ai.response.time_to_first_chunk") > 0
    assert found.pop("llm_runtime.request_id") == answer.headers["x-request-id"]
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "llm-runtime",
        "gen_ai.request.model": "support-bot",
        "gen_ai.request.max_tokens": 2,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.top_k": 0,
        "gen_ai.request.choice.count": 1,
        "gen_ai.request.stream": stream,
        "gen_ai.response.model": "support-bot",
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 2,
        "llm_runtime.cached": False,
        "llm_runtime.model_version": "3",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
    }


async def test_a_response_in_the_background_has_the_span_of_its_request(
    traced: Harness, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    keeping(traced)
    asked = {"model": "support-bot", "input": "hi", "background": True, "max_output_tokens": 2}
    answer = await traced.client.post("/v1/responses", json=asked)
    await until(lambda: bool(traced.rows))
    [span] = spans.get_finished_spans()
    assert (answer.status_code, span.name) == (200, "chat support-bot")
    assert (span.attributes or {})["gen_ai.request.max_tokens"] == 2
    assert not [record for record in caplog.records if "ended span" in record.message]


async def test_no_span_holds_a_prompt_an_answer_or_a_key(
    traced: Harness, spans: InMemorySpanExporter
) -> None:
    await traced.client.post("/predict", json={"prompt": "my secret", "max_length": 3})
    [span] = spans.get_finished_spans()
    assert (span.name, (span.attributes or {})["gen_ai.request.max_tokens"]) == (
        "text_completion support-bot",
        3,
    )
    assert not any(word in span.to_json() for word in ("secret", "Hello", "llmk_", "web"))


async def test_a_refusal_is_a_span_with_its_status(
    traced: Harness, spans: InMemorySpanExporter
) -> None:
    await traced.chat(model="other")
    await traced.client.get("/livez")
    [span] = spans.get_finished_spans()
    assert not span.status.is_ok
    assert (span.attributes or {})["http.response.status_code"] == 404
    assert (span.attributes or {})["error.type"] == "404"


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """What OpenTelemetry's collector is to an exporter."""
    received: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(
                ExportTraceServiceRequest.FromString(
                    self.rfile.read(int(self.headers["Content-Length"]))
                )
            )
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    server.server_close()


def test_spans_reach_a_collector_by_the_end(
    receiver: tuple[str, list[ExportTraceServiceRequest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, received = receiver
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    made = tracing.from_environment()
    assert made
    with made.request("/v1/completions", {}, "req-1"):
        made.answered(200)
    made.close()
    [[sent]] = [each.resource_spans for each in received]
    assert sent.scope_spans[0].spans[0].name == "text_completion"
    assert "llm-runtime" in str(sent.resource)


def test_without_an_address_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tracing.ADDRESSES:
        monkeypatch.delenv(name, raising=False)
    assert tracing.from_environment() is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert tracing.from_environment() is None


def test_an_address_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1/v1/traces")
    monkeypatch.setitem(
        __import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None
    )
    with pytest.raises(errors.ConfigInvalid, match=r"install llm-operator\[runtime,tracing\]"):
        tracing.from_environment()
