"""`Idempotency-Key`: a request repeated with the same key gets the same answer,
even if it is sampled.

It works as in Stripe's API: a repetition gets 409 while the first request runs, and the same key
with another request is refused. Only complete answers are cached; after a failure the key can be
used again.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from llm_runtime import errors
from llm_runtime.cache.answer import MAX_CHARACTERS, Answer, Turn
from llm_runtime.common.kept import Kept

HEADER = "Idempotency-Key"
MAX_KEY_CHARACTERS = 255
TTL_SECONDS = 24 * 3600
ENTRIES = 10_000
ALL_BYTES = 128 << 20
"""Largest size of all cached answers."""


@dataclass(slots=True)
class _Known:
    tenant: str
    digest: str
    answer: Answer | None = None


class IdempotencyKeys:
    """Keys of all tenants on this replica.
    When full, the largest tenant loses its least recently used key."""

    def __init__(
        self,
        entries: int = ENTRIES,
        ttl_seconds: float = TTL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._answered: Kept[_Known] = Kept(entries, ALL_BYTES, ttl_seconds, clock)
        self._running: dict[str, _Known] = {}

    def claim(self, tenant: str, key: str, digest: str) -> Answer | Turn:
        """The answer to the first request with `key`, or a turn to compute it.
        `digest` identifies the request.

        Raises `errors.InvalidRequest` if the key is invalid or was used for another request,
        `errors.Conflict` while the first request with it runs.
        """
        if not 0 < len(key) <= MAX_KEY_CHARACTERS:
            message = f"{HEADER} must have 1 to {MAX_KEY_CHARACTERS} characters."
            raise errors.InvalidRequest(message, param=HEADER, code="invalid_idempotency_key")
        place = hashlib.sha256(repr((tenant, key)).encode()).hexdigest()
        known = self._running.get(place) or self._answered.get(place)
        if known is None:
            known = self._running[place] = _Known(tenant, digest)
            return _Claim(self, place, known)
        if known.digest != digest:
            message = (
                f"This {HEADER} was sent with another request; use a new key for each request."
            )
            raise errors.InvalidRequest(message, param=HEADER, code="idempotency_key_reused")
        if known.answer is None:
            message = (
                f"The first request with this {HEADER} is still being answered; try again in a"
                " moment."
            )
            raise errors.Conflict(message, param=HEADER, code="idempotency_conflict")
        return known.answer

    def release(self, place: str, known: _Known) -> None:
        """End the request that claimed `place`, and cache its answer if it has one."""
        if self._running.get(place) is known:
            del self._running[place]
            if known.answer:
                self._answered.put(place, known.tenant, known, known.answer.size)


class _Claim:
    """The `Turn` of one idempotency key."""

    def __init__(self, keys: IdempotencyKeys, place: str, known: _Known) -> None:
        self._keys = keys
        self._place = place
        self._known = known

    def keep(self, answer: Answer) -> None:
        if answer.characters <= MAX_CHARACTERS:
            self._known.answer = answer
        self.drop()

    def drop(self) -> None:
        self._keys.release(self._place, self._known)
