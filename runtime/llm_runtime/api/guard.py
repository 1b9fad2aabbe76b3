"""Before a generation endpoint: the key, then the model's readiness, then the body's size. No body is read unasked."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.responses import Response
from starlette.types import Message, Receive

from llm_runtime import errors
from llm_runtime.api.services import services_of

SECURITY = [
    Depends(HTTPBearer(auto_error=False, description="An API key")),
    Depends(APIKeyHeader(name="X-API-Key", auto_error=False)),
]
"""For the OpenAPI document only; `authenticate` below decides."""


class KeyedRoute(APIRoute):
    """A route for holders of a key."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            request.state.caller = services_of(request).authenticate(request)
            return await handle(request)

        return guarded


class GenerationRoute(APIRoute):
    """A route to the model, with a bounded body."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            services = services_of(request)
            request.state.caller = services.authenticate(request)
            await services.wake()  # Refuses while there is no model, before the body is read.
            body = await _read(request, services.config.server.max_request_bytes)
            # Only now: while the body came, another model may have taken over.
            request.state.pipeline = services.pipeline
            return await handle(Request(request.scope, _replay(body, request.receive)))

        return guarded


async def _read(request: Request, limit: int) -> bytes:
    """The whole body. Raises `errors.PayloadTooLarge` as soon as it is known to be over the limit."""
    message = f"The body may have at most {limit} bytes."
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise errors.PayloadTooLarge(message, code="request_too_large")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise errors.PayloadTooLarge(message, code="request_too_large")
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body once, then whatever the connection says, which is that the client has gone."""
    pending = [body]

    async def replayed() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return replayed
