"""A keyed work queue with client-go's semantics, fair between tenants. It knows no Kubernetes."""

import asyncio
import time
from collections.abc import Callable, Hashable
from typing import Generic

from llm_operator.backlog import (
    EACH_SECONDS,
    QUICK_CAP_SECONDS,
    SLOW_CAP_SECONDS,
    Backlog,
    Item,
)


class Queue(Generic[Item]):
    """A Backlog that can be waited for."""

    def __init__(
        self, backlog: Backlog[Item] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._backlog = backlog or Backlog()
        self._clock = clock
        self._wake: set[asyncio.Future[None]] = set()

    def add(self, item: Item) -> None:
        self._backlog.add(item, self._clock())
        self._notify()

    def add_after(self, item: Item, seconds: float) -> None:
        self._backlog.add_after(item, seconds, self._clock())
        self._notify()

    def retry(self, item: Item) -> float:
        delay = self._backlog.retry(item, self._clock())
        self._notify()
        return delay

    def succeed(self, item: Item) -> None:
        self._backlog.succeed(item, self._clock())
        self._notify()

    async def get(self) -> Item:
        """Wait for an item; call `done` when it is handled."""
        while (item := self._backlog.take(self._clock())) is None:
            await self._wait()
        return item

    def done(self, item: Item) -> None:
        self._backlog.done(item)
        self._notify()

    async def _wait(self) -> None:
        due = self._backlog.next_due()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wake.add(future)
        try:
            # Not wait_for: until Python 3.12 it swallows a cancellation that meets a result.
            async with asyncio.timeout(None if due is None else max(0.0, due - self._clock())):
                await future
        except TimeoutError:
            return
        finally:
            self._wake.discard(future)

    def _notify(self) -> None:
        for future in self._wake:
            if not future.done():
                future.set_result(None)

    def depth(self) -> int:
        return self._backlog.depth()

    def failures(self, item: Item) -> int:
        return self._backlog.failures(item)

    def oldest(self) -> float:
        return self._backlog.oldest(self._clock())

    def stuck(self) -> float:
        return self._backlog.stuck(self._clock())


def _but_one(workers: int) -> int | None:
    return workers - 1 if workers > 1 else None


class Lanes(Generic[Item]):
    """Two queues that look like one to those who add items. Items that must not wait behind slow
    work have a queue and workers of their own.

    `quick_workers` and `slow_workers` are the numbers of workers. One tenant never has all workers
    of a queue, unless that has only one.
    """

    def __init__(
        self,
        quick: Callable[[Item], bool],
        tenant: Callable[[Item], Hashable] = lambda _: None,
        quick_workers: int = 0,
        slow_workers: int = 0,
    ) -> None:
        # A webhook that is away, a quota: nobody tells that the cause has gone, so the pauses stay
        # short. An API server that is away altogether tells of everything when it is back.
        self.quick: Queue[Item] = Queue(
            Backlog(
                cap_seconds=QUICK_CAP_SECONDS, tenant=tenant, most_of_one=_but_one(quick_workers)
            )
        )
        self.slow: Queue[Item] = Queue(
            Backlog(
                cap_seconds=SLOW_CAP_SECONDS,
                each_seconds=EACH_SECONDS,
                tenant=tenant,
                most_of_one=_but_one(slow_workers),
            )
        )
        self._is_quick = quick

    def _of(self, item: Item) -> Queue[Item]:
        return self.quick if self._is_quick(item) else self.slow

    def add(self, item: Item) -> None:
        self._of(item).add(item)

    def add_after(self, item: Item, seconds: float) -> None:
        self._of(item).add_after(item, seconds)

    def depth(self) -> int:
        return self.quick.depth() + self.slow.depth()

    def oldest(self) -> float:
        return max(self.quick.oldest(), self.slow.oldest())

    def stuck(self) -> float:
        return max(self.quick.stuck(), self.slow.stuck())
