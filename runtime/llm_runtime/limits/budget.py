"""One limit of one caller: what every budget can do, and the budgets of a server that shares none.

A request reserves an estimate before it runs and settles what it really used afterwards, as a hotel
does with a credit card. `lease` has the budgets that several replicas share.
"""

import asyncio
from typing import Protocol

from llm_runtime.limits.leaky_bucket import EPSILON, LeakyBucket
from llm_runtime.limits.month import Month


class Budget(Protocol):
    """One limit of one caller, local or shared. `now` is in seconds on the monotonic clock."""

    limit: int
    month: Month | None
    """Month of the limit; None for a limit per minute."""

    def room(self, now: float) -> float:
        """Amount that may be taken now, without asking the store."""
        ...

    def take(self, now: float, amount: int) -> None:
        """Reserve `amount`; the caller has checked `room`."""
        ...

    def give(self, now: float, amount: int) -> None:
        """Return what was not used. A negative amount takes more, even beyond the limit."""
        ...

    def remaining(self, now: float) -> float:
        """Amount left for all replicas together, as far as this one knows."""
        ...

    def worth_asking(self, now: float, amount: int) -> bool:
        """Whether asking the store may find more than `room` shows."""
        ...

    def ask(self, amount: int) -> "asyncio.Future[None]":
        """Ask the store for enough that `amount` fits; afterwards `room` tells whether it does."""
        ...

    def idle(self, now: float) -> bool:
        """Whether a new object would be the same."""
        ...

    def forgettable(self) -> bool:
        """Whether it may be dropped when memory is short, although it is not idle."""
        ...


class _Local:
    __slots__ = ()

    def forgettable(self) -> bool:
        return True

    def worth_asking(self, now: float, amount: int) -> bool:
        return False

    def ask(self, amount: int) -> "asyncio.Future[None]":
        raise AssertionError("a local budget has no store to ask")


class LocalMinute(_Local):
    """A bucket in memory."""

    __slots__ = ("_bucket", "limit", "month")

    month: Month | None

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self.month = None
        self._bucket = LeakyBucket(at=now)

    def room(self, now: float) -> float:
        return self._bucket.room(self.limit, now) + EPSILON

    def take(self, now: float, amount: int) -> None:
        self._bucket.take(amount)

    def give(self, now: float, amount: int) -> None:
        self._bucket.drain(self.limit, now)
        self._bucket.give(amount)

    remaining = room

    def idle(self, now: float) -> bool:
        return self._bucket.drain(self.limit, now) <= 0.0


class LocalMonth(_Local):
    """A counter in memory, for a server without a database: a restart begins anew."""

    __slots__ = ("_used", "limit", "month")

    month: Month | None

    def __init__(self, limit: int, month: Month) -> None:
        self.limit = limit
        self.month = month
        self._used = 0

    def room(self, now: float) -> float:
        return self.limit - self._used

    def take(self, now: float, amount: int) -> None:
        self._used += amount

    def give(self, now: float, amount: int) -> None:
        self._used -= amount

    remaining = room

    def idle(self, now: float) -> bool:
        return self._used == 0
