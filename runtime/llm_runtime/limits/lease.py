"""This replica's share of one caller's limit, and when it asks the store for more.

The share is a local cache of a distributed counter (`exchange` names the source). Requests spend it
in memory. The lease prefetches in the background. It measures the recent pace and aims at a target
that lasts for a few seconds. It refills when less than half of the target is left (a low-water
mark). A request waits for the store only when it needs more than the share has. A share that lies
idle is returned, sooner when the limit is nearly used up.

When the store is down, a month's share can be spent to its end. A minute's limit goes on locally at
its part of the rate, limit / replicas. When the store is back, what was spent meanwhile is booked
as a debt.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from llm_runtime.limits.exchange import Ask, Grant
from llm_runtime.limits.leaky_bucket import EPSILON, LeakyBucket
from llm_runtime.limits.month import Month

PREFETCH_SECONDS = 2.0
"""How long a share should last at the recent pace."""
PREFETCH_REQUESTS = 8
"""Number of requests of the usual size that a share should be enough for, whatever the pace."""
LEASED_SECONDS = 10.0
"""How long the leased part of a month's share should last:
through a short outage of the database."""
PREFETCH_PART = 20
"""All replicas together prefetch at most limit / this of a minute's limit,
and hold at most twice that."""
IDLE_SECONDS = 15.0
"""Time without a request after which a share is returned."""
SCARCE_IDLE_SECONDS = 2.0
"""Time without a request after which a share is returned when less than a quarter of the limit is
left."""
RECHECK_SECONDS = 1.0
"""Interval at which an exhausted limit is asked about again:
another replica may have returned something."""
PACE_SECONDS = 1.0
"""Time constant of the moving average of the pace."""


class Desk(Protocol):
    """The `Broker`, as a lease sees it."""

    @property
    def away(self) -> bool:
        """Whether the store is down."""
        ...

    @property
    def replicas(self) -> int:
        """Number of live replicas, this one included."""
        ...

    def leases_are_valid(self, now: float) -> bool:
        """Whether the store certainly still keeps this replica's leases."""
        ...

    def want(self, lease: "Lease", *, urgent: bool = False) -> None:
        """Exchange `lease` soon; before all others if it is urgent, as a request waits."""
        ...

    def keep(self, lease: "Lease") -> None:
        """Remember `lease`: it holds something that must be returned one day."""
        ...

    def holds(self, lease: "Lease") -> bool:
        """Whether `lease` is remembered."""
        ...


class Lease:
    """What the shares of a minute's and of a month's limit have in common.
    Amounts are requests or tokens."""

    def __init__(
        self, desk: Desk, budget: str, limit: int, month: Month | None, now: float
    ) -> None:
        self.budget = budget
        self.limit = limit
        self.month = month
        self._desk = desk
        self._prepaid = 0
        """Amount that can be spent at once.
        Negative: debt, as requests used more than they had reserved."""
        self._leased = 0
        """Amount that the store keeps for this replica."""
        self._target = 0
        """Amount that should be prepaid."""
        self._refill_below = 0
        """Low-water mark of the prepaid part;
        0 while a refill is under way, or would find nothing."""
        self._touched_at = now
        self._planned_at = now
        self._answered_at: float | None = None
        self._taken = 0
        """Amount taken since the last plan."""
        self._takes = 0
        """Number of requests since the last plan."""
        self._size = 0
        """Usual amount of one request."""
        self._pace = 0.0
        """Amount taken per second, as a moving average."""
        self._denied = False
        """Whether the last exchange granted nothing.
        Then the share is returned, because others may need it."""
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        """Requests that wait for the next exchange, with what each needs."""
        self._asking: list[tuple[int, asyncio.Future[None]]] = []
        """Requests that wait for the exchange under way."""

    def room(self, now: float) -> float:
        return self.remaining(now) if self._desk.away else self._prepaid

    def take(self, now: float, amount: int) -> None:
        self._prepaid -= amount
        self._taken += amount
        self._takes += 1
        self._touched_at = now
        if self._prepaid < self._refill_below or self._desk.away:
            self._refill_below = 0
            self._desk.want(self)

    def give(self, now: float, amount: int) -> None:
        self._prepaid += amount
        if self._prepaid < 0:
            self._desk.want(self)
        else:
            self._desk.keep(self)

    def remaining(self, now: float) -> float:
        raise NotImplementedError

    def worth_asking(self, now: float, amount: int) -> bool:
        if self._desk.away:
            return False
        answered = self._answered_at
        return (
            answered is None or now - answered >= RECHECK_SECONDS or amount <= self.remaining(now)
        )

    def ask(self, amount: int) -> "asyncio.Future[None]":
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, answer))
        self._desk.want(self, urgent=True)
        return answer

    def idle(self, now: float) -> bool:
        return not self._desk.holds(self)

    def forgettable(self) -> bool:
        return not self._desk.holds(self)

    # What follows is for the broker.

    @property
    def empty(self) -> bool:
        """Whether nothing is held, nothing owed and no request waits: the broker may forget it."""
        return not (self._prepaid or self._leased or self._waiting or self._asking)

    def plan(self, now: float, *, closing: bool = False) -> Ask | None:
        """What to ask now, if anything. The returned amount is deducted at once;
        `accept` or `fail` must follow."""
        waiting = [amount for amount, answer in self._waiting if not answer.done()]
        self._asking = self._waiting
        self._waiting = []
        target, leased = self._measure(now, waiting)
        scarce = 4 * self.remaining(now) < self.limit
        idle = now - self._touched_at >= (SCARCE_IDLE_SECONDS if scarce else IDLE_SECONDS)
        resting = closing or self._denied or idle
        if resting and not waiting:
            target = 0
            leased = 0
            self._denied = False
        give = 0 if waiting and self._prepaid >= 0 else self._surplus(target)
        self._prepaid -= give
        self._target = target
        # Half and double: small changes of the pace cause no exchange.
        short = 2 * self._prepaid < target or 2 * self._leased < leased
        if not (waiting or give or short or self._leased > 2 * leased):
            return None
        need = max(0, min(waiting) - self._prepaid) if waiting else 0
        demand = max(0, sum(waiting) - self._prepaid)
        prefetch = max(0, target - max(0, self._prepaid - sum(waiting)))
        return Ask(
            self.budget,
            self.limit,
            self.month,
            give,
            need,
            demand,
            prefetch,
            leased,
            self._desk.replicas,
        )

    def accept(self, ask: Ask, grant: Grant, now: float) -> None:
        """Take the store's answer to what `plan` asked."""
        self._prepaid += grant.amount
        self._leased = grant.leased
        self._answered_at = now
        self._refill_below = self._target // 2 if grant.amount >= ask.demand + ask.prefetch else 0
        self._see(grant.used, now)
        if ask.need and not grant.amount:
            # This share and those of others are each too small for a request;
            # together one may be enough.
            self._denied = True
            self._desk.want(self)
        self.wake()

    def fail(self, ask: Ask) -> None:
        """No answer came. The return may have arrived, so it counts as returned.
        A debt stays a debt."""
        self._prepaid += min(0, ask.give)
        self.wake()

    def wake(self) -> None:
        """Let the requests of the exchange that has ended look again."""
        for _, answer in self._asking:
            if not answer.done():
                answer.set_result(None)
        self._asking = []

    def release(self) -> None:
        """The store is down: let all waiting requests look again."""
        self._asking += self._waiting
        self._waiting = []
        self.wake()

    def come_back(self, now: float) -> None:
        """The store answers again."""

    def _measure(self, now: float, waiting: Sequence[int]) -> tuple[int, int]:
        """How much should be prepaid and leased, by the recent pace and size of requests."""
        elapsed = max(0.0, now - self._planned_at)
        self._planned_at = now
        self._pace = (self._taken + self._pace * PACE_SECONDS) / (elapsed + PACE_SECONDS)
        if count := self._takes + len(waiting):
            self._size = (self._taken + sum(waiting)) // count
        self._taken = 0
        self._takes = 0
        target = max(int(self._pace * PREFETCH_SECONDS), self._size * PREFETCH_REQUESTS)
        return self._bounded(target), int(self._pace * LEASED_SECONDS)

    def _surplus(self, target: int) -> int:
        """How much to return; negative: the debt."""
        if self._prepaid < 0 or not target:
            return self._prepaid
        return self._prepaid - target if self._prepaid > 2 * target else 0

    def _bounded(self, target: int) -> int:
        """How much of `target` may be prefetched."""
        raise NotImplementedError

    def _see(self, used: float, now: float) -> None:
        """Note what all replicas have used."""
        raise NotImplementedError


class SharedMonth(Lease):
    """A share of a month's limit."""

    _used = 0

    def remaining(self, now: float) -> float:
        leased = self._leased if not self._desk.away or self._desk.leases_are_valid(now) else 0
        return self._prepaid + leased + self.limit - self._used

    def _bounded(self, target: int) -> int:
        return target

    def _see(self, used: float, now: float) -> None:
        self._used = int(used)


class SharedMinute(Lease):
    """A share of a minute's limit.
    While the store is down it goes on locally, at its part of the rate."""

    def __init__(self, desk: Desk, budget: str, limit: int, now: float) -> None:
        super().__init__(desk, budget, limit, None, now)
        self._seen = LeakyBucket(at=now)
        """The shared bucket as it was last seen."""
        self._unbooked = 0
        """Amount taken beyond the share while the store was down."""

    def remaining(self, now: float) -> float:
        rate = self.limit / (self._desk.replicas if self._desk.away else 1)
        return self._prepaid + self.limit - self._seen.drain(rate, now) + EPSILON

    def take(self, now: float, amount: int) -> None:
        if self._desk.away and (beyond := amount - max(0, self._prepaid)) > 0:
            self._seen.take(beyond)
            self._unbooked += beyond
            self._prepaid += beyond
        super().take(now, amount)

    def come_back(self, now: float) -> None:
        """What was taken meanwhile and has not drained yet becomes a debt."""
        used = self._seen.drain(self.limit / self._desk.replicas, now)
        self._prepaid -= min(self._unbooked, int(used))
        self._unbooked = 0

    def _measure(self, now: float, waiting: Sequence[int]) -> tuple[int, int]:
        return super()._measure(now, waiting)[0], 0

    def _bounded(self, target: int) -> int:
        return min(target, self.limit // (PREFETCH_PART * self._desk.replicas))

    def _see(self, used: float, now: float) -> None:
        self._seen.used = used
        self._seen.at = now
