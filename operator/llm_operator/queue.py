"""A keyed work queue with client-go's semantics; knows neither Kubernetes nor a clock of its own.

A key waits at most once, is handled by one worker at a time, and comes back when it was added while being handled.
"""

import asyncio
import heapq
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
QUICK_CAP_SECONDS, SLOW_CAP_SECONDS = 4.0, 30.0
"""The longest pauses between tries of what fails, before the jitter: of a few, or of the quick; and of many."""
EACH_SECONDS = 0.5
"""By how much each slow item that fails lengthens the pause of all: together they are tried twice a second."""
TOGETHER_SECONDS = 4.0
"""Within so long all that fail are tried once one of them has succeeded."""


@dataclass
class Backlog(Generic[Item]):
    """The queue without waiting: `now` is an argument, so a test lives through a week in a millisecond."""

    base_seconds: float = 0.5
    cap_seconds: float = 300.0
    each_seconds: float = 300.0
    jitter: Callable[[], float] = random.random
    _ready: dict[Item, float] = field(default_factory=dict)
    _busy: dict[Item, float] = field(default_factory=dict)
    _again: dict[Item, float] = field(default_factory=dict)
    _later: list[tuple[float, int, Item]] = field(default_factory=list)
    _due: dict[Item, float] = field(default_factory=dict)
    _failures: dict[Item, int] = field(default_factory=dict)
    _count: "itertools.count[int]" = field(default_factory=itertools.count)

    def add(self, item: Item, now: float) -> None:
        """Let `item` be handled as soon as possible."""
        self._due.pop(item, None)
        (self._again if item in self._busy else self._ready).setdefault(item, now)

    def add_after(self, item: Item, seconds: float, now: float) -> None:
        """Let `item` be handled in `seconds`; an earlier appointment stands."""
        due = now + seconds
        if self._due.get(item, float("inf")) > due:
            self._due[item] = due
            heapq.heappush(self._later, (due, next(self._count), item))

    def retry(self, item: Item, now: float) -> float:
        """Put `item` back after a failure; returns the delay: doubling, capped, with jitter of a quarter.

        Nobody tells that a cause has gone, so the cap is low while few fail.
        """
        failures = self._failures[item] = self._failures.get(item, 0) + 1
        cap = min(self.cap_seconds, max(QUICK_CAP_SECONDS, self.each_seconds * len(self._failures)))
        delay = min(cap, self.base_seconds * 2.0 ** min(failures - 1, 32))
        delay *= 1 + 0.25 * self.jitter()
        self.add_after(item, delay, now)
        return delay

    def succeed(self, item: Item, now: float) -> None:
        """Forget the failures of `item`; others may have failed for the same cause, and are tried soon."""
        if self._failures.pop(item, None) is None:
            return
        for other in self._failures:
            if other not in self._busy:
                self.add_after(other, TOGETHER_SECONDS * self.jitter(), now)

    def take(self, now: float) -> Item | None:
        """The item that has waited longest, or None; it is busy until `done`."""
        self._promote(now)
        if not self._ready:
            return None
        item = next(iter(self._ready))
        del self._ready[item]
        self._busy[item] = now
        return item

    def done(self, item: Item) -> None:
        self._busy.pop(item, None)
        if item in self._again:
            self._ready.setdefault(item, self._again.pop(item))

    def _promote(self, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            due, _, item = heapq.heappop(self._later)
            if self._due.get(item) == due:
                self.add(item, due)

    def next_due(self) -> float | None:
        while self._later and self._due.get(self._later[0][2]) != self._later[0][0]:
            heapq.heappop(self._later)
        return self._later[0][0] if self._later else None

    def depth(self) -> int:
        return len(self._ready) + len(self._again)

    def oldest(self, now: float) -> float:
        """Seconds that the item longest waiting or longest in work has been so."""
        return max((now - since for since in (*self._ready.values(), *self._busy.values())), default=0.0)


class Queue(Generic[Item]):
    """A Backlog that can be waited for."""

    def __init__(self, backlog: Backlog[Item] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._backlog, self._clock = backlog or Backlog(), clock
        self._wake: set[asyncio.Future[None]] = set()

    def add(self, item: Item) -> None:
        self._backlog.add(item, self._clock())
        self._notify()

    def add_after(self, item: Item, seconds: float) -> None:
        self._backlog.add_after(item, seconds, self._clock())
        self._notify()

    def retry(self, item: Item) -> float:
        delay = self._backlog.retry(item, self._clock())
        self._notify()
        return delay

    def succeed(self, item: Item) -> None:
        self._backlog.succeed(item, self._clock())
        self._notify()

    async def get(self) -> Item:
        """Wait for an item; call `done` when it is handled."""
        while (item := self._backlog.take(self._clock())) is None:
            await self._wait()
        return item

    def done(self, item: Item) -> None:
        self._backlog.done(item)
        self._notify()

    async def _wait(self) -> None:
        due = self._backlog.next_due()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wake.add(future)
        try:
            # Not wait_for: until Python 3.12 it swallows a cancellation that meets a result.
            async with asyncio.timeout(None if due is None else max(0.0, due - self._clock())):
                await future
        except TimeoutError:
            return
        finally:
            self._wake.discard(future)

    def _notify(self) -> None:
        for future in self._wake:
            if not future.done():
                future.set_result(None)

    def depth(self) -> int:
        return self._backlog.depth()

    def oldest(self) -> float:
        return self._backlog.oldest(self._clock())


class Lanes(Generic[Item]):
    """Two queues as one for those who add: items that must not wait behind slow work have workers of their own."""

    def __init__(self, quick: Callable[[Item], bool]) -> None:
        # A webhook that is away, a quota: nobody tells that the cause has gone, so the pauses stay short. An API server
        # that is away altogether tells of everything when it is back.
        self.quick: Queue[Item] = Queue(Backlog(cap_seconds=QUICK_CAP_SECONDS))
        self.slow: Queue[Item] = Queue(Backlog(cap_seconds=SLOW_CAP_SECONDS, each_seconds=EACH_SECONDS))
        self._is_quick = quick

    def _of(self, item: Item) -> Queue[Item]:
        return self.quick if self._is_quick(item) else self.slow

    def add(self, item: Item) -> None:
        self._of(item).add(item)

    def add_after(self, item: Item, seconds: float) -> None:
        self._of(item).add_after(item, seconds)

    def depth(self) -> int:
        return self.quick.depth() + self.slow.depth()

    def oldest(self) -> float:
        return max(self.quick.oldest(), self.slow.oldest())
