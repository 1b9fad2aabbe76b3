"""One limit of one caller, in the memory of this process alone."""

import asyncio
from typing import Protocol

from llm_runtime.limits.bucket import EPSILON, Bucket
from llm_runtime.limits.month import Month


class Budget(Protocol):
    """One limit of one caller, wherever the truth about it lies. `now` is the monotonic clock's."""

    limit: int
    month: Month | None
    """The month that it is for; None for a minute's limit."""

    def room(self, now: float) -> float:
        """How much may be taken at once, without asking anybody."""
        ...

    def take(self, now: float, amount: int) -> None:
        """Reserve; `room` has been looked at."""
        ...

    def give(self, now: float, amount: int) -> None:
        """Put back what was not used; a negative amount takes more, beyond the limit if need be."""
        ...

    def remaining(self, now: float) -> float:
        """How much is left, of all replicas together as far as it is known here."""
        ...

    def worth_asking(self, now: float, amount: int) -> bool:
        """Whether `ask` may find more than `room` shows."""
        ...

    def ask(self, amount: int) -> "asyncio.Future[None]":
        """Try to get so much from where the truth lies that `amount` fits; whether it does, `room` tells then."""
        ...

    def idle(self, now: float) -> bool:
        """Whether this object is as good as a new one."""
        ...

    def forgettable(self) -> bool:
        """Whether it may be forgotten although it is not idle, for want of memory."""
        ...


class _Local:
    __slots__ = ()

    def forgettable(self) -> bool:
        return True

    def worth_asking(self, now: float, amount: int) -> bool:
        return False

    def ask(self, amount: int) -> "asyncio.Future[None]":
        raise AssertionError("a limit of this process alone has nobody to ask")


class LocalMinute(_Local):
    """A bucket in memory."""

    __slots__ = ("_bucket", "limit", "month")

    month: Month | None

    def __init__(self, limit: int, now: float) -> None:
        self.limit, self.month = limit, None
        self._bucket = Bucket(at=now)

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
        self.limit, self.month = limit, month
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
