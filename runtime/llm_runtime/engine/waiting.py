"""The queue before the batch: strict priorities,
and fair queueing between tenants within one priority. Pure.

Without it, a tenant that sends a thousand requests at once would have everybody else wait behind
them. The queue keeps one line per priority and tenant (fair queueing, Nagle, RFC 970, 1985). The
next request comes from the highest priority. Within it, the tenant with the fewest running
sequences is next; among equals, the one whose last turn was longest ago (round robin).
"""

from collections import Counter, deque
from collections.abc import Iterator

from llm_runtime.engine.sequence import Sequence

MAX_TENANTS = 1024
"""Tenants whose last turn is remembered.
A forgotten one had its turn longest ago, and so goes first."""


class WaitingQueue:
    """Waiting sequences in lines by priority and tenant."""

    def __init__(self) -> None:
        self._lines: dict[tuple[int, str], deque[Sequence]] = {}
        self._turns: dict[str, int] = {}
        """Number of the last turn of each tenant, the oldest first."""
        self._taken = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for line in self._lines.values() for sequence in line)

    def add(self, sequence: Sequence) -> None:
        request = sequence.request
        self._lines.setdefault((request.priority, request.tenant), deque()).append(sequence)
        self._count += 1

    def first(self, running: Counter[str]) -> Sequence | None:
        """The sequence whose turn it is; `running` counts each tenant's running sequences."""
        line = self._line(running)
        return line[0] if line else None

    def pop(self, sequence: Sequence) -> None:
        """Take out `sequence`, which `first` has just returned."""
        key = sequence.request.priority, sequence.request.tenant
        self._lines[key].popleft()
        self._count -= 1
        self._taken += 1
        self._turns.pop(sequence.request.tenant, None)
        self._turns[sequence.request.tenant] = self._taken
        if len(self._turns) > MAX_TENANTS:
            del self._turns[next(iter(self._turns))]
        if not self._lines[key]:
            del self._lines[key]

    def remove(self, gone: set[Sequence]) -> None:
        for key in {
            (sequence.request.priority, sequence.request.tenant) for sequence in gone
        } & self._lines.keys():
            left = deque(sequence for sequence in self._lines[key] if sequence not in gone)
            self._count -= len(self._lines[key]) - len(left)
            if left:
                self._lines[key] = left
            else:
                del self._lines[key]

    def _line(self, running: Counter[str]) -> deque[Sequence] | None:
        if not self._lines:
            return None
        highest = max(priority for priority, _ in self._lines)
        tenants = [tenant for priority, tenant in self._lines if priority == highest]
        tenant = min(tenants, key=lambda tenant: (running[tenant], self._turns.get(tenant, 0)))
        return self._lines[highest, tenant]
