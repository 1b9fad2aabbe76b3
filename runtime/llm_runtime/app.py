"""The application: routes, middleware, life and death; and the server that runs it."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import uvicorn
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from llm_runtime.api import chat as conversation
from llm_runtime.api import completions_with_logprobs, generate, predict, service
from llm_runtime.api.answers import HANDLERS
from llm_runtime.api.documents import describe
from llm_runtime.api.middleware import Envelope
from llm_runtime.api.openai import chat, completions, models
from llm_runtime.api.services import Services

log = logging.getLogger(__name__)

ROUTERS = (
    chat.router,
    completions.router,
    models.router,
    generate.router,
    conversation.router,
    predict.router,
    completions_with_logprobs.router,
    service.router,
)

LINGER_SECONDS = 2.0
"""After SIGTERM connections are taken for so long, in which the last clients hear that this replica is leaving."""
POLL_SECONDS = 0.05
CUT_SECONDS = 5
"""For cut streams to send their last event."""


def create_app(services: Services) -> FastAPI:
    """The application around `services`; it starts and stops them."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services.start()
        try:
            yield
        finally:
            await services.stop()

    app = FastAPI(
        title="LLM Runtime",
        description="One language model over HTTP. Send a key as `Authorization: Bearer` or `X-API-Key`.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.services = services
    for router in ROUTERS:
        app.include_router(router)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    describe(app)
    _add_cors(app, services.config.server.cors_origins)
    app.add_middleware(Envelope, services=services)  # Last added is outermost.
    return app


def _add_cors(app: FastAPI, origins: tuple[str, ...]) -> None:
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "X-API-Key", "Content-Type", "X-Request-ID"],
            expose_headers=["X-Request-ID", "X-Process-Time", "Retry-After"],
        )


class Server(uvicorn.Server):
    """Uvicorn, but a signal drains first: it would close its port at once and end with the signal's status."""

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        self._services: Services = app.state.services
        drain_seconds = self._services.config.server.drain_seconds
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=round(drain_seconds) + CUT_SECONDS,
            )
        )
        self._drain: asyncio.Task[None] | None = None
        self._services.on_failure = partial(setattr, self, "should_exit", True)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop, signals = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
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
            self._services.begin_drain()
            self._drain = asyncio.create_task(self._leave(self._services.config.server.drain_seconds))

    async def _leave(self, drain_seconds: float) -> None:
        """Linger, so that clients move on; then close the port and give running requests the rest of the time."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        linger_seconds = min(LINGER_SECONDS, drain_seconds / 4)
        while self.server_state.connections and loop.time() - began < linger_seconds:  # noqa: ASYNC110 (uvicorn offers no event)
            await asyncio.sleep(POLL_SECONDS)
        self.should_exit = True
        await self._services.drain(drain_seconds - (loop.time() - began))
