"""The application: routes, middleware, life and death; and the server that runs it."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import uvicorn
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from llm_runtime import errors
from llm_runtime.api import chat as conversation
from llm_runtime.api import completions_with_logprobs, generate, manage, pages, predict
from llm_runtime.api.access import KEY_HINT
from llm_runtime.api.answers import HANDLERS, internal_error
from llm_runtime.api.anthropic import messages
from llm_runtime.api.documents import describe
from llm_runtime.api.middleware import Envelope, Shortcut
from llm_runtime.api.openai import chat, completions, embeddings, models, tokens
from llm_runtime.api.responses import create, stored
from llm_runtime.api.server import Server
from llm_runtime.api.serving import Serving
from llm_runtime.api.state import load_probe, probes
from llm_runtime.connection import Connection

log = logging.getLogger(__name__)

ROUTERS = (
    chat.router,
    completions.router,
    embeddings.router,
    models.router,
    tokens.router,
    create.router,
    stored.router,
    messages.router,
    generate.router,
    conversation.router,
    predict.router,
    completions_with_logprobs.router,
    manage.router,
    load_probe.router,
    probes.router,
    pages.router,
)

EXPOSED = [
    "X-Request-ID", "request-id", "X-Process-Time", "Retry-After", "retry-after-ms", "x-should-retry",
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
]  # fmt: skip
"""Headers that a browser lets its page read."""

LINGER_SECONDS = 2.0
"""Seconds for which connections are still accepted after SIGTERM, until the last clients have heard
that this replica is leaving."""
POLL_SECONDS = 0.05
CUT_SECONDS = 5
"""Seconds for cut streams to send their last event."""
FAILED_LINGER_SECONDS = 0.5
"""Seconds for which requests are answered with 503 after the engine's death. A closed port would
tell clients less."""
FAILED_CUT_SECONDS = 1
"""Seconds after that for requests that need no engine, such as one with a slow body."""


class Application(FastAPI):
    """FastAPI for documents, probes and whatever is rare; its layers lie behind ours."""

    def build_middleware_stack(self) -> ASGIApp:
        server: Server = self.state.server
        routes = [route for router in ROUTERS for route in router.routes]
        straight = Shortcut(super().build_middleware_stack(), routes)
        # CORS before any key is asked for: browsers send preflights without one.
        return Envelope(_with_cors(straight, server.config.server.cors_origins), server)


def create_app(server: Server) -> FastAPI:
    """The application around `server`, whose parts it starts and stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if server.tracing:
                stack.push_async_callback(asyncio.to_thread, server.tracing.close)
            try:
                for part in (*server.parts, server.callers.watching(), server.serving):
                    await stack.enter_async_context(part)
                _hint_at_keys(server)
            except errors.Fatal as fatal:
                server.serving.give_up(fatal)
            yield

    app = Application(
        title="LLM Runtime",
        description="One language model over HTTP. Send a key as `Authorization: Bearer` or `X-API-Key`.",
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url=None,  # `pages` has the document, and pages that load nothing from elsewhere.
    )
    app.state.server = server
    for router in ROUTERS:
        app.include_router(router)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.add_exception_handler(Exception, _on_fault)
    describe(app)
    return app


def _hint_at_keys(server: Server) -> None:
    keys = server.callers.keys
    if server.management and keys and not keys.records():
        log.warning("No API key is known, so nobody can use this server yet. %s", KEY_HINT)


async def _on_fault(request: Request, fault: Exception) -> Response:
    """The answer only: the envelope hears of the fault, too, and logs it."""
    return internal_error(request.url.path)


def _with_cors(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "HEAD", "POST", "DELETE"],
        # Clients send headers of their own.
        # A page of a named origin may write any: the key is one of them.
        allow_headers=["*"],
        expose_headers=EXPOSED,
    )


class HttpServer(uvicorn.Server):
    """Uvicorn, but a signal drains first:
    it would close its port at once and end with the signal's status."""

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        self._serving: Serving = app.state.server.serving
        server = self._serving.config.server
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                log_config=None,
                access_log=False,
                server_header=False,
                http=Connection,
                ws="none",
                timeout_keep_alive=server.keep_alive_seconds,
                # Whoever else sends X-Forwarded-For stays known by its own address.
                proxy_headers=bool(server.trusted_proxies),
                forwarded_allow_ips=list(server.trusted_proxies),
                timeout_graceful_shutdown=round(server.drain_seconds) + CUT_SECONDS,
            )
        )
        self._drain: asyncio.Task[None] | None = None
        self._failing: asyncio.Task[None] | None = None
        self._serving.on_failure = self.on_failure

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, self.on_signal)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def on_signal(self) -> None:
        """Drain; at the second signal leave at once."""
        if self._drain:
            self.force_exit = self.should_exit = True
        else:
            log.info("Shutting down: no longer ready, running requests go on")
            self._serving.begin_drain()
            self._drain = asyncio.create_task(
                self._leave(self._serving.config.server.drain_seconds)
            )

    def on_failure(self) -> None:
        """End soon: nothing here works any more,
        and only the end has the container started anew."""
        if self._serving.loaded is None:
            self.should_exit = True
        elif self._failing is None:
            self._failing = asyncio.create_task(self._fail())

    async def _fail(self) -> None:
        """Streams have their errors already; those who come meanwhile get theirs."""
        await asyncio.sleep(FAILED_LINGER_SECONDS)
        self.config.timeout_graceful_shutdown = FAILED_CUT_SECONDS
        self.should_exit = True

    async def _leave(self, drain_seconds: float) -> None:
        """Linger, so that clients move on;
        then close the port and give running requests the rest of the time."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        linger_seconds = min(LINGER_SECONDS, drain_seconds / 4)
        while self.server_state.connections and loop.time() - began < linger_seconds:  # noqa: ASYNC110 (uvicorn offers no event)
            await asyncio.sleep(POLL_SECONDS)
        self.should_exit = True
        await self._serving.drain(drain_seconds - (loop.time() - began))
