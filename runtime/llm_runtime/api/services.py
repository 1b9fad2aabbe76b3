"""What the endpoints share: configuration, keys, metrics, and the model in its states from loading to draining."""

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import HTTPConnection

from llm_runtime import errors
from llm_runtime.adapters import Adapters
from llm_runtime.api.access import KEY_HINT, Management, offered
from llm_runtime.api.arrival import Arrival
from llm_runtime.api.selfcheck import SelfCheck
from llm_runtime.api.shares import Shares
from llm_runtime.auth import NO_ROLES, Keys, Tiers, authenticate
from llm_runtime.cache.completions import CompletionCache
from llm_runtime.cache.idempotency import IdempotencyKeys
from llm_runtime.contract import FatalReport, RuntimeConfig
from llm_runtime.db.database import Database
from llm_runtime.filters import Filters
from llm_runtime.limits import Limiter
from llm_runtime.metrics import Metrics
from llm_runtime.models.origin import Origin
from llm_runtime.pipeline import Pipeline, model_version
from llm_runtime.request import Caller, Engine, TextCodec
from llm_runtime.sessions import Sessions
from llm_runtime.tools.abilities import Abilities, abilities
from llm_runtime.tracing import Tracing
from llm_runtime.usage import LoggedUsage, UsageLog

T = TypeVar("T")

log = logging.getLogger(__name__)

KEY_POLL_SECONDS = 1.0
QUIET_SECONDS = 60.0
"""An engine that has requests and brings nothing for so long is not ready; after `engine.client.STALL_SECONDS` it is
dead. Long enough for a prompt that the slow path reads in one piece."""


class State(StrEnum):
    """Where the process stands."""

    IDLE = "idle"
    """The first request loads the model."""
    UNLOADED = "unloaded"
    """An administrator has unloaded it."""
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
    origin: Origin | None = None
    """What its folder holds; None where nobody knows."""
    on_death: Callable[[Callable[[FatalReport], None]], None] = lambda tell: None
    """Have something called when the engine dies by itself; never, where it lives in this process."""


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
        management: Management | None = None,
        database: Database | None = None,
        limiter: Limiter | None = None,
        cache: CompletionCache | None = None,
        sessions: Sessions | None = None,
        adapters: Adapters | None = None,
        parts: Sequence[AbstractAsyncContextManager[Any]] = (),
    ) -> None:
        """`load` must not hold up the event loop: see `in_thread`. Without `keys` every caller is anonymous, without
        `management` nobody manages. `parts` are entered before the start and left after the end.

        Raises `errors.ConfigInvalid` for a filter's pattern: before the model is loaded, not after.
        """
        Filters(config.server.filters)
        self.config, self.keys, self._load = config, keys, load
        self.configured = config
        """As at the start; `config` is that of the model that serves."""
        self.management, self.database, self.parts = management, database, parts
        self.limiter, self.cache, self.sessions = limiter, cache, sessions
        self.adapters = adapters
        """Those that come and go; None where only the configuration names some."""
        self.shares = Shares()
        self._idempotency = IdempotencyKeys()
        source = keys or (management.keys if management else None)
        self.tiers = Tiers(config.tiers, config.default_tier, lambda: source.roles if source else NO_ROLES)
        self.metrics = metrics or Metrics()
        self.metrics.adapters = adapters.gauges if adapters else None
        self.metrics.failed_adapters = adapters.failures if adapters else None
        self.usage = LoggedUsage() if usage is None else usage
        self.state = State.IDLE if config.server.lazy_load else State.LOADING
        self.tracing: Tracing | None = None
        self.loaded: Loaded | None = None
        self.abilities: Abilities | None = None
        """What the model can do by its chat templates; None without one that is loaded."""
        self.failure: FatalReport | None = None
        self.on_failure: Callable[[], None] = lambda: None
        """Called once when the model can't be loaded or its engine has died, so that the server ends."""
        self.arrival: Arrival | None = None
        """What an administrator has asked for and is on its way."""
        self._pipeline: Pipeline | None = None
        self._admitting = True
        self._changing = asyncio.Lock()
        """Held by whoever brings a model in or takes it away."""
        self._first_load: asyncio.Task[None] | None = None
        self._started_at = time.monotonic()
        self._self_check = SelfCheck(lambda: self.loaded if self.state is State.READY else None)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def pipeline(self) -> Pipeline:
        """The way to the model. Raises `errors.ServiceUnavailable` while there is none."""
        if self._pipeline and self._admitting and self.state is not State.FAILED:
            return self._pipeline
        raise errors.ServiceUnavailable(self.unready_reason or "The server is shutting down.")

    async def wake(self) -> Pipeline:
        """`pipeline`, which the first request has to wait for where the model is loaded lazily, and all others with it.

        Raises `errors.RequestTimeout` when that takes longer than a request may.
        """
        if self.state is State.IDLE:
            self._begin_load()
        if self.config.server.lazy_load and self._first_load and not self._first_load.done():
            seconds = self.config.server.request_timeout_seconds
            # Not `wait_for`: whoever gives up must not end the load.
            await asyncio.wait([self._first_load], timeout=seconds)
            if not self._first_load.done():
                raise errors.RequestTimeout(f"The model was not loaded within {seconds:g} s; try again later.")
        return self.pipeline

    @property
    def alive(self) -> bool:
        """False when only a restart helps."""
        return self.state is not State.FAILED and (self.loaded is None or self.loaded.engine.stats().alive)

    @property
    def unready_reason(self) -> str | None:
        """Why no new requests should come here; None when they may."""
        match self.state:
            case State.IDLE:
                return None
            case State.UNLOADED:
                return "No model is loaded; POST /load_model."
            case State.LOADING:
                return "The model is loading."
            case State.DRAINING:
                return "The server is shutting down."
            case State.FAILED:
                reason = self.failure.reason if self.failure else "unknown"
                if self.loaded:
                    return f"The engine has stopped ({reason}); this replica starts again. Send the request again."
                return f"The model could not be loaded: {reason}."
        return self._standing_still()

    def _standing_still(self) -> str | None:
        if not self.alive:
            return "The engine has stopped."
        quiet = self.loaded.engine.stats().quiet_seconds if self.loaded else 0.0
        if quiet > QUIET_SECONDS:
            return f"The engine has brought nothing for {quiet:.0f} s although requests are open."
        return self._self_check.fault

    @property
    def version(self) -> str:
        """The registered version, commit or run that is served, also where a `uri` named it by an alias; else ""."""
        found = self.loaded.origin if self.loaded else None
        return model_version(self.config) or (found.version if found else "")

    @property
    def default_adapter(self) -> str:
        """The adapter that answers for the bare name of the model; "" for none."""
        return (self.adapters.default if self.adapters else "") or self.config.default_adapter or ""

    @property
    def uptime_seconds(self) -> float:
        return time.monotonic() - self._started_at

    def authenticate(self, connection: HTTPConnection) -> Caller:
        """The caller. `Authorization: Bearer` and `X-API-Key` are the same to every endpoint."""
        if self.keys is None or self.config.authentication == "Disabled":
            return self.tiers.address(client_host(connection))
        return self.tiers.caller(authenticate(self.keys, offered(connection), datetime.now(UTC)))

    def start(self) -> None:
        """Begin to load, unless the first request shall, and to watch the keys."""
        self._tasks = [asyncio.create_task(self._watch_keys()), asyncio.create_task(self._self_check.run())]
        if self.state is State.LOADING:
            self._begin_load()
        if self.management and self.keys and not self.keys.records():
            log.warning("No API key is known, so nobody can use this server yet. %s", KEY_HINT)

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

    def trace(self, tracing: Tracing) -> None:
        """Make a span of every generation request from now on; call it before `start`."""
        self.tracing, self.usage = tracing, tracing.follow(self.usage)

    async def swap(self, config: RuntimeConfig, folder: Path) -> None:
        """Serve another model from now on; what runs ends on the old one. Raises errors.Fatal: nothing has changed."""
        async with self._changing:
            await self._swap(config, folder)

    @contextmanager
    def arriving(self, model: str) -> Iterator[Arrival]:
        """`model` is on its way during the block. Raises errors.Conflict while another is."""
        if self.arrival:
            message = f"{self.arrival.model} is being loaded already: GET /status says how far it is; try again then."
            raise errors.Conflict(message, code="load_in_progress")
        self.arrival = Arrival(model)
        try:
            yield self.arrival
        finally:
            self.arrival = None

    async def bring(self, config: RuntimeConfig, folder: Path) -> None:
        """`swap`, or a new engine where no model is loaded. Raises errors.Fatal: nothing has changed."""
        assert self.management
        async with self._changing:
            if self.loaded:
                await self._swap(config, folder)
            else:
                await self._bring_in(config, partial(self.management.start, config, folder))

    async def unload(self) -> None:
        """Free the model. What runs may end within `server.drainSeconds`."""
        async with self._changing:
            if (loaded := self.loaded) is None:
                return
            self.loaded = self._pipeline = self.metrics.engine = self.abilities = None
            if self.adapters:
                self.adapters.attach(None)
            if self.state is State.READY:
                self.state = State.UNLOADED
            await loaded.engine.drain(self.config.server.drain_seconds)
            await asyncio.to_thread(loaded.engine.close)
        log.info("Model %s is unloaded", self.config.model.name)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.loaded:
            await asyncio.to_thread(self.loaded.engine.close)
        if self.tracing:
            await asyncio.to_thread(self.tracing.close)

    def give_up(self, fatal: errors.Fatal) -> None:
        """End the server: it can't do its work."""
        self._fail(FatalReport(reason=fatal.reason, message=str(fatal)))

    def _begin_load(self) -> None:
        self.state = State.LOADING
        self._first_load = asyncio.create_task(self._become_ready())
        self._tasks.append(self._first_load)

    async def _become_ready(self) -> None:
        try:
            async with self._changing:
                if self.loaded is None:  # Or an administrator was faster.
                    await self._bring_in(self.config, self._load)
        except errors.Fatal as fatal:
            self.give_up(fatal)
        except Exception as error:
            log.exception("Loading the model failed")
            self._fail(FatalReport(reason="LoadFailed", message=f"{type(error).__name__}: {error}"))

    async def _bring_in(self, config: RuntimeConfig, load: Callable[[], Awaitable[Loaded]]) -> None:
        before, began = self.state, time.monotonic()
        if before in (State.IDLE, State.UNLOADED):
            self.state = State.LOADING
        log.info("Model %s is being loaded", config.model.name)
        try:
            loaded = await load()
            loaded.on_death(self._engine_died)
            await in_thread(loaded.codec.prepare)()
            if self.adapters:
                self.adapters.attach(loaded.engine)
                await self.adapters.settled()
            self._serve(config, loaded)
        except BaseException:
            if self.state is State.LOADING:
                self.state = before
            raise
        if self.state is State.LOADING:
            self.state = State.READY
        settle_memory()
        seconds = time.monotonic() - began
        log.info(
            "Model %s is ready after %.1f s, at /v1 for OpenAI's clients, at /docs to try", config.model.name, seconds
        )

    async def _swap(self, config: RuntimeConfig, folder: Path) -> None:
        if self.loaded is None or self.loaded.swap is None:
            raise errors.ServiceUnavailable("No model is loaded that could be replaced.")
        loaded = await self.loaded.swap(config, folder)
        self._serve(config, loaded)
        if self.adapters:  # The old model's requests go on for seconds only: what is fetched now comes late.
            self.adapters.attach(self.loaded.engine)
        # Not before: the engine has the new model already, and the old codec does not fit it.
        await in_thread(loaded.codec.prepare)()
        log.info("Model %s has taken over", config.model.name)

    def _serve(self, config: RuntimeConfig, loaded: Loaded) -> None:
        self.config, self.loaded = config, loaded
        self._pipeline = Pipeline(
            config,
            loaded.engine,
            loaded.codec,
            self.metrics,
            self.usage,
            limiter=self.limiter,
            cache=self.cache,
            idempotency=self._idempotency,
            identity=self.adapters.identity if self.adapters else str,
            version=self.version,
        )
        self.metrics.engine = loaded.engine.stats
        self.abilities = abilities(loaded.codec.chat_template, loaded.codec.tool_template)
        for lack in self.abilities.lacks:
            log.info("Model %s: %s", config.model.name, lack)

    def _engine_died(self, report: FatalReport) -> None:
        """Only a new process helps, and whoever started this one starts it again: sooner than a probe would tell."""
        log.error("The engine has died (%s): this server ends, to be started again", report.reason)
        self._fail(report)

    def _fail(self, report: FatalReport) -> None:
        if self.failure:  # The first is the cause.
            return
        self.failure, self.state = report, State.FAILED
        self.on_failure()

    async def _watch_keys(self) -> None:
        """Without requests nobody looks at the key file; its faults should be in the log all the same."""
        while self.keys is not None:
            await asyncio.sleep(KEY_POLL_SECONDS)
            self.keys.refresh()


def settle_memory() -> None:
    """Take what is there now out of the garbage collector's rounds: it stays, and to look at it takes 0.1 s."""
    gc.collect()
    gc.freeze()


def client_host(connection: HTTPConnection) -> str:
    """The client's address; of a trusted proxy's client its own."""
    return connection.client.host if connection.client else ""


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
