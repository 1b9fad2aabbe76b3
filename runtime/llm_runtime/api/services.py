"""What the endpoints share: configuration, keys, metrics, and the model in its states from loading to draining."""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from starlette.requests import HTTPConnection

from llm_runtime import errors
from llm_runtime.auth import Keys, Tiers, authenticate
from llm_runtime.contract import FatalReport, RuntimeConfig
from llm_runtime.metrics import Metrics
from llm_runtime.pipeline import Pipeline
from llm_runtime.request import Caller, Engine, Message, TextCodec
from llm_runtime.usage import LoggedUsage, UsageLog

T = TypeVar("T")

log = logging.getLogger(__name__)

KEY_POLL_SECONDS = 1.0


class State(StrEnum):
    """Where the process stands."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is loaded and warm."""

    engine: Engine
    codec: TextCodec
    on_gpu: bool = False
    swap: Callable[[RuntimeConfig, Path], Awaitable["Loaded"]] | None = None
    """Load another model in this one's place, while it serves; None where the engine can't."""


class Conversations(Protocol):
    """What was said in the sessions of `/v1/chat`; each tenant has its own."""

    async def history(self, tenant: str, session_id: str) -> list[Message]: ...

    async def append(self, tenant: str, session_id: str, messages: list[Message]) -> None: ...


class Services:
    """The process's state. Only the event loop's thread touches it."""

    def __init__(
        self,
        config: RuntimeConfig,
        load: Callable[[], Awaitable[Loaded]],
        keys: Keys | None = None,
        *,
        metrics: Metrics | None = None,
        usage: UsageLog | None = None,
        sessions: Conversations | None = None,
    ) -> None:
        """`load` must not hold up the event loop: see `in_thread`. Without `keys` every caller is anonymous."""
        self.config, self.keys, self._load = config, keys, load
        self.tiers = Tiers(config.tiers, config.default_tier)
        self.metrics = metrics or Metrics()
        self.usage = LoggedUsage() if usage is None else usage
        self.sessions = sessions
        """None: `/v1/chat` takes no `session_id`."""
        self.state = State.LOADING
        self.loaded: Loaded | None = None
        self.failure: FatalReport | None = None
        self.on_failure: Callable[[], None] = lambda: None
        """Called once when the model can't be loaded, so that the server ends."""
        self._pipeline: Pipeline | None = None
        self._admitting = True
        self._swapping = asyncio.Lock()
        self._started_at = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def pipeline(self) -> Pipeline:
        """The way to the model. Raises `errors.ServiceUnavailable` while there is none."""
        if self._pipeline and self._admitting and self.state is not State.FAILED:
            return self._pipeline
        raise errors.ServiceUnavailable(self.unready_reason or "The server is shutting down.")

    @property
    def alive(self) -> bool:
        """False when only a restart helps."""
        return self.state is not State.FAILED and (self.loaded is None or self.loaded.engine.stats().alive)

    @property
    def unready_reason(self) -> str | None:
        """Why no new requests should come here; None when they may."""
        match self.state:
            case State.LOADING:
                return "The model is loading."
            case State.DRAINING:
                return "The server is shutting down."
            case State.FAILED:
                return f"The model could not be loaded: {self.failure.reason if self.failure else 'unknown'}."
        return None if self.alive else "The engine has stopped."

    @property
    def uptime_seconds(self) -> float:
        return time.monotonic() - self._started_at

    def authenticate(self, connection: HTTPConnection) -> Caller:
        """The caller. `Authorization: Bearer` and `X-API-Key` are the same to every endpoint."""
        if self.keys is None:
            return self.tiers.address(connection.client.host if connection.client else "")
        scheme, _, bearer = connection.headers.get("authorization", "").partition(" ")
        offered = [bearer.strip()] if scheme.lower() == "bearer" else []
        record = authenticate(self.keys, [*offered, connection.headers.get("x-api-key", "")], datetime.now(UTC))
        return self.tiers.caller(record)

    def start(self) -> None:
        """Begin to load, and to watch the key file."""
        self._tasks = [asyncio.create_task(self._become_ready()), asyncio.create_task(self._watch_keys())]

    def begin_drain(self) -> None:
        """Readiness fails from now on; requests are still served, since clients learn of it late."""
        if self.state is not State.FAILED:
            self.state = State.DRAINING

    async def drain(self, timeout_seconds: float) -> None:
        """Admit nothing more; wait for what runs, and cut it when the time is over."""
        self.begin_drain()
        self._admitting = False
        if self.loaded:
            await self.loaded.engine.drain(timeout_seconds)

    async def swap(self, config: RuntimeConfig, folder: Path) -> None:
        """Serve another model from now on; what runs ends on the old one. Raises errors.Fatal: nothing has changed."""
        if self.loaded is None or self.loaded.swap is None:
            raise errors.ServiceUnavailable("No model is loaded that could be replaced.")
        async with self._swapping:
            self._serve(config, await self.loaded.swap(config, folder))
        log.info("Model %s has taken over", config.model.name)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.loaded:
            await asyncio.to_thread(self.loaded.engine.close)

    async def _become_ready(self) -> None:
        try:
            loaded = await self._load()
        except errors.Fatal as fatal:
            self._fail(FatalReport(reason=fatal.reason, message=str(fatal)))
        except Exception as error:
            log.exception("Loading the model failed")
            self._fail(FatalReport(reason="LoadFailed", message=f"{type(error).__name__}: {error}"))
        else:
            self._serve(self.config, loaded)
            if self.state is State.LOADING:
                self.state = State.READY
            log.info("Model %s is ready after %.1f s", self.config.model.name, self.uptime_seconds)

    def _serve(self, config: RuntimeConfig, loaded: Loaded) -> None:
        self.config, self.loaded = config, loaded
        self._pipeline = Pipeline(config, loaded.engine, loaded.codec, self.metrics, self.usage)
        self.metrics.engine = loaded.engine.stats

    def _fail(self, report: FatalReport) -> None:
        self.failure, self.state = report, State.FAILED
        self.on_failure()

    async def _watch_keys(self) -> None:
        """Without requests nobody looks at the key file; its faults should be in the log all the same."""
        while self.keys:
            await asyncio.sleep(KEY_POLL_SECONDS)
            self.keys.refresh()


def services_of(connection: HTTPConnection) -> Services:
    """The services of the application that handles this request."""
    services: Services = connection.app.state.services
    return services


def in_thread(work: Callable[[], T]) -> Callable[[], Awaitable[T]]:
    """`work` on a thread of its own, as something to await.

    Not `asyncio.to_thread`: its threads are joined at exit, and SIGTERM must not wait for a model to be fetched.
    """

    async def done() -> T:
        loop, result = asyncio.get_running_loop(), asyncio.Future[T]()

        def run() -> None:
            try:
                settle = partial(_settle, result, work())
            except Exception as error:
                settle = partial(_settle, result, None, error)
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle)

        threading.Thread(target=run, name="load", daemon=True).start()
        return await result

    return done


def _settle(result: asyncio.Future[Any], value: Any, fault: Exception | None = None) -> None:
    if result.cancelled():
        return
    if fault:
        result.set_exception(fault)
    else:
        result.set_result(value)
