"""The completion cache: equal deterministic requests of one tenant are computed once,
even if they are concurrent.

Concurrent equal requests are a single flight:
the first one leads and computes, the others wait for its answer.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from llm_runtime import errors
from llm_runtime.cache.answer import MAX_CHARACTERS, Answer, Turn
from llm_runtime.cache.store import AnswerStore
from llm_runtime.common.kept import Kept
from llm_runtime.contract import CompletionCacheConfig

ALL_BYTES = 256 << 20
"""Largest size of all answers in memory."""


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """The cache's statistics for `/status`."""

    entries: int
    max_entries: int
    hits: int
    misses: int
    waiting: int
    """In-flight answers, which other requests may wait for."""


class CompletionCache:
    """Answers by digest: the most recently used ones in memory,
    all of them in the database if there is one."""

    def __init__(
        self,
        config: CompletionCacheConfig,
        store: AnswerStore | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entries: Kept[Answer] = Kept(config.entries, ALL_BYTES, config.ttl_seconds, clock)
        self._flights: dict[str, _Flight] = {}
        self._store = store
        self.hits = self.misses = 0

    @property
    def entries(self) -> int:
        """Answers in memory."""
        return len(self._entries)

    def statistics(self) -> CacheStatistics:
        return CacheStatistics(
            self.entries, self._entries.entries, self.hits, self.misses, len(self._flights)
        )

    async def find(
        self, key: str, *, tenant: str, model: str, timeout_seconds: float
    ) -> Answer | Turn:
        """The answer, or a turn to compute it.

        Waits for an in-flight answer;
        if that fails, the next waiting request leads. Raises `errors.RequestTimeout`.
        """
        answer: Answer | None
        if (answer := self._entries.get(key)) is None:
            deadline = time.monotonic() + timeout_seconds
            while flight := self._flights.get(key):
                if answer := await flight.landed(deadline - time.monotonic()):
                    break
            else:
                turn = _Flight(self, key, tenant, model)
                answer = await self._lead(turn)
                if answer is None:
                    self.misses += 1
                    return turn
        self.hits += 1
        return answer

    async def _lead(self, turn: "_Flight") -> Answer | None:
        """Look in the database, on behalf of all equal requests."""
        self._flights[turn.key] = turn
        if self._store is None:
            return None
        try:
            answer = await self._store.get(turn.key)
        except BaseException:
            turn.drop()
            raise
        if answer:
            self.land(turn, answer)
        return answer

    def land(self, flight: "_Flight", answer: Answer | None) -> bool:
        """End a flight and wake its followers. Returns whether its answer was cached."""
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        if not flight.result.done():
            flight.result.set_result(answer)
        kept = answer is not None and answer.characters <= MAX_CHARACTERS
        if answer is not None and kept:
            self._entries.put(flight.key, flight.tenant, answer, answer.size)
        return kept

    def store(self, flight: "_Flight", answer: Answer) -> None:
        """Write the answer to the database later, if there is one."""
        if self._store:
            self._store.put(flight.key, flight.tenant, flight.model, answer)


class _Flight:
    """A `Turn` that other requests can wait for."""

    def __init__(self, cache: CompletionCache, key: str, tenant: str, model: str) -> None:
        self.key = key
        self.tenant = tenant
        self.model = model
        self.result: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self._cache = cache

    def keep(self, answer: Answer) -> None:
        if not self.result.done() and self._cache.land(self, answer):
            self._cache.store(self, answer)

    def drop(self) -> None:
        if not self.result.done():
            self._cache.land(self, None)

    async def landed(self, timeout_seconds: float) -> Answer | None:
        """Wait for the leader's answer; None if the leader failed."""
        # Not `wait_for`, which would cancel the shared future if one follower leaves.
        done, _ = await asyncio.wait({self.result}, timeout=max(0.0, timeout_seconds))
        if not done:
            message = (
                "An equal request was still being answered when this one's time was over; try"
                " again."
            )
            raise errors.RequestTimeout(message, code="request_timeout")
        return self.result.result()
