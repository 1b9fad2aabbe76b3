"""What the OpenAPI document says of every endpoint:
its refusals in each shape, event streams, examples."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

STATUSES = {
    400: "The request can't be answered as it is; the message names the field.",
    401: "No API key, or an unknown one.",
    403: "The key is suspended, expired, or may not do this.",
    404: "No such model, or nothing of this id.",
    405: "Another method.",
    408: "The body did not come in time.",
    409: "A request with this Idempotency-Key is being answered.",
    413: "The body is too large.",
    415: "The body is compressed.",
    429: "A limit, a quota or the queue is full; `Retry-After` says when to come back.",
    500: "A fault of the server; its log has the reason under the request's id.",
    503: (
        "No model is loaded, or the server is shutting down; `Retry-After` says when to come back."
    ),
}
Responses = dict[int | str, dict[str, Any]]


class OpenAIFault(BaseModel):
    """What OpenAI's clients turn into an exception."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorAnswer(BaseModel):
    """An error in OpenAI's shape."""

    error: OpenAIFault


class AnthropicErrorCode(BaseModel):
    """What a program may go by."""

    error_code: str


class AnthropicFault(BaseModel):
    """What Anthropic's clients turn into an exception."""

    type: str
    message: str
    details: AnthropicErrorCode | None = None
    """There if the error has a code."""


class AnthropicErrorAnswer(BaseModel):
    """An error in Anthropic's shape."""

    type: Literal["error"]
    error: AnthropicFault
    request_id: str | None


class OwnErrorAnswer(BaseModel):
    """An error in this project's shape."""

    error: str
    message: str
    details: dict[str, Any]
    timestamp: datetime
    request_id: str | None


def refusals(shape: type[BaseModel]) -> Responses:
    """Every error status, in one shape."""
    return {status: {"model": shape, "description": text} for status, text in STATUSES.items()}


OPENAI_ERRORS = refusals(OpenAIErrorAnswer)
ANTHROPIC_ERRORS = refusals(AnthropicErrorAnswer)
OWN_ERRORS = refusals(OwnErrorAnswer)


def _stream(description: str, event: str) -> Responses:
    data = {"data": {"type": "string"}}
    schema = {"type": "object", "description": event, "properties": data}
    content = {"text/event-stream": {"schema": schema}}
    return {200: {"description": description, "content": content}}


_EVENT = "An event: JSON in `data`, in the last one `[DONE]`. Comments keep the connection open."
_OR_EVENTS = "The answer; with `stream: true` server-sent events"
EVENTS = _stream("Server-sent events", _EVENT)
JSON_OR_EVENTS = _stream(_OR_EVENTS, _EVENT)
JSON_OR_NAMED_EVENTS = _stream(
    _OR_EVENTS,
    "An event: its name in `event`, and JSON in `data`. The last is `message_stop` or `error`;"
    " `ping` keeps the connection open.",
)
JSON_OR_RESPONSE_EVENTS = _stream(
    _OR_EVENTS,
    "An event: its name in `event`, and JSON in `data` with its `sequence_number`. The last is"
    " `response.completed`, `response.incomplete`, `response.failed` or `error`. Comments keep the"
    " connection open.",
)


Thoughts = Annotated[str | None, Field(exclude_if=lambda thoughts: thoughts is None)]
"""What a model that thinks first has thought; not there if it has not."""


def example(**fields: Any) -> ConfigDict:
    """A body as a client would send it."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


def describe(app: FastAPI) -> None:
    """Take out of the OpenAPI document what FastAPI adds by itself and this server never answers:
    422."""
    built = app.openapi

    def openapi() -> dict[str, Any]:
        document = built()
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
