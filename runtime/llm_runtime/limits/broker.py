"""The broker: one task that exchanges the shares of all callers of this process with their store,
in batches.

Requests never talk to the store themselves. A lease that needs something calls `want`. The task
collects all such leases and sends them in one transaction, urgent ones first (group commit, as
databases do with their log). A heartbeat tells the store that this replica lives, without which its
leases expire, and returns how many replicas there are. A store that does not answer in time counts
as down. Every waiting request is then decided by local knowledge, and the heartbeat tries again
once a second.
"""

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
"""Interval at which all held leases are looked at, wanted or not."""
HEARTBEATS = 6
"""Heartbeats within the time of a lease."""
EXCHANGE_SECONDS = 2.0
"""Exchange timeout, and so the longest time that a request waits for the store;
then the store counts as down."""
CLOSE_SECONDS = 5.0
"""Longest time at the end for returning all shares."""
LEASE_SECONDS = 30.0
"""Time after its last heartbeat at which a replica's leases expire."""
TRUST = 0.8
"""Part of a lease's time for which its holder relies on it.
The rest allows for delays and for clocks that differ."""
BATCH = 200
"""Largest number of budgets in one exchange."""


class StoreAway(Exception):
    """The store does not answer. What was asked may have happened or not."""


@dataclass(frozen=True, slots=True)
class Presence:
    """The store's answer to a heartbeat."""

    replicas: int
    """Number of live replicas."""
    now: float
    """Time on the store's clock, in seconds since 1970."""


class Store(Protocol):
    """Where shared limits are stored. Every method raises `StoreAway`."""

    name: str
    """Name for the log."""
    lease_seconds: float
    """Time after its last heartbeat at which a replica counts as dead;
    its leases are returned then."""

    def exchange(self, asks: Sequence[Ask]) -> Coroutine[Any, Any, list[Grant]]:
        """Apply all asks in one transaction."""
        ...

    def heartbeat(self) -> Coroutine[Any, Any, Presence]:
        """Say that this replica lives, and return the leases of dead ones."""
        ...

    async def leave(self) -> None:
        """Forget this replica, which has returned what it held."""
        ...


class Broker:
    """The `Desk` of all leases on one store.
    Entering it starts the task, leaving it returns all shares."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self.away = False
        self.replicas = 1
        self._store = store
        self._clock = clock
        self._leases: dict[str, Lease] = {}
        """Leases by budget: those that hold or owe something, or for which a request waits."""
        self._wanted: dict[str, Lease] = {}
        """Leases to exchange in the next round."""
        self._urgent: dict[str, Lease] = {}
        """Leases to exchange first, as a request waits."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._ticked_at = -math.inf
        self._beaten_at = -math.inf
        self._offset: float | None = None
        """Difference between the store's clock and this process's, once it is known."""

    def wall(self) -> float:
        """Seconds since 1970 on the store's clock;
        on this machine's until the store has answered once."""
        return time.time() if self._offset is None else self._clock() + self._offset

    def leases_are_valid(self, now: float) -> bool:
        return now - self._beaten_at < self._store.lease_seconds * TRUST

    def lease_of(self, budget: str) -> Lease | None:
        """The lease of a budget, if there is one that holds something: it must be used again."""
        return self._leases.get(budget)

    def keep(self, lease: Lease) -> None:
        self._leases.setdefault(lease.budget, lease)

    def want(self, lease: Lease, *, urgent: bool = False) -> None:
        self.keep(lease)
        if not self.away:
            (self._urgent if urgent else self._wanted)[lease.budget] = lease
            self._wake.set()

    def holds(self, lease: Lease) -> bool:
        return lease.budget in self._leases

    async def __aenter__(self) -> Self:
        await self._beat()
        self._task = asyncio.create_task(self._work())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing = True
        self._wake.set()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                if self._task:
                    await self._task
                if not self.away:
                    self._wanted |= self._leases
                    await self._exchange(closing=True)
                    await self._store.leave()
        except (StoreAway, TimeoutError):
            log.warning(
                "%s did not take back what this replica held of the limits", self._store.name
            )
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
            self._wanted |= self._leases
            if self.away or now - self._beaten_at >= self._store.lease_seconds / HEARTBEATS:
                await self._beat()
        await self._exchange()

    async def _beat(self) -> None:
        try:
            presence = await self._answer(self._store.heartbeat())
        except StoreAway as error:
            self._note(away=True, why=error)
            return
        self._beaten_at = self._clock()
        self.replicas = max(1, presence.replicas)
        self._offset = presence.now - self._beaten_at
        self._note(away=False)

    async def _exchange(self, *, closing: bool = False) -> None:
        """Exchange all wanted leases in batches,
        urgent ones first, also those that become so meanwhile."""
        while (self._urgent or self._wanted) and not self.away:
            batch = [self._next() for _ in range(min(BATCH, len(self._urgent) + len(self._wanted)))]
            leases = {lease.budget: lease for lease in batch}
            # In one order everywhere: replicas that lock rows in one order can't deadlock.
            await self._exchange_batch([leases[budget] for budget in sorted(leases)], closing)
            for lease in leases.values():
                lease.wake()
                if lease.empty:
                    self._leases.pop(lease.budget, None)
            await asyncio.sleep(
                0
            )  # Streams go on between two batches, however many callers are busy.

    def _next(self) -> Lease:
        leases = self._urgent or self._wanted
        return leases.pop(next(iter(leases)))

    async def _exchange_batch(self, leases: Sequence[Lease], closing: bool) -> None:
        planned = [
            (lease, ask) for lease in leases if (ask := lease.plan(self._clock(), closing=closing))
        ]
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
        """The result of `work`. After the timeout it is cancelled without waiting for its end,
        which may hang too."""
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
            task.exception()  # Retrieved, or asyncio would log that it never was.

    def _note(self, *, away: bool, why: Exception | None = None) -> None:
        """Note whether the store is down: tell all leases, and the log once."""
        if away and not self.away:
            log.error(
                "%s does not answer; limits go on with what was last known: %s",
                self._store.name,
                why or "see above",
            )
            self.away = True
            for lease in self._leases.values():
                lease.release()
        elif self.away and not away:
            log.info("%s answers again; what was used meanwhile is booked now", self._store.name)
            for lease in self._leases.values():
                lease.come_back(self._clock())
            self.away = False
