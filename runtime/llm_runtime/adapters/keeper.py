"""Keeps an engine's adapters as the list says:
fetches, loads, replaces and drops while requests run.

It is level-triggered, as the operator is: each look compares what is wanted with what the engine
has. So a missed event does no harm, and a new engine gets everything again. Only the event loop's
thread touches the state.
"""

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llm_runtime import errors
from llm_runtime.adapters.delivery import LOOK_SECONDS, identity
from llm_runtime.adapters.file import AdapterList
from llm_runtime.contract import (
    FatalReport,
    PinnedAdapter,
    RegistryAccess,
    ShadowedAdapter,
    is_candidate,
)
from llm_runtime.request import Engine

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 300.0
READY_SECONDS = 120.0
"""A new server waits so long for its adapters before it says that it is ready without them."""


def pause_seconds(failures: int, chance: float) -> float:
    """How long to wait after so many failures in a row, with a jitter of a quarter.
    `chance`: 0 to 1."""
    pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 16))
    return pause * (0.75 + 0.5 * chance)


Fetch = Callable[[PinnedAdapter, RegistryAccess], Awaitable[Path]]
"""Bring a version to a verified folder.
Takes long, and must hold up nobody; raises errors.Fatal."""


@dataclass(eq=False)
class _Place:
    """One name of the list, on one engine."""

    wanted: PinnedAdapter
    loaded: PinnedAdapter | None = None
    identity: str = ""
    """Identifies what is loaded, equally in every process;
    "" while nothing is loaded or it changes."""
    step: Literal["waiting", "fetching", "loading"] = "waiting"
    fault: FatalReport | None = None
    failures: int = 0
    retry_at: float = 0.0
    task: "asyncio.Task[None] | None" = field(default=None, repr=False)

    @property
    def busy(self) -> bool:
        return self.task is not None and not self.task.done()

    @property
    def state(self) -> str:
        if self.loaded == self.wanted:
            return "loaded"
        return self.step if self.busy else "failed" if self.fault else "waiting"


class Adapters:
    """The adapters of the engine that serves.
    An async context manager: it looks for changes while it is entered."""

    def __init__(
        self,
        wanted: AdapterList,
        fetch: Fetch,
        most: int,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        news: Callable[[], bool] = lambda: False,
    ) -> None:
        """`most`: how many the engine holds. `chance`: 0 to 1.
        `news`: whether `fetch` may end otherwise now."""
        self._list = wanted
        self._fetch = fetch
        self._most = most
        self._news = news
        self._clock = clock
        self._chance = chance
        self._engine: Engine | None = None
        self._places: dict[str, _Place] = {}
        self._changing = asyncio.Lock()
        """The engine's answers name all its adapters:
        they must come in the order of what was asked."""
        self._drops: set[asyncio.Task[None]] = set()
        self._unsettled: Iterator[int] = itertools.count()
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Adapters":
        self._watch = asyncio.create_task(self._look_for_ever())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.attach(None)
        running = [*self._drops, *([self._watch] if self._watch else [])]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def attach(self, engine: Engine | None) -> None:
        """From now on this engine is to have the adapters; None: there is no engine."""
        for place in self._places.values():
            if place.task:
                place.task.cancel()
        self._engine = engine
        self._places = {}
        self.look()

    async def settled(self, timeout_seconds: float = READY_SECONDS) -> None:
        """Return when each adapter is loaded or has failed once:
        who is said to be ready should answer for all.

        Candidates answer no client, and hold up nobody.
        """
        deadline = self._clock() + timeout_seconds
        while tasks := [place.task for place in self._public if place.task and not place.failures]:
            left = deadline - self._clock()
            _, open_ = await asyncio.wait(tasks, timeout=max(0.0, left))
            if open_:
                log.warning("ready before its adapters", extra={"adapters": self.report()})
            if open_ or all(not place.busy for place in self._public):
                return

    def look(self) -> None:
        """Begin whatever is to be done. Returns at once."""
        if self._list.refresh() | self._news():
            for place in self._places.values():  # It may be the credentials that were wrong.
                place.retry_at = 0.0
        if self._engine is None:
            return
        wanted = {adapter.name: adapter for adapter in self._list.wanted.with_candidates}
        for name in [name for name in self._places if name not in wanted]:
            self._take_away(self._engine, name)
        for number, adapter in enumerate(wanted.values()):
            self._keep(self._engine, number, adapter)

    @property
    def _public(self) -> list[_Place]:
        return [place for place in self._places.values() if not is_candidate(place.wanted.name)]

    @property
    def names(self) -> tuple[str, ...]:
        """All that are wanted, candidates too, be they loaded or not."""
        return tuple(adapter.name for adapter in self._list.wanted.with_candidates)

    @property
    def default(self) -> str:
        """The adapter that answers for the bare name of the model; "" when the list names none."""
        return self._list.wanted.default_adapter

    @property
    def shadowed(self) -> tuple[ShadowedAdapter, ...]:
        """Candidates that are to be sent copies, and can answer them."""
        return tuple(each for each in self._list.wanted.shadowed if self.version(each.candidate))

    def version(self, name: str) -> str | None:
        """The version that answers for `name`."""
        place = self._places.get(name)
        return place.loaded.version if place and place.loaded else None

    def identity(self, name: str) -> str:
        """Identifies for caches what decides the answers of `name`, equally in every process. While
        that changes, each call gives another value."""
        if not name:
            return ""
        place = self._places.get(name)
        return (
            place.identity
            if place and place.identity
            else f"unsettled {id(self)} {next(self._unsettled)}"
        )

    def report(self) -> list[dict[str, Any]]:
        """The state of each wanted adapter; no address and no credential."""
        found = []
        for adapter in self._list.wanted.with_candidates:
            place = self._places.get(adapter.name)
            loaded = place.loaded.version if place and place.loaded else None
            entry = {"name": adapter.name, "version": loaded, "wanted_version": adapter.version}
            entry["state"] = place.state if place else "waiting"
            if place and place.fault:
                entry |= {"reason": place.fault.reason, "message": place.fault.message}
            found.append(entry)
        return found

    def gauges(self) -> Iterator[tuple[str, str, bool]]:
        """Name, version, whether it answers."""
        for entry in self.report():
            if entry["version"]:
                yield entry["name"], entry["version"], True
            if entry["version"] != entry["wanted_version"]:
                yield entry["name"], entry["wanted_version"], False

    def failures(self) -> Iterator[tuple[str, str, str]]:
        """Name, wanted version and reason of each that could not be loaded;
        the version before may still answer."""
        for entry in self.report():
            if reason := entry.get("reason"):
                yield entry["name"], entry["wanted_version"], reason

    async def _look_for_ever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                self.look()
            except Exception:
                log.exception("looking at the adapters failed")

    def _keep(self, engine: Engine, number: int, adapter: PinnedAdapter) -> None:
        place = self._places.setdefault(adapter.name, _Place(adapter))
        if place.wanted != adapter:
            place.wanted = adapter
            place.fault = None
            place.failures = 0
            place.retry_at = 0.0
            if (
                place.task and place.step == "fetching"
            ):  # What is not wanted any more must not hold up what is.
                place.task.cancel()
                place.task = None
        if place.loaded and adapter.name not in engine.adapters and not place.busy:
            # Whoever was not used for longest makes room while replaced versions still have
            # requests.
            place.loaded = None
            place.identity = ""
        if place.loaded == adapter or place.busy or self._clock() < place.retry_at:
            return
        if number >= self._most:
            message = (
                f"the server holds {self._most} adapters (engine.maxAdapters), and this is number"
                f" {number + 1}"
            )
            place.fault = FatalReport(reason="TooManyAdapters", message=message)
        elif (access := self._list.wanted.connections.get(adapter.connection)) is None:
            message = (
                f"the list of adapters has no connection {adapter.connection!r}; add its"
                " trackingUri there"
            )
            place.fault = FatalReport(reason="ConfigInvalid", message=message)
        else:
            place.step = "fetching"
            place.task = asyncio.create_task(self._bring(engine, place, adapter, access))

    async def _bring(
        self, engine: Engine, place: _Place, adapter: PinnedAdapter, access: RegistryAccess
    ) -> None:
        try:
            folder = await self._fetch(adapter, access)
            place.step = "loading"
            async with self._changing:
                if (
                    self._places.get(adapter.name) is place
                ):  # Or it was taken from the list meanwhile.
                    await self._load(engine, place, adapter, access, folder)
        except errors.Fatal as fatal:
            self._fail(place, adapter, fatal.to_report())
        except Exception as error:
            log.exception("Loading the adapter %s failed", adapter.name)
            self._fail(
                place,
                adapter,
                FatalReport(reason="LoadFailed", message=f"{type(error).__name__}: {error}"),
            )

    async def _load(
        self,
        engine: Engine,
        place: _Place,
        adapter: PinnedAdapter,
        access: RegistryAccess,
        folder: Path,
    ) -> None:
        before = place.identity
        place.identity = ""
        try:
            await engine.load_adapter(adapter.name, folder)
        except BaseException:
            place.identity = before
            raise
        place.loaded = adapter
        place.identity = identity(adapter, access)
        place.fault = None
        place.failures = 0
        log.info(
            "adapter loaded",
            extra={"adapter": adapter.name, "model": adapter.model, "version": adapter.version},
        )

    def _fail(self, place: _Place, adapter: PinnedAdapter, report: FatalReport) -> None:
        if place.wanted != adapter:
            return
        place.fault = report
        place.failures = place.failures + 1
        pause = pause_seconds(place.failures, self._chance())
        place.retry_at = self._clock() + pause
        what = {"adapter": adapter.name, "model": adapter.model, "version": adapter.version}
        log.error(
            "adapter not loaded: %s",
            report.message,
            extra={**what, "reason": report.reason, "again_in": pause},
        )

    def _take_away(self, engine: Engine, name: str) -> None:
        place = self._places.pop(name)
        if place.task and place.step == "fetching":
            place.task.cancel()
        task = asyncio.create_task(self._drop(engine, name))
        self._drops.add(task)
        task.add_done_callback(self._drops.discard)

    async def _drop(self, engine: Engine, name: str) -> None:
        """Not waited for: the last request may take minutes,
        and the name may be wanted again meanwhile."""
        async with self._changing:
            if name in self._places or name not in engine.adapters:
                return
            leaving = asyncio.create_task(engine.drop_adapter(name))
            await asyncio.sleep(0)  # It has been sent; what is loaded from now on comes after it.
        try:
            await leaving
        except errors.Fatal as fatal:
            log.warning("dropping the adapter %s failed: %s", name, fatal)
        else:
            log.info("adapter dropped", extra={"adapter": name})
