"""Between the leases of this process and the truth they share: one task that asks for all of them together."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from llm_runtime.limits.exchange import Ask, Grant
from llm_runtime.limits.lease import Lease

log = logging.getLogger(__name__)
T = TypeVar("T")

TICK_SECONDS = 1.0
HEARTBEATS = 6
"""In the time of a lease."""
EXCHANGE_SECONDS = 2.0
"""Longest time that one exchange may take, and so that a request waits for the shared truth; then it counts as away."""
CLOSE_SECONDS = 5.0
LEASE_SECONDS = 30.0
TRUST = 0.8
"""For this part of a lease's time its holder relies on it: clocks and answers take their time."""
BATCH = 200


class StoreAway(Exception):
    """The shared truth does not answer; what was asked has not happened, or may have."""


@dataclass(frozen=True, slots=True)
class Presence:
    """What a heartbeat tells."""

    replicas: int
    now: float
    """The store's clock, in seconds since 1970."""


class Store(Protocol):
    """Where the shared truth lies. Every method raises `StoreAway`."""

    name: str
    """For the log."""
    lease_seconds: float
    """A replica that has not been heard of for so long is dead, and what it kept sealed goes back."""

    def exchange(self, asks: Sequence[Ask]) -> Coroutine[Any, Any, list[Grant]]:
        """Answer all, at once and whole."""
        ...

    def heartbeat(self) -> Coroutine[Any, Any, Presence]:
        """Say that this replica lives, and put back what dead ones kept."""
        ...

    async def leave(self) -> None:
        """This replica ends; it has given back what it held."""
        ...


class Broker:
    """The `Desk` of all leases on one store. Enter it to start the task, leave it to give everything back."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self.away, self.replicas = False, 1
        self._store, self._clock = store, clock
        self._held: dict[str, Lease] = {}
        """By budget: those that hold or owe something, or for which somebody waits."""
        self._wanted: dict[str, Lease] = {}
        self._urgent: dict[str, Lease] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._ticked_at = self._beaten_at = -math.inf
        self._offset: float | None = None

    def wall(self) -> float:
        """Seconds since 1970 by the store's clock, as far as it was heard of."""
        return time.time() if self._offset is None else self._clock() + self._offset

    def sealed_is_ours(self, now: float) -> bool:
        return now - self._beaten_at < self._store.lease_seconds * TRUST

    def held(self, budget: str) -> Lease | None:
        """The lease of a budget, if it has to be used again because it holds something."""
        return self._held.get(budget)

    def keep(self, lease: Lease) -> None:
        self._held.setdefault(lease.budget, lease)

    def want(self, lease: Lease, *, urgent: bool = False) -> None:
        self.keep(lease)
        if not self.away:
            (self._urgent if urgent else self._wanted)[lease.budget] = lease
            self._wake.set()

    def holds(self, lease: Lease) -> bool:
        return lease.budget in self._held

    async def __aenter__(self) -> Self:
        await self._beat()
        self._task = asyncio.create_task(self._work())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._wake.set()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                if self._task:
                    await self._task
                if not self.away:
                    self._wanted |= self._held
                    await self._exchange(closing=True)
                    await self._store.leave()
        except (StoreAway, TimeoutError):
            log.warning("%s did not take back what this replica held of the limits", self._store.name)
        self.away = True  # Nobody answers any more: whoever still comes must not wait.

    async def _work(self) -> None:
        while not self._closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._round()
            except Exception:  # Whatever is wrong with the store, requests must be answered.
                if not self.away:
                    log.exception("Asking %s about shared limits failed", self._store.name)
                self._note(away=True)

    async def _round(self) -> None:
        now = self._clock()
        if now - self._ticked_at >= TICK_SECONDS:
            self._ticked_at = now
            self._wanted |= self._held
            if self.away or now - self._beaten_at >= self._store.lease_seconds / HEARTBEATS:
                await self._beat()
        await self._exchange()

    async def _beat(self) -> None:
        try:
            presence = await self._answer(self._store.heartbeat())
        except StoreAway as error:
            self._note(away=True, why=error)
            return
        self._beaten_at, self.replicas = self._clock(), max(1, presence.replicas)
        self._offset = presence.now - self._beaten_at
        self._note(away=False)

    async def _exchange(self, *, closing: bool = False) -> None:
        """For all that are wanted, those first for which somebody waits, also if they come while this is under way."""
        while (self._urgent or self._wanted) and not self.away:
            batch = [self._next() for _ in range(min(BATCH, len(self._urgent) + len(self._wanted)))]
            leases = {lease.budget: lease for lease in batch}
            # In one order everywhere: replicas that lock rows in one order can't deadlock.
            await self._exchange_batch([leases[budget] for budget in sorted(leases)], closing)
            for lease in leases.values():
                lease.wake()
                if lease.empty:
                    self._held.pop(lease.budget, None)
            await asyncio.sleep(0)  # Ten thousand busy callers must not hold up a stream.

    def _next(self) -> Lease:
        some = self._urgent or self._wanted
        return some.pop(next(iter(some)))

    async def _exchange_batch(self, leases: Sequence[Lease], closing: bool) -> None:
        planned = [(lease, ask) for lease in leases if (ask := lease.plan(self._clock(), closing=closing))]
        if not planned:
            return
        grants: list[Grant] = []
        try:
            grants = await self._answer(self._store.exchange([ask for _, ask in planned]))
        except StoreAway as error:
            self._note(away=True, why=error)
        finally:
            now = self._clock()
            for number, (lease, ask) in enumerate(planned):
                if grants:
                    lease.accept(ask, grants[number], now)
                else:
                    lease.fail(ask)

    async def _answer(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result. Work that takes too long is told to stop, and nobody waits until it has: that takes as long."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        done, _ = await asyncio.wait({task}, timeout=EXCHANGE_SECONDS)
        if not done:
            task.cancel()
            raise StoreAway(f"no answer within {EXCHANGE_SECONDS:g} s")
        return task.result()

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # Looked at, or asyncio would complain of one that nobody waited for.

    def _note(self, *, away: bool, why: Exception | None = None) -> None:
        """Known to everybody at once; said in the log once."""
        if away and not self.away:
            log.error(
                "%s does not answer; limits go on with what was last known: %s", self._store.name, why or "see above"
            )
            self.away = True
            for lease in self._held.values():
                lease.release()
        elif self.away and not away:
            log.info("%s answers again; what was used meanwhile is booked now", self._store.name)
            for lease in self._held.values():
                lease.come_back(self._clock())
            self.away = False
