"""OpenTelemetry spans of generation requests.
Off, and without any cost, unless an exporter endpoint is set.

Attributes follow the semantic conventions for generative AI, but only numbers and names: no prompt,
no answer, no key. A caller's `traceparent` becomes the parent. Only this module needs the extra
`tracing`.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llm_runtime import errors
from llm_runtime.contract import (
    CHAT_PATH,
    COUNT_PATH,
    DETOKENIZE_PATH,
    EMBEDDINGS_PATH,
    MESSAGES_PATH,
    RESPONSES_PATH,
    TOKENIZE_PATH,
)
from llm_runtime.usage import Outcome, UsageLog, UsageRow

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

ADDRESSES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
OPERATIONS = {
    CHAT_PATH: "chat",
    "/v1/chat": "chat",
    MESSAGES_PATH: "chat",
    RESPONSES_PATH: "chat",
    COUNT_PATH: "count_tokens",
    EMBEDDINGS_PATH: "embeddings",
    TOKENIZE_PATH: "tokenize",
    DETOKENIZE_PATH: "detokenize",
}
"""Operation names by route. All other routes are text completions."""
REQUESTED = {
    "model": "gen_ai.request.model",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "max_output_tokens": "gen_ai.request.max_tokens",
    "max_new_tokens": "gen_ai.request.max_tokens",
    "max_length": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
    "stream": "gen_ai.request.stream",
    "dimensions": "gen_ai.embeddings.dimension.count",
}
"""Attributes of the conventions, by the names of fields in the dialects."""


def from_environment() -> "Tracing | None":
    """Tracing by OpenTelemetry's own variables;
    None without an endpoint. Raises `errors.ConfigInvalid`."""
    address = next((name for name in ADDRESSES if os.environ.get(name)), None)
    if address is None or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        message = (
            f"{address} is set, but OpenTelemetry is not installed: install"
            " llm-operator[runtime,tracing]"
        )
        raise errors.ConfigInvalid(message) from error
    return Tracing(BatchSpanProcessor(OTLPSpanExporter()))


class Tracing:
    """Creates spans and passes them to a processor."""

    def __init__(self, processor: "SpanProcessor") -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create(
            {"service.name": os.environ.get("OTEL_SERVICE_NAME", "llm-runtime")}
        )
        # Not set as the global provider: libraries would then create spans of their own.
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("llm_runtime")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, route: str, headers: Mapping[str, str], request_id: str) -> Iterator[None]:
        """Open the span of one request during the block. Code inside may add attributes."""
        from opentelemetry.trace import SpanKind

        parent = self._propagator.extract(
            {name: value for name, value in headers.items() if name.startswith("trace")}
        )
        operation = OPERATIONS.get(route, "text_completion")
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "llm-runtime",
            "http.route": route,
            "llm_runtime.request_id": request_id,
        }
        with self._tracer.start_as_current_span(
            operation, parent, SpanKind.SERVER, attributes, record_exception=False
        ):
            yield

    def requested(self, body: object) -> None:
        """Record the parameters of a request."""
        values = [(name, getattr(body, field, None)) for field, name in REQUESTED.items()]
        _note({name: value for name, value in values if value is not None})

    def answered(self, status: int) -> None:
        """Record the status code."""
        _note({"http.response.status_code": status})
        if status >= 400:
            _note_error(str(status))

    def follow(self, usage: UsageLog) -> UsageLog:
        """A usage log that also records each row in the request's span."""
        return _Followed(usage)

    def close(self) -> None:
        """Send the remaining spans. Takes as long as the exporter needs."""
        self._provider.shutdown()


class _Followed:
    def __init__(self, usage: UsageLog) -> None:
        self._usage = usage

    def write(self, row: UsageRow) -> None:
        self._usage.write(row)
        _note(
            {
                "gen_ai.response.model": f"{row.model}:{row.adapter}" if row.adapter else row.model,
                "gen_ai.usage.input_tokens": row.prompt_tokens,
                "gen_ai.usage.output_tokens": row.completion_tokens,
                "gen_ai.response.finish_reasons": [str(reason) for reason in row.finish_reasons],
                "llm_runtime.cached": row.cached,
                "llm_runtime.model_version": row.model_version,
            }
        )
        if row.first_token_seconds is not None:
            _note({"gen_ai.response.time_to_first_chunk": row.first_token_seconds})
        if row.outcome is not Outcome.COMPLETED:
            _note_error(str(row.outcome))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._usage, name)


def _note(attributes: Mapping[str, Any]) -> None:
    from opentelemetry.trace import get_current_span

    span = get_current_span()
    if not span.is_recording():
        return  # What runs in the background ends later than its request.
    span.set_attributes(attributes)
    if model := attributes.get("gen_ai.request.model") or attributes.get("gen_ai.response.model"):
        operation = getattr(span, "attributes", {}).get("gen_ai.operation.name", "")
        span.update_name(f"{operation} {model}")


def _note_error(kind: str) -> None:
    from opentelemetry.trace import Status, StatusCode, get_current_span

    span = get_current_span()
    if span.is_recording():
        span.set_attribute("error.type", kind)
        span.set_status(Status(StatusCode.ERROR))
