"""Concurrent requests of one caller: a fair semaphore with a bounded first-in, first-out queue.

Unlike asyncio's Semaphore, it hands a free place to the first waiter at once, so no later request
can take it. It can be resized. It estimates when to try again by Little's law: the queue's length
times the mean time that a place is held.
"""

import asyncio
from collections import deque

MAX_WAITING = 100
"""Longest queue of one caller. A request beyond it would wait in vain."""
SMOOTHING = 0.2
"""Weight of the latest request in the mean time that a place is held."""
RETRY_SECONDS = (1.0, 60.0)
"""Shortest and longest time after which a refused client is told to try again."""


class NoPlace(Exception):
    """All places are taken, and the queue is full or the wait timed out."""


class Slots:
    """The places of one caller. With `limit` None they are only counted."""

    __slots__ = ("_hold_seconds", "_queue", "limit", "running")

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.running = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._hold_seconds = RETRY_SECONDS[0]

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def idle(self) -> bool:
        return not self.running and not self._queue

    def resize(self, limit: int | None) -> None:
        """A larger limit admits waiters at once. A smaller one interrupts no request that runs."""
        self.limit = limit
        self._admit()

    async def enter(self, timeout_seconds: float) -> None:
        """Take a place, or wait for one in the order of arrival. Raises `NoPlace`.

        A caller that is cancelled while it waits loses no place,
        even if it was handed one at that moment.
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
        """Pass the place to the longest waiter.
        `held_seconds` goes into the estimate of how long others wait."""
        if held_seconds is not None:
            self._hold_seconds += SMOOTHING * (max(0.0, held_seconds) - self._hold_seconds)
        self.running -= 1
        self._admit()

    def retry_after_seconds(self) -> float:
        """Estimated seconds until a new request finds a place."""
        shortest, longest = RETRY_SECONDS
        turns = (len(self._queue) + 1) / (self.limit or 1)
        return min(longest, max(shortest, turns * self._hold_seconds))

    def _free(self) -> bool:
        return self.limit is None or self.running < self.limit

    def _admit(self) -> None:
        while self._queue and self._free():
            place = self._queue.popleft()
            if not place.done():
                # Handed over here: a request that comes before the waiter wakes can't take it.
                self.running += 1
                place.set_result(None)

    def _give_up(self, place: "asyncio.Future[None]") -> None:
        if place.done() and not place.cancelled():
            self.leave()
        elif place in self._queue:
            self._queue.remove(place)
