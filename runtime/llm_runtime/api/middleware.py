"""Around every request: its id, its Host, its time, its place in metrics and log, and a last net for faults."""

import logging
import re
import time
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_runtime import errors, logs
from llm_runtime.api.answers import CLIENT_GONE, error_response, internal_error
from llm_runtime.api.guard import GenerationRoute
from llm_runtime.api.services import Services, State
from llm_runtime.contract import LIVE_PATH, METRICS_PATH, READY_PATH

log = logging.getLogger("llm_runtime.access")

SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
PROBES = frozenset({LIVE_PATH, READY_PATH, METRICS_PATH, "/health"})
"""Asked by kubelets and scrapers by pod address: any Host is right, and their lines in the log are noise."""


class Envelope:
    """The outermost middleware."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app, self._services = app, services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(Headers(scope=scope).get("x-request-id", ""), send, self._services)
        token = logs.request_id.set(answer.request_id)
        try:
            await self._handle(scope, receive, answer)
        finally:
            self._record(scope, answer)
            logs.request_id.reset(token)

    async def _handle(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        path = scope["path"]
        try:
            if path not in PROBES and not self._trusted(Headers(scope=scope).get("host", "")):
                refusal = errors.InvalidRequest("This server does not answer to that Host.", code="invalid_host")
                await error_response(path, refusal)(scope, receive, answer.send)
            else:
                await self._app(scope, receive, answer.send)
        except Exception:
            log.exception("%s %s failed", scope["method"], _endpoint(scope))
            self._services.metrics.errors.labels("internal_server_error").inc()
            if not answer.status:
                await internal_error(path)(scope, receive, answer.send)

    def _trusted(self, host: str) -> bool:
        trusted = self._services.config.server.trusted_hosts
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        return not trusted or any(_matches(name.lower(), pattern.lower()) for pattern in trusted)

    def _record(self, scope: Scope, answer: "_Answer") -> None:
        endpoint, seconds = _endpoint(scope), time.perf_counter() - answer.began
        status = answer.status or CLIENT_GONE
        api = isinstance(scope.get("route"), GenerationRoute)
        self._services.metrics.count_request(scope["method"], endpoint, status, seconds, api=api)
        caller = scope.get("state", {}).get("caller")
        log.log(
            logging.DEBUG if endpoint in PROBES else logging.INFO,
            "%s %s %d",
            scope["method"],
            endpoint,
            status,
            extra={
                "method": scope["method"],
                "endpoint": endpoint,
                "status": status,
                "duration_seconds": round(seconds, 6),
                "key_id": caller.id if caller else None,
            },
        )


class _Answer:
    """One answer on its way out; puts on it the headers that every answer carries."""

    def __init__(self, wished_id: str, send: Send, services: Services) -> None:
        self.request_id = wished_id if SANE_ID.fullmatch(wished_id) else f"req-{uuid4().hex}"
        self.began, self.status = time.perf_counter(), 0
        self._send, self._services = send, services

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.request_id
            headers["X-Process-Time"] = f"{time.perf_counter() - self.began:.6f}"
            if self._services.state is State.DRAINING:
                # Whoever keeps this connection would find it closed in a moment; a new one goes to another replica.
                headers["Connection"] = "close"
        await self._send(message)


def _endpoint(scope: Scope) -> str:
    """The route's template. A path as it came would make as many labels as a scanner likes."""
    return getattr(scope.get("route"), "path", "unmatched")


def _matches(host: str, pattern: str) -> bool:
    if pattern.startswith("*."):
        return host.endswith(pattern[1:])
    return pattern in ("*", host)
