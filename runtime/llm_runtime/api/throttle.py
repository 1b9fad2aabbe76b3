"""Throttling before a request is admitted: how many large bodies one client may have in memory,
and how long the answer to what is refused waits."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from llm_runtime import errors
from llm_runtime.limits.slots import NoPlace, Slots

SMALL_BODY_BYTES = 64 << 10
"""A connection buffers this much of a body that nobody has read yet. Such bodies need no place."""
BODIES = 8
"""Largest number of large bodies of one caller that come in at the same time. The others wait
unread."""
MAX_CLIENTS = 10_000
"""Largest number of clients whose refusals are remembered. Beyond it, those refused least recently
are forgotten."""


class Bodies:
    """Places for large bodies, so many for each caller."""

    def __init__(self) -> None:
        self._places: dict[str, Slots] = {}

    @asynccontextmanager
    async def place(self, caller_id: str, timeout_seconds: float) -> AsyncIterator[None]:
        """Hold one. Raises `errors.RateLimited` when too many wait, or for too long."""
        slots = self._places.setdefault(caller_id, Slots(BODIES))
        try:
            await slots.enter(timeout_seconds)
            try:
                yield
            finally:
                slots.leave()
        except NoPlace:
            message = (
                f"{BODIES} large bodies of this caller are coming in, and others wait; send fewer"
                " at once."
            )
            retry = slots.retry_after_seconds()
            raise errors.RateLimited(
                message, code="concurrent_requests", retry_after_seconds=retry
            ) from None
        finally:
            if slots.idle:
                self._places.pop(caller_id, None)


class Pace:
    """How long the answer to a refusal waits:
    not at all for the first `burst`, then so that `rate` leave in a second.

    This slows down only clients that send refused requests again at once.
    """

    def __init__(
        self,
        rate: float,
        burst: int,
        longest_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._rate = rate
        self._burst = burst
        self._longest = longest_seconds
        self._clock = clock
        self._free_at: OrderedDict[str, float] = OrderedDict()
        """When the last refusal of a client has been paid for, at `rate`."""

    def delay(self, client: str) -> float:
        """Note one more refusal of `client`; how long its answer has to wait, in seconds."""
        now = self._clock()
        at = max(now, self._free_at.pop(client, now)) + 1 / self._rate
        while len(self._free_at) >= MAX_CLIENTS:
            self._free_at.popitem(last=False)
        at = self._free_at[client] = min(at, now + self._burst / self._rate + self._longest)
        return max(0.0, at - now - self._burst / self._rate)


class Throttle:
    """The throttling of one server."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.bodies = Bodies()
        self._refused = Pace(rate=25, burst=25, longest_seconds=5, clock=clock)
        self._unknown = Pace(rate=2, burst=10, longest_seconds=5, clock=clock)
        """Keys that are not known: by address, as guesses have no other name.
        Known keys from there do not wait."""

    async def refuse(self, client: str, refusal: errors.Refusal) -> None:
        """Wait as long as the answer to this refusal has to."""
        pace = self._unknown if isinstance(refusal, errors.Unauthorized) else self._refused
        if refusal.status < 500 and (seconds := pace.delay(client)) > 0:
            await asyncio.sleep(seconds)
