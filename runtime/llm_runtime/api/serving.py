"""The model's life in this server: it is loaded, swapped for another, unloaded, drained,
or it fails."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

from llm_runtime import errors
from llm_runtime.adapters import Adapters
from llm_runtime.api.arrival import Arrival
from llm_runtime.api.selfcheck import SelfCheck
from llm_runtime.common.aside import in_thread
from llm_runtime.contract import FatalReport, RuntimeConfig
from llm_runtime.files.origin import Origin
from llm_runtime.machine.heap import freeze
from llm_runtime.pipeline import Pipeline, model_version
from llm_runtime.request import Engine, TextCodec
from llm_runtime.tools.abilities import Abilities, abilities

log = logging.getLogger(__name__)

QUIET_SECONDS = 60.0
"""Seconds without any event after which an engine with requests is not ready; after
`engine.client.STALL_SECONDS` it is dead. They are long enough for a prompt that the slow path reads
in one piece."""


class State(StrEnum):
    """Where the process stands."""

    IDLE = "idle"
    """The first request loads the model."""
    UNLOADED = "unloaded"
    """An administrator has unloaded it."""
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    """The server is shutting down. Requests that still come are served until `drain`."""
    FAILED = "failed"
    """Only a restart helps."""


TRANSITIONS: Mapping[State, tuple[State, ...]] = {
    State.IDLE: (State.LOADING, State.DRAINING, State.FAILED),
    State.LOADING: (State.READY, State.IDLE, State.UNLOADED, State.DRAINING, State.FAILED),
    State.READY: (State.UNLOADED, State.DRAINING, State.FAILED),
    State.UNLOADED: (State.LOADING, State.DRAINING, State.FAILED),
    State.DRAINING: (State.FAILED,),
    State.FAILED: (),
}
"""The allowed transitions; docs/architecture.md says when they happen. Any other transition is not
made: a load that ends while the server drains leaves it draining. A swap changes the model, and the
state stays READY."""


@dataclass(frozen=True, slots=True)
class WarmModel:
    """A model that is loaded and warm."""

    engine: Engine
    codec: TextCodec
    on_gpu: bool = False
    swap: Callable[[RuntimeConfig, Path], Awaitable["WarmModel"]] | None = None
    """Load another model in this one's place, while it serves; None where the engine can't."""
    origin: Origin | None = None
    """The version in its folder; None where it is unknown."""
    on_death: Callable[[Callable[[FatalReport], None]], None] = lambda tell: None
    """Have something called when the engine dies by itself;
    never, where it lives in this process."""


Start = Callable[[RuntimeConfig, Path], Awaitable[WarmModel]]
"""Start an engine with the model of a folder."""


class Serving:
    """The model that answers, and its state.
    Entering it begins the life, leaving it ends the engine.

    Only the event loop's thread touches it.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        load: Callable[[], Awaitable[WarmModel]],
        pipeline: Callable[[RuntimeConfig, WarmModel], Pipeline],
        adapters: Adapters | None = None,
    ) -> None:
        """`load` brings the configured model;
        it must not hold up the event loop: see `in_thread`."""
        self.config = config
        """Configuration of the model that serves, or served last."""
        self.configured = config
        """As at the start."""
        self.state = State.IDLE if config.server.lazy_load else State.LOADING
        self.loaded: WarmModel | None = None
        self.abilities: Abilities | None = None
        """The abilities of the loaded model by its chat templates;
        None without a model, and for one that makes embeddings."""
        self.arrival: Arrival | None = None
        """What an administrator has asked for and is on its way."""
        self.failure: FatalReport | None = None
        self.on_failure: Callable[[], None] = lambda: None
        """Called once when the model can't be loaded or its engine has died,
        so that the server ends."""
        self._load_configured = load
        self._make_pipeline = pipeline
        self._pipeline: Pipeline | None = None
        self._adapters = adapters
        self._admitting = True
        self._changing = asyncio.Lock()
        """Held by whoever brings a model in or takes it away."""
        self._first_load: asyncio.Task[None] | None = None
        self._self_check = SelfCheck(lambda: self.loaded if self.state is State.READY else None)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Serving":
        """Begin to load, unless the first request is to do it."""
        self._tasks = [asyncio.create_task(self._self_check.run())]
        if self.state is State.LOADING:
            self._begin_load()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.loaded:
            await asyncio.to_thread(self.loaded.engine.close)

    @property
    def pipeline(self) -> Pipeline:
        """The way to the model. Raises `errors.ServiceUnavailable` while there is none."""
        if self._pipeline and self._admitting and self.state is not State.FAILED:
            return self._pipeline
        raise errors.ServiceUnavailable(self.unready_reason or "The server is shutting down.")

    @property
    def alive(self) -> bool:
        """False when only a restart helps."""
        return self.state is not State.FAILED and (
            self.loaded is None or self.loaded.engine.stats().alive
        )

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
                    return (
                        f"The engine has stopped ({reason}); this replica starts again. Send the"
                        " request again."
                    )
                return f"The model could not be loaded: {reason}."
        return self._standing_still()

    @property
    def full(self) -> bool:
        """Whether one more request would wait for a place."""
        return self._taken(self.config.engine.max_batch_size)

    @property
    def half_full(self) -> bool:
        """Whether one more request would leave fewer than half of the places."""
        return self._taken(self.config.engine.max_batch_size // 2)

    def _taken(self, places: int) -> bool:
        if self.loaded is None:
            return True
        stats = self.loaded.engine.stats()
        return bool(stats.waiting) or stats.running >= places

    @property
    def version(self) -> str:
        """The registered version, commit or run that is served,
        also where a `uri` named it by an alias; else ""."""
        return version_of(self.config, self.loaded)

    async def wake(self) -> Pipeline:
        """`pipeline`. Where the model is loaded lazily, requests wait here until it is.

        Raises `errors.RequestTimeout` when that takes longer than a request may.
        """
        if self.state is State.IDLE:
            self._begin_load()
        if self.config.server.lazy_load and self._first_load and not self._first_load.done():
            seconds = self.config.server.request_timeout_seconds
            # Not `wait_for`: whoever gives up must not end the load.
            await asyncio.wait([self._first_load], timeout=seconds)
            if not self._first_load.done():
                raise errors.RequestTimeout(
                    f"The model was not loaded within {seconds:g} s; try again later."
                )
        return self.pipeline

    @contextmanager
    def arriving(self, model: str) -> Iterator[Arrival]:
        """`model` is on its way during the block. Raises errors.Conflict while another is."""
        if self.arrival:
            message = (
                f"{self.arrival.model} is being loaded already: GET /status says how far it is; try"
                " again then."
            )
            raise errors.Conflict(message, code="load_in_progress")
        self.arrival = Arrival(model)
        try:
            yield self.arrival
        finally:
            self.arrival = None

    async def load(self, config: RuntimeConfig, folder: Path, start: Start) -> None:
        """`swap`, or `start` a new engine where no model is loaded.
        Raises errors.Fatal: nothing has changed."""
        async with self._changing:
            if self.loaded:
                await self._swap(config, folder)
            else:
                await self._bring_in(config, partial(start, config, folder))

    async def swap(self, config: RuntimeConfig, folder: Path) -> None:
        """Serve another model from now on; what runs ends on the old one.
        Raises errors.Fatal: nothing has changed."""
        async with self._changing:
            await self._swap(config, folder)

    async def unload(self) -> None:
        """Free the model. What runs may end within `server.drainSeconds`."""
        async with self._changing:
            if (loaded := self.loaded) is None:
                return
            self.loaded = self._pipeline = self.abilities = None
            if self._adapters:
                self._adapters.attach(None)
            self._enter(State.UNLOADED)
            await loaded.engine.drain(self.config.server.drain_seconds)
            await asyncio.to_thread(loaded.engine.close)
        log.info("Model %s is unloaded", self.config.model.name)

    def begin_drain(self) -> None:
        """Readiness fails from now on;
        requests are still served, since clients learn of it late."""
        self._enter(State.DRAINING)

    async def drain(self, timeout_seconds: float) -> None:
        """Admit nothing more; wait for what runs, and cut it when the time is over."""
        self.begin_drain()
        self._admitting = False
        if self.loaded:
            await self.loaded.engine.drain(timeout_seconds)

    def give_up(self, fatal: errors.Fatal) -> None:
        """End the server: it can't do its work."""
        self._fail(fatal.to_report())

    def _enter(self, state: State) -> None:
        if state in TRANSITIONS[self.state]:
            self.state = state

    def _begin_load(self) -> None:
        self._enter(State.LOADING)
        self._first_load = asyncio.create_task(self._become_ready())
        self._tasks.append(self._first_load)

    async def _become_ready(self) -> None:
        try:
            async with self._changing:
                if self.loaded is None:  # Or an administrator was faster.
                    await self._bring_in(self.config, self._load_configured)
        except errors.Fatal as fatal:
            self.give_up(fatal)
        except Exception as error:
            log.exception("Loading the model failed")
            self._fail(FatalReport(reason="LoadFailed", message=f"{type(error).__name__}: {error}"))

    async def _bring_in(
        self, config: RuntimeConfig, load: Callable[[], Awaitable[WarmModel]]
    ) -> None:
        before = self.state
        began = time.monotonic()
        self._enter(State.LOADING)
        log.info("Model %s is being loaded", config.model.name)
        loaded = None
        try:
            loaded = await load()
            loaded.on_death(self._engine_died)
            if self._adapters:
                self._adapters.attach(loaded.engine)
                await self._adapters.settled()
            self._serve(config, loaded)
        except BaseException:
            self._enter(before)
            if loaded:  # The next one needs its memory.
                if self._adapters:
                    self._adapters.attach(None)
                await asyncio.to_thread(loaded.engine.close)
            raise
        self._enter(State.READY)
        seconds = time.monotonic() - began
        log.info(
            "Model %s is ready after %.1f s, at /v1 for OpenAI's clients, at /docs to try",
            config.model.name,
            seconds,
        )
        # Few conversations need it, and those wait for it.
        await in_thread(loaded.codec.prepare)()
        freeze()

    async def _swap(self, config: RuntimeConfig, folder: Path) -> None:
        if self.loaded is None or self.loaded.swap is None:
            raise errors.ServiceUnavailable("No model is loaded that could be replaced.")
        loaded = await self.loaded.swap(config, folder)
        self._serve(config, loaded)
        if (
            self._adapters
        ):  # The old model's requests go on for seconds only: what is fetched now comes late.
            self._adapters.attach(loaded.engine)
        # Not before: the engine has the new model already, and the old codec does not fit it.
        await in_thread(loaded.codec.prepare)()
        log.info("Model %s has taken over", config.model.name)

    def _serve(self, config: RuntimeConfig, loaded: WarmModel) -> None:
        # Nothing of it is set if one of these fails.
        pipeline = self._make_pipeline(config, loaded)
        found = None
        if loaded.engine.embedding is None:
            found = abilities(loaded.codec.chat_template, loaded.codec.tool_template)
        self.config = config
        self.loaded = loaded
        self._pipeline = pipeline
        self.abilities = found
        for lack in found.lacks if found else ():
            log.info("Model %s: %s", config.model.name, lack)

    def _standing_still(self) -> str | None:
        if not self.alive:
            return "The engine has stopped."
        quiet = self.loaded.engine.stats().quiet_seconds if self.loaded else 0.0
        if quiet > QUIET_SECONDS:
            return f"The engine has produced nothing for {quiet:.0f} s although requests are in progress."
        return self._self_check.fault

    def _engine_died(self, report: FatalReport) -> None:
        """Only a restart helps.
        By ending, this one is restarted sooner than by a failing probe."""
        log.error("The engine has died (%s): this server ends, to be started again", report.reason)
        self._fail(report)

    def _fail(self, report: FatalReport) -> None:
        if self.failure:  # The first is the cause.
            return
        self.failure = report
        self._enter(State.FAILED)
        self.on_failure()


def version_of(config: RuntimeConfig, loaded: WarmModel | None) -> str:
    """The version that `config` names, or that the loaded folder says it holds;
    "" where neither does."""
    found = loaded.origin if loaded else None
    return model_version(config) or (found.version if found else "")
