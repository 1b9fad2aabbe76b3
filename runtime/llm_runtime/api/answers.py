"""JSON answers and error answers: errors have OpenAI's shape where OpenAI's clients look,
Anthropic's where Anthropic's do, and the project's own everywhere else."""

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from llm_runtime import errors, logs
from llm_runtime.api.server import server_of
from llm_runtime.auth.callers import client_host, tenant_address
from llm_runtime.contract import (
    COUNT_PATH,
    DETOKENIZE_PATH,
    EMBEDDINGS_PATH,
    MESSAGES_PATH,
    RESPONSES_PATH,
    TOKENIZE_PATH,
    TOKENIZER_PATH,
)
from llm_runtime.stream import ClientGone

log = logging.getLogger(__name__)

OPENAI_ROOT = "/v1"
OWN_PATHS = frozenset({"/v1/generate", "/v1/stream", "/v1/chat", "/v1/key"})
"""Paths of the project's own dialects. Everything else under OpenAI's root, but for Anthropic's
messages, is asked for by OpenAI's clients."""
ANTHROPICS = (MESSAGES_PATH, f"{OPENAI_ROOT}{MESSAGES_PATH}")
"""What Anthropic's clients ask for; the second if their base URL has the root, which it must
not."""
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""Anthropic's types of errors by status. Others are `invalid_request_error` below 500, and
`api_error` from there on."""
TOO_LONG = ("context_length_exceeded", "string_above_max_length")
"""Codes of a prompt that leaves no room for its answer, or has more letters than the server takes."""
ROOTLESS = ("/chat/completions", "/completions", "/models", "/responses", "/embeddings")
"""What OpenAI's clients ask for if their base URL lacks the root."""
VLLMS = (TOKENIZE_PATH, DETOKENIZE_PATH, TOKENIZER_PATH)
"""Paths of vLLM's server, whose errors have OpenAI's shape."""
CLIENT_GONE = 499
"""nginx's status for a client that left; only logs and metrics see it."""
MAX_PROBLEMS = 20
MAX_NAME = 200


class JsonResponse(Response):
    """An answer rendered in one pass, from a Pydantic model or from what JSON knows."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        if isinstance(content, BaseModel):
            return content.__pydantic_serializer__.to_json(content, by_alias=True)
        return orjson.dumps(content, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    raise TypeError(f"JSON knows no {type(value).__name__}")


def openai_error(refusal: errors.Refusal) -> dict[str, Any]:
    """The body that OpenAI's clients turn into an exception; also an event inside a stream."""
    return {
        "error": {
            "message": refusal.message,
            "type": refusal.openai_type,
            "param": refusal.param,
            "code": refusal.code,
        }
    }


def anthropic_error(refusal: errors.Refusal) -> dict[str, Any]:
    """The body that Anthropic's clients turn into an exception; also an event inside a stream."""
    code = {"details": {"error_code": refusal.code}} if refusal.code else {}
    # Anthropic's words, by which its clients know that a shorter prompt would do.
    too_long = refusal.code in TOO_LONG and refusal.param != "max_tokens"
    message = f"prompt is too long: {refusal.message}" if too_long else refusal.message
    return {
        "type": "error",
        "error": {"type": _anthropic_type(refusal), "message": message, **code},
        "request_id": logs.request_id.get(),
    }


def _anthropic_type(refusal: errors.Refusal) -> str:
    if isinstance(refusal, errors.RequestTimeout):
        return "timeout_error"
    other = "invalid_request_error" if refusal.status < 500 else "api_error"
    return ANTHROPIC_TYPES.get(refusal.status, other)


def own_error(refusal: errors.Refusal, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The body of the other dialects."""
    named = {"field": refusal.param} if refusal.param else {}
    return {
        "error": refusal.error,
        "message": refusal.message,
        "details": {**named, **({"code": refusal.code} if refusal.code else {}), **(details or {})},
        "timestamp": datetime.now(UTC).isoformat(),
        "request_id": logs.request_id.get(),
    }


def error_response(
    path: str, refusal: errors.Refusal, details: Mapping[str, Any] | None = None
) -> JsonResponse:
    """An error answer in the shape that `path`'s clients expect."""
    if is_anthropics(path):
        body = anthropic_error(refusal)
    elif _is_openais(path):
        body = openai_error(refusal)
    else:
        body = own_error(refusal, details)
    return JsonResponse(body, refusal.status, headers=_headers(refusal))


def is_anthropics(path: str) -> bool:
    """Whether Anthropic's clients ask for `path`."""
    return path.startswith(ANTHROPICS) and path.partition(MESSAGES_PATH)[2][:1] in ("", "/")


def _is_openais(path: str) -> bool:
    under_root = path == OPENAI_ROOT or path.startswith(f"{OPENAI_ROOT}/")
    return (under_root and path not in OWN_PATHS) or path in VLLMS or path.startswith(ROOTLESS)


def _not_here(path: str) -> errors.NotFound:
    if path.startswith(ANTHROPICS[1]):
        hint = f"if you speak Anthropic's API, let the base URL end before {OPENAI_ROOT}"
    elif is_anthropics(path):
        hint = f"of Anthropic's API there are {MESSAGES_PATH}, {COUNT_PATH}"
    elif path.startswith(ROOTLESS):
        hint = f"if you speak OpenAI's API, let the base URL end in {OPENAI_ROOT}"
    elif _is_openais(path):
        hint = (
            f"of OpenAI's API there are {OPENAI_ROOT}/chat/completions, {OPENAI_ROOT}/completions,"
            f" {RESPONSES_PATH}, {EMBEDDINGS_PATH}, {OPENAI_ROOT}/models"
        )
    else:
        hint = "see /docs"
    return errors.NotFound(f"There is no {path} here; {hint}.", code="not_found")


def _headers(refusal: errors.Refusal) -> dict[str, str]:
    headers = {}
    if refusal.retry_after_seconds is not None and refusal.status in (429, 503):
        headers["Retry-After"] = str(math.ceil(refusal.retry_after_seconds))
        # OpenAI's clients look here first: whole seconds are long for a limit that frees a place
        # every 50 ms.
        headers["retry-after-ms"] = str(math.ceil(refusal.retry_after_seconds * 1000))
    if refusal.should_retry is not None:
        headers["x-should-retry"] = str(refusal.should_retry).lower()
    if refusal.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


async def on_refusal(request: Request, refusal: Exception) -> Response:
    """Answer a refusal of our own."""
    assert isinstance(refusal, errors.Refusal)
    await _note(request, refusal)
    return error_response(request.url.path, refusal)


async def on_validation_error(request: Request, error: Exception) -> Response:
    """Answer a body that Pydantic refused:
    the first problem in the message, all of them in the details."""
    assert isinstance(error, RequestValidationError)
    problems = [_problem(found) for found in error.errors()[:MAX_PROBLEMS]]
    field, text, code = problems[0]
    message = f"{field}: {text}" if field else text
    refusal = errors.InvalidRequest(message, param=field or None, code=code)
    await _note(request, refusal)
    details = {"problems": [{"field": field, "problem": text} for field, text, _ in problems]}
    return error_response(request.url.path, refusal, details)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answer what the framework refuses: unknown paths, wrong methods, unreadable bodies."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    method = request.method
    refusal: errors.Refusal
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            refusal = _not_here(path)
        case HTTPStatus.METHOD_NOT_ALLOWED:
            refusal = errors.MethodNotAllowed(
                f"{path} does not take {method}.", code="method_not_allowed"
            )
        case _:
            refusal = errors.InvalidRequest(
                "The body can't be read: send JSON in UTF-8.", code="invalid_json"
            )
    await _note(request, refusal)
    response = error_response(path, refusal)
    response.headers.update(error.headers or {})
    if response.headers.get("allow") == "GET":
        response.headers["allow"] = "GET, HEAD"
    return response


async def _note(request: Request, refusal: errors.Refusal) -> None:
    """Count a refusal. A client with many recent refusals waits for the next one."""
    if getattr(request.state, "unbilled", False):
        return
    server = server_of(request)
    server.metrics.errors.labels(refusal.error).inc()
    caller = getattr(request.state, "caller", None)
    await server.throttle.refuse(
        caller.id if caller else tenant_address(client_host(request)), refusal
    )


async def on_client_gone(request: Request, error: Exception) -> Response:
    """Nobody reads this; the status is for the access log."""
    return Response(status_code=CLIENT_GONE)


def internal_error(path: str) -> JsonResponse:
    """The answer to a fault of ours. It has only the request's id, under which the log has the
    rest."""
    message = f"The server failed; its log has the reason under {logs.request_id.get()}."
    return error_response(path, errors.Refusal(message, code="internal_error"))


HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    errors.Refusal: on_refusal,
    RequestValidationError: on_validation_error,
    HTTPException: on_http_exception,
    ClientGone: on_client_gone,
    ClientDisconnect: on_client_gone,
}


async def answer_to(request: Request, fault: Exception) -> Response:
    """The answer to what went wrong; raises `fault` again if it is none of those that have one."""
    for kind in type(fault).__mro__:
        if handler := HANDLERS.get(kind):
            return await handler(request, fault)
    raise fault


def _problem(found: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """(field, what is wrong, code) of one Pydantic error.
    What the client sent is never repeated."""
    field = _field(tuple(found["loc"]))
    match found["type"]:
        case "extra_forbidden":
            return (
                field,
                "not supported by this server; send the request without it",
                "unsupported_parameter",
            )
        case "missing":
            return field, "required", "missing_required_parameter"
        case "json_invalid":
            return "", f"The body is not JSON: {found['ctx']['error']}.", "invalid_json"
        case "model_type" if not field:
            return "", "The body must be a JSON object.", "invalid_type"
        case "conflict":
            return str(found["ctx"]["field"]), str(found["msg"]), "invalid_value"
    return field, str(found["msg"]).removeprefix("Value error, "), "invalid_value"


def _field(location: tuple[str | int, ...]) -> str:
    """`("body", "messages", 0, "role")` as `messages[0].role`."""
    name = ""
    for part in location[1:]:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    # The last part may be a name of the client's own making.
    return name[:MAX_NAME].encode(errors="replace").decode()
