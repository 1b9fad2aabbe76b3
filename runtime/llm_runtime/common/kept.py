"""A bounded in-memory cache that is fair between tenants:
when full, it evicts the largest tenant's oldest entry."""

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
class _Tenant:
    """One tenant's entries."""

    keys: OrderedDict[str, None]
    """Least recently used first."""
    size: int = 0


class Kept(Generic[V]):
    """Values by key, each owned by a tenant.
    When full, evicts from the largest tenant, which may be the newcomer."""

    def __init__(
        self,
        entries: int,
        size: int,
        ttl_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Holds at most `entries` entries and `size` bytes (as passed to `put`),
        each for `ttl_seconds`."""
        self.entries = entries
        self.size = size
        self._ttl = ttl_seconds
        self._clock = clock
        self._stored: OrderedDict[str, _Entry[V]] = OrderedDict()
        """In the order of expiry."""
        self._tenants: dict[str, _Tenant] = {}
        self._total = 0

    def __len__(self) -> int:
        self._expire()
        return len(self._stored)

    def items(self) -> Iterator[tuple[str, V]]:
        """All entries that have not expired."""
        self._expire()
        return iter([(key, entry.value) for key, entry in self._stored.items()])

    def get(self, key: str) -> V | None:
        """The value, if it has not expired. Marks it as used."""
        entry = self._stored.get(key)
        if entry is None or entry.until <= self._clock():
            return None
        self._tenants[entry.tenant].keys.move_to_end(key)
        return entry.value

    def put(self, key: str, tenant: str, value: V, size: int) -> None:
        """Store the value, replacing an older one and restarting its time to live."""
        self._expire()
        self.drop(key)
        self._stored[key] = _Entry(tenant, value, size, self._clock() + self._ttl)
        own = self._tenants.setdefault(tenant, _Tenant(OrderedDict()))
        own.keys[key] = None
        own.size += size
        self._total += size
        while self._stored and (len(self._stored) > self.entries or self._total > self.size):
            largest = max(self._tenants.values(), key=self._fullness)
            self.drop(next(iter(largest.keys)))

    def _fullness(self, own: _Tenant) -> float:
        return max(len(own.keys) / self.entries, own.size / self.size)

    def _expire(self) -> None:
        now = self._clock()
        while self._stored:
            key, entry = next(iter(self._stored.items()))
            if entry.until > now:
                return
            self.drop(key)

    def drop(self, key: str) -> None:
        """Forget the value, if there is one."""
        entry = self._stored.pop(key, None)
        if entry is None:
            return
        own = self._tenants[entry.tenant]
        del own.keys[key]
        own.size -= entry.size
        self._total -= entry.size
        if not own.keys:
            del self._tenants[entry.tenant]
