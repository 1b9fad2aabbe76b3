"""Concurrent requests of one caller: so many places, and a queue in which nobody overtakes."""

import asyncio
from collections import deque

MAX_WAITING = 100
"""Of one caller. Whoever sends more than this at once gains nothing by waiting."""
SMOOTHING = 0.2
"""Weight of the latest request in the mean time that a place is held."""
RETRY_SECONDS = (1.0, 60.0)


class NoPlace(Exception):
    """All places are taken, and the queue is full or the time to wait is over."""


class Slots:
    """The places of one caller. `limit` None counts and never makes anybody wait."""

    __slots__ = ("_hold_seconds", "_queue", "limit", "running")

    def __init__(self, limit: int | None) -> None:
        self.limit, self.running = limit, 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._hold_seconds = RETRY_SECONDS[0]

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def idle(self) -> bool:
        return not self.running and not self._queue

    def resize(self, limit: int | None) -> None:
        """A larger limit lets those in at once who wait; a smaller one takes no place away from who has it."""
        self.limit = limit
        self._admit()

    async def enter(self, timeout_seconds: float) -> None:
        """Take a place, or wait for one in the order of arrival. Raises `NoPlace`.

        A caller that gives up while it waits leaves no trace, also when it was handed its place at that very moment.
        """
        if self._free() and not self._queue:
            self.running += 1
            return
        if len(self._queue) >= MAX_WAITING or timeout_seconds <= 0:
            raise NoPlace
        place = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        try:
            async with asyncio.timeout(timeout_seconds):
                await place
        except BaseException as error:
            self._give_up(place)
            if isinstance(error, TimeoutError):
                raise NoPlace from error
            raise

    def leave(self, held_seconds: float | None = None) -> None:
        """Give the place to whoever waits longest. `held_seconds` goes into the estimate of how long others wait."""
        if held_seconds is not None:
            self._hold_seconds += SMOOTHING * (max(0.0, held_seconds) - self._hold_seconds)
        self.running -= 1
        self._admit()

    def retry_after_seconds(self) -> float:
        """When one more is likely to find a place: those before it, at the pace of late."""
        shortest, longest = RETRY_SECONDS
        turns = (len(self._queue) + 1) / (self.limit or 1)
        return min(longest, max(shortest, turns * self._hold_seconds))

    def _free(self) -> bool:
        return self.limit is None or self.running < self.limit

    def _admit(self) -> None:
        while self._queue and self._free():
            place = self._queue.popleft()
            if not place.done():
                # The place changes hands here: nobody who comes before the waiter wakes can take it.
                self.running += 1
                place.set_result(None)

    def _give_up(self, place: "asyncio.Future[None]") -> None:
        if place.done() and not place.cancelled():
            self.leave()
        elif place in self._queue:
            self._queue.remove(place)
