"""Around every request: its id, its Host, its time, its place in metrics and log,
and a last net for faults.

`Envelope` is the outermost layer;
`Shortcut` sends a generation straight to its route, past the framework's router.
"""

import logging
import re
import time
from collections.abc import Iterable
from uuid import uuid4

from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_runtime import errors, logs
from llm_runtime.api.answers import (
    CLIENT_GONE,
    answer_to,
    error_response,
    internal_error,
    is_anthropics,
)
from llm_runtime.api.guard import GenerationRoute
from llm_runtime.api.server import Server, server_of
from llm_runtime.api.serving import State
from llm_runtime.contract import LIVE_PATH, METRICS_PATH, READY_PATH, SHADOW_HEADER
from llm_runtime.tracing import Tracing

log = logging.getLogger("llm_runtime.access")

SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
PROBES = frozenset({LIVE_PATH, READY_PATH, METRICS_PATH, "/health"})
"""Asked by kubelets and scrapers by pod address:
any Host is right, and their lines in the log are noise."""


class Shortcut:
    """The road of generation requests: their path is looked up, not searched for,
    and nothing lies in between."""

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        generation = [route for route in routes if isinstance(route, GenerationRoute)]
        self._routes = {
            (method, route.path): route for route in generation for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = (
            self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        )
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        request = Request(scope, receive, send)
        server = server_of(request)
        if (tracing := server.tracing) and not (server.copier and SHADOW_HEADER in request.headers):
            with tracing.request(route.path, request.headers, logs.request_id.get() or ""):
                await self._respond(route, request, send, tracing)
        else:
            await self._respond(route, request, send)

    async def _respond(
        self, route: GenerationRoute, request: Request, send: Send, tracing: Tracing | None = None
    ) -> None:
        try:
            response = await route.respond(request)
        except Exception as fault:
            response = await answer_to(request, fault)
        if tracing:
            tracing.answered(response.status_code)
        await response(request.scope, request.receive, send)


class Envelope:
    """The outermost middleware."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        scope = _plain(scope)
        answer = _Answer(scope, send, self._server)
        token = logs.request_id.set(answer.request_id)
        try:
            await self._handle(scope, receive, answer)
        finally:
            self._record(scope, method, answer)
            logs.request_id.reset(token)
            copy = scope.get("state", {}).get("copy")
            if copy and self._server.copier:  # The client has its answer.
                self._server.copier.send(copy)

    async def _handle(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        path = scope["path"]
        try:
            if path in PROBES or self._trusted(scope):
                await self._app(scope, receive, answer.send)
            else:
                refusal = errors.InvalidRequest(
                    "This server does not answer to that Host.", code="invalid_host"
                )
                await error_response(path, refusal)(scope, receive, answer.send)
        except Exception:
            log.exception("%s %s failed", scope["method"], _route(scope))
            self._server.metrics.errors.labels("internal_server_error").inc()
            if not answer.status:
                await internal_error(path)(scope, receive, answer.send)

    def _trusted(self, scope: Scope) -> bool:
        trusted = self._server.config.server.trusted_hosts
        if not trusted:
            return True
        host = _header(scope, b"host")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        return any(_matches(name.lower(), pattern.lower()) for pattern in trusted)

    def _record(self, scope: Scope, method: str, answer: "_Answer") -> None:
        route = _route(scope)
        seconds = time.perf_counter() - answer.began
        status = answer.status or CLIENT_GONE
        api = isinstance(scope.get("route"), GenerationRoute)
        state = scope.get("state", {})
        unbilled = state.get("unbilled", False)
        if not unbilled:
            self._server.metrics.count_request(method, route, status, seconds, api=api)
        level = logging.DEBUG if unbilled or route in PROBES else logging.INFO
        if not log.isEnabledFor(level):
            return
        caller = state.get("caller")
        fields = {
            "method": method,
            "route": route,
            "status_code": status,
            "latency_ms": round(seconds * 1000, 3),
            "key_id": caller.id if caller else None,
        }
        log.log(level, "%s %s - %d", method, route, status, extra=fields)


class _Answer:
    """One answer on its way out; puts on it the headers that every answer carries."""

    __slots__ = ("_scope", "_send", "_server", "began", "request_id", "status")

    def __init__(self, scope: Scope, send: Send, server: Server) -> None:
        self.began = time.perf_counter()
        self.status = 0
        wished = _header(scope, b"x-request-id")
        self.request_id = wished if SANE_ID.fullmatch(wished) else str(uuid4())
        self._scope = scope
        self._send = send
        self._server = server

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self._headers()]
        await self._send(message)

    def _headers(self) -> list[tuple[bytes, bytes]]:
        headers = [
            (b"x-request-id", self.request_id.encode()),
            (b"x-process-time", b"%.6f" % (time.perf_counter() - self.began)),
        ]
        if is_anthropics(self._scope["path"]):
            headers.append((b"request-id", self.request_id.encode()))
        caller = self._scope.get("state", {}).get("caller")
        limiter = self._server.limiter
        if caller and limiter:
            standing = limiter.standing(caller).headers()
            headers += [(name.encode(), value.encode()) for name, value in standing.items()]
        if self._server.serving.state is State.DRAINING:
            # A kept connection would be closed in a moment; a new one goes to another replica.
            headers.append((b"connection", b"close"))
        return headers


def _plain(scope: Scope) -> Scope:
    """The request as routes know it: without a slash at its end,
    and HEAD as GET, whose body the server leaves out."""
    path = scope["path"]
    method = scope["method"]
    if path.endswith("/") and path != "/":
        scope = {**scope, "path": path.rstrip("/") or "/"}
    return {**scope, "method": "GET"} if method == "HEAD" else scope


def _header(scope: Scope, wanted: bytes) -> str:
    for name, value in scope["headers"]:
        if name == wanted:
            text: str = value.decode("latin-1")
            return text
    return ""


def _route(scope: Scope) -> str:
    """The route's template. A path as it came would make as many labels as a scanner likes."""
    return getattr(scope.get("route"), "path", "unmatched")


def _matches(host: str, pattern: str) -> bool:
    if pattern.startswith("*."):
        return host.endswith(pattern[1:])
    return pattern in ("*", host)
