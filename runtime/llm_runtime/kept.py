"""What is kept of many tenants in bounded memory: whoever holds the most of it loses its own oldest."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass(slots=True)
class _Entry(Generic[V]):
    tenant: str
    value: V
    size: int
    until: float


@dataclass(slots=True)
class _Share:
    """What one tenant has here."""

    keys: OrderedDict[str, None]
    """From the one used least recently on."""
    size: int = 0


class Kept(Generic[V]):
    """Values by key, each a tenant's. Full, it takes from the tenant with the largest share, maybe the newcomer."""

    def __init__(
        self, entries: int, size: int, ttl_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`entries` and `size`, in bytes as `put` counts them, are what all have together; each lasts `ttl_seconds`."""
        self.entries = entries
        self.size = size
        self._ttl = ttl_seconds
        self._clock = clock
        self._held: OrderedDict[str, _Entry[V]] = OrderedDict()
        """In the order in which their time is over."""
        self._shares: dict[str, _Share] = {}
        self._total = 0

    def __len__(self) -> int:
        self._expire()
        return len(self._held)

    def items(self) -> Iterator[tuple[str, V]]:
        """All of them."""
        self._expire()
        return iter([(key, entry.value) for key, entry in self._held.items()])

    def get(self, key: str) -> V | None:
        """The value, if its time is not over; it counts as used."""
        entry = self._held.get(key)
        if entry is None or entry.until <= self._clock():
            return None
        self._shares[entry.tenant].keys.move_to_end(key)
        return entry.value

    def put(self, key: str, tenant: str, value: V, size: int) -> None:
        """Keep it, anew if it is there."""
        self._expire()
        self._drop(key)
        self._held[key] = _Entry(tenant, value, size, self._clock() + self._ttl)
        share = self._shares.setdefault(tenant, _Share(OrderedDict()))
        share.keys[key] = None
        share.size += size
        self._total += size
        while self._held and (len(self._held) > self.entries or self._total > self.size):
            largest = max(self._shares.values(), key=self._part)
            self._drop(next(iter(largest.keys)))

    def _part(self, share: _Share) -> float:
        return max(len(share.keys) / self.entries, share.size / self.size)

    def _expire(self) -> None:
        now = self._clock()
        while self._held:
            key, entry = next(iter(self._held.items()))
            if entry.until > now:
                return
            self._drop(key)

    def _drop(self, key: str) -> None:
        entry = self._held.pop(key, None)
        if entry is None:
            return
        share = self._shares[entry.tenant]
        del share.keys[key]
        share.size -= entry.size
        self._total -= entry.size
        if not share.keys:
            del self._shares[entry.tenant]
