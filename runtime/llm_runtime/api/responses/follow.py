"""Responses of HTTP that tell a response, or follow one that runs."""

from contextlib import nullcontext
from typing import Any

from starlette.responses import Response

from llm_runtime import errors
from llm_runtime.api.answers import openai_error
from llm_runtime.common.background import Run
from llm_runtime.stream import EventStream, compact_json, named_sse


def json_response(content: dict[str, Any]) -> Response:
    """A response as JSON. Tools may hold numbers that orjson does not write."""
    return Response(compact_json(content), media_type="application/json")


def run_stream(run: Run, timeout_seconds: float, after: int = -1) -> EventStream:
    """The events of a run behind the one with the number `after`. Who leaves does not end it."""
    return EventStream(
        nullcontext(),
        run.follow(after),
        fault=_error,
        timeout_seconds=timeout_seconds,
        done=b"",
    )


def _error(refusal: errors.Refusal) -> bytes:
    return named_sse({**openai_error(refusal)["error"], "type": "error"})
