"""The items of a queue: who is next, and when what failed comes back. It has no clock of its own.

A key waits at most once, is handled by one worker at a time, and comes back when it was added while
being handled. Tenants take turns and none has all workers. Items that come back by themselves do so
at a bounded rate. So however many objects of one tenant are broken, the others are served as if
they were alone.
"""

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
QUICK_CAP_SECONDS = 4.0
"""Longest pause between retries, before the jitter, of quick items, and of others while few of a
tenant fail."""
SLOW_CAP_SECONDS = 30.0
"""The same of slow items, however many fail."""
EACH_SECONDS = 0.5
"""Seconds by which each failing slow item lengthens the pause of all of them: together they are
tried twice a second."""
DUE_A_SECOND = 25.0
"""Number of items of one tenant that come back by themselves (another try, another look) in a
second. Events do not wait."""
DUE_AT_ONCE_SECONDS = 8.0
"""Seconds of that rate that a tenant can save up and use at once."""
TOGETHER_SECONDS = 4.0
"""Seconds within which all failing items are tried again once one of them has succeeded, as far as
the rate allows."""
_NOBODY = object()


@dataclass
class Backlog(Generic[Item]):
    """The queue without waiting: `now` is an argument,
    so a test lives through a week in a millisecond."""

    base_seconds: float = 0.5
    cap_seconds: float = SLOW_CAP_SECONDS
    each_seconds: float = EACH_SECONDS
    jitter: Callable[[], float] = random.random
    tenant: Callable[[Item], Hashable] = lambda _: None
    most_of_one: int | None = None
    """Largest number of one tenant's items that are busy at the same time."""
    _ready: dict[Hashable, dict[Item, float]] = field(default_factory=dict)
    """By tenant, in the order in which they have their turns."""
    _taken: float = -math.inf
    """When the last item was taken."""
    _slots: dict[Hashable, float] = field(default_factory=dict)
    """When the next item of a tenant may come back by itself."""
    _admitted: set[Item] = field(default_factory=set)
    """Items that wait for such a slot."""
    _busy: dict[Item, float] = field(default_factory=dict)
    _again: dict[Item, float] = field(default_factory=dict)
    _later: list[tuple[float, int, Item]] = field(default_factory=list)
    _due: dict[Item, float] = field(default_factory=dict)
    _failures: dict[Hashable, dict[Item, int]] = field(default_factory=dict)
    """By tenant: one's failures lengthen nobody else's pauses."""
    _count: "itertools.count[int]" = field(default_factory=itertools.count)

    def add(self, item: Item, now: float) -> None:
        """Let `item` be handled as soon as possible."""
        self._due.pop(item, None)
        self._admitted.discard(item)
        (self._again if item in self._busy else self._waiting(item)).setdefault(item, now)

    def _waiting(self, item: Item) -> dict[Item, float]:
        return self._ready.setdefault(self.tenant(item), {})

    def add_after(self, item: Item, seconds: float, now: float) -> None:
        """Let `item` be handled in `seconds`; an earlier appointment stands."""
        due = now + seconds
        if self._due.get(item, float("inf")) > due:
            self._due[item] = due
            heapq.heappush(self._later, (due, next(self._count), item))

    def retry(self, item: Item, now: float) -> float:
        """Put `item` back after a failure;
        returns the delay: doubling, capped, with jitter of a quarter.

        Nobody tells that a cause has gone, so the cap is low while few of a tenant fail.
        """
        failing = self._failures.setdefault(self.tenant(item), {})
        failures = failing[item] = failing.get(item, 0) + 1
        cap = min(self.cap_seconds, max(QUICK_CAP_SECONDS, self.each_seconds * len(failing)))
        delay = min(cap, self.base_seconds * 2.0 ** min(failures - 1, 32))
        delay *= 1 + 0.25 * self.jitter()
        self.add_after(item, delay, now)
        return delay

    def succeed(self, item: Item, now: float) -> None:
        """Forget the failures of `item`;
        others may have failed for the same cause, and are tried soon."""
        tenant = self.tenant(item)
        failing = self._failures.get(tenant, {})
        if failing.pop(item, None) is None:
            return
        if not failing:
            del self._failures[tenant]
        for others in self._failures.values():
            for other in others:
                if other not in self._busy:
                    self.add_after(other, TOGETHER_SECONDS * self.jitter(), now)

    def failures(self, item: Item) -> int:
        """How often `item` has failed without a success."""
        return self._failures.get(self.tenant(item), {}).get(item, 0)

    def take(self, now: float) -> Item | None:
        """The item that has waited longest of the tenant whose turn it is, or None;
        it is busy until `done`."""
        self._promote(now)
        busy = Counter(map(self.tenant, self._busy))
        turns = (
            who for who in self._ready if self.most_of_one is None or busy[who] < self.most_of_one
        )
        if (tenant := next(turns, _NOBODY)) is _NOBODY:
            return None
        waiting = self._ready.pop(tenant)
        item = next(iter(waiting))
        del waiting[item]
        if waiting:
            self._ready[tenant] = waiting
        self._busy[item] = now
        self._taken = now
        return item

    def done(self, item: Item) -> None:
        self._busy.pop(item, None)
        if item in self._again:
            self._waiting(item).setdefault(item, self._again.pop(item))

    def _promote(self, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            due, _, item = heapq.heappop(self._later)
            if self._due.get(item) != due:
                continue
            if item not in self._admitted and (slot := self._slot(item, now)) > now:
                self._admitted.add(item)
                self._due[item] = slot
                heapq.heappush(self._later, (slot, next(self._count), item))
                continue
            self.add(item, due)

    def _slot(self, item: Item, now: float) -> float:
        """The next moment at which the tenant may have an item back. It then counts as taken."""
        tenant = self.tenant(item)
        free = max(self._slots.get(tenant, -math.inf), now - DUE_AT_ONCE_SECONDS)
        self._slots[tenant] = free + 1 / DUE_A_SECOND
        return free

    def next_due(self) -> float | None:
        while self._later and self._due.get(self._later[0][2]) != self._later[0][0]:
            heapq.heappop(self._later)
        return self._later[0][0] if self._later else None

    def depth(self) -> int:
        return sum(map(len, self._ready.values())) + len(self._again)

    def oldest(self, now: float) -> float:
        """Longest time in seconds that an item has been waiting or in work."""
        waiting = (next(iter(each.values())) for each in self._ready.values())
        return max((now - since for since in (*waiting, *self._busy.values())), default=0.0)

    def stuck(self, now: float) -> float:
        """Seconds for which an item has been in work, or for which items have waited and none was
        taken.

        A long queue alone does not count: a restart would not make it shorter.
        """
        waiting = (max(self._taken, next(iter(each.values()))) for each in self._ready.values())
        return max((now - since for since in (*waiting, *self._busy.values())), default=0.0)
