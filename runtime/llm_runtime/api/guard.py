"""What comes before a generation endpoint: the key, the model's readiness, the count of the
request, the body and its largest size.

A body is read only for an endpoint that takes one. Its size is checked before it is parsed; the
bounds themselves are settings, `contract.ServerConfig`.

FastAPI only describes these routes (`/openapi.json`); a request goes from `BodyRoute.respond`
straight to the endpoint, without solving dependencies, and is parsed in one pass.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, get_type_hints

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from llm_runtime import errors
from llm_runtime.api.answers import JsonResponse
from llm_runtime.api.server import server_of
from llm_runtime.api.throttle import SMALL_BODY_BYTES
from llm_runtime.common.aside import aside
from llm_runtime.contract import SHADOW_HEADER, ServerConfig, Tier
from llm_runtime.request import Caller
from llm_runtime.shadow import Copier, Heard

SECURITY = [
    Depends(HTTPBearer(auto_error=False, description="An API key")),
    Depends(APIKeyHeader(name="X-API-Key", auto_error=False)),
]
"""For the OpenAPI document only; `authenticate` below decides."""


SHADOW = Caller("shadow", "shadow", Tier(name="shadow", max_concurrent=None, priority=-100))
"""The caller of copied requests. Every request of a client goes before them."""
OWN_SHADOW = replace(SHADOW, operator=True)
"""The caller of copies that this server makes for its own candidate of an adapter. Never a client."""


class KeyedRoute(APIRoute):
    """A route for holders of a key."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            request.state.caller = server_of(request).callers.identify(request)
            return await handle(request)

        return guarded


class BodyRoute(APIRoute):
    """A route with a bounded body.
    Its endpoint is `async (request, body: SomeModel)` and may return models and dicts.

    For an endpoint without the parameter `body` none is read.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        self._body: type[BaseModel] | None = get_type_hints(self.endpoint).get("body")
        return self.respond

    async def respond(self, request: Request) -> Response:
        """Everything from a request's head to its answer.
        Raises the errors that `answers.HANDLERS` knows."""
        await self.admit(request)
        fields = [await read_body(request, self._body)] if self._body else []
        self.prepare(request, *fields)
        answer = await self.endpoint(request, *fields)
        return answer if isinstance(answer, Response) else JsonResponse(answer)

    async def admit(self, request: Request) -> None:
        """Identify the caller and check whether it may ask now.
        Raises a refusal before the body is read."""
        raise NotImplementedError

    def prepare(self, request: Request, *body: BaseModel) -> None:
        """Set what the endpoint needs, once the body has arrived."""


class GenerationRoute(BodyRoute):
    """A route to the model."""

    async def respond(self, request: Request) -> Response:
        answer = await super().respond(request)
        return JsonResponse(request.state.listener.document()) if request.state.unbilled else answer

    async def admit(self, request: Request) -> None:
        server = server_of(request)
        state = request.state
        state.unbilled = False
        state.listener = state.copy = None
        if server.copier and SHADOW_HEADER in request.headers:
            self._admit_copy(request, server.copier)
            return
        caller = state.caller = server.callers.identify(request)
        await server.serving.wake()
        if server.limiter:
            await server.limiter.count(caller)
        if server.copier:
            state.listener = state.copy = server.copier.choose(
                self.path,
                request.headers.get("host", ""),
                _own_address(request),
                server.config.model.name,
            )

    def _admit_copy(self, request: Request, copier: Copier) -> None:
        """Admit a copy of a request to stable.
        It counts against nobody's limits, and is refused where it would have to wait."""
        own = copier.orders.check(request.headers[SHADOW_HEADER])
        request.state.caller = OWN_SHADOW if own else SHADOW
        request.state.unbilled = True
        request.state.listener = Heard()
        serving = server_of(request).serving
        # A server that also answers clients keeps its last places for them.
        taken = serving.half_full if own else serving.full
        if taken:
            raise errors.QueueFull("A copy does not wait for a place; this server has none.")

    def prepare(self, request: Request, *body: BaseModel) -> None:
        server = server_of(request)
        if request.state.unbilled and any(getattr(each, "stream", False) for each in body):
            raise errors.InvalidRequest(
                "A copy is answered whole; send it without stream.", param="stream"
            )
        # Only now: while the body came, another model may have taken over.
        request.state.pipeline = server.serving.pipeline
        if server.tracing:
            server.tracing.requested(*body)


def _own_address(request: Request) -> str:
    """Where this server got the request; empty where that is no address of a network."""
    host, port = request.scope.get("server") or ("", None)
    return "" if not port else f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def read_body(request: Request, model: type[BaseModel]) -> BaseModel:
    """The parsed body.

    A large body (`request.state.large`) is read and parsed while holding one of the caller's places
    for large bodies.

    Raises `errors.UnsupportedMedia` for a body that is not plain JSON, `errors.PayloadTooLarge` as
    soon as it is known to be over the limit, `errors.BodyTimeout` when it does not arrive in time,
    `errors.RateLimited` without a place, and `RequestValidationError`.
    """
    server = server_of(request)
    limits = server.config.server
    check_media(request)
    declared = _declared(request)
    if declared is not None and declared > limits.max_request_bytes:
        raise _too_large(limits)
    request.state.large = declared is None or declared > SMALL_BODY_BYTES
    if not request.state.large:
        return parse(model, await _in_time(request, limits))
    async with server.throttle.bodies.place(request.state.caller.id, limits.slot_timeout_seconds):
        return await aside(parse, model, await _in_time(request, limits))


def _declared(request: Request) -> int | None:
    """Announced length of the body; None where the client announces none."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isdigit() else None


async def _in_time(request: Request, limits: ServerConfig) -> bytearray:
    try:
        async with asyncio.timeout(limits.body_timeout_seconds):
            body = await _receive(request, limits)
    except TimeoutError:
        message = (
            f"The body was not complete after {limits.body_timeout_seconds:g} s; send it faster, or"
            " less of it."
        )
        raise errors.BodyTimeout(message, code="request_timeout") from None
    copy = getattr(request.state, "copy", None)
    if copy and (copier := server_of(request).copier):
        copier.hold(copy, body)
    return body


async def _receive(request: Request, limits: ServerConfig) -> bytearray:
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > limits.max_request_bytes:
            raise _too_large(limits)
        if not message.get("more_body", False):
            return body


def _too_large(limits: ServerConfig) -> errors.PayloadTooLarge:
    message = f"The body may have at most {limits.max_request_bytes} bytes."
    return errors.PayloadTooLarge(message, code="request_too_large")


def check_media(request: Request) -> None:
    """Refuse a body that is not plain JSON.
    The header must be there, because a browser can't send another site's form as JSON."""
    if request.headers.get("content-encoding", "identity") != "identity":
        message = "A compressed body is not taken here; send it without Content-Encoding."
        raise errors.UnsupportedMedia(message, code="unsupported_encoding")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (
        kind.startswith("application/") and kind.endswith("+json")
    ):
        message = "The body must be a JSON object, with Content-Type: application/json."
        raise errors.InvalidRequest(message, code="invalid_type")


def parse(model: type[BaseModel], content: bytes | bytearray) -> BaseModel:
    """The body's fields. Raises `RequestValidationError`,
    whose locations begin at "body" as FastAPI's do."""
    try:
        return model.model_validate_json(content)
    except ValidationError as fault:
        found = fault.errors(include_url=False, include_input=False)
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in found]
        raise RequestValidationError(problems) from None
