"""Runs that go on when the request that began them has been answered, and the events that they
send."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from starlette.types import Message

from llm_runtime.common.kept import Kept

REPLAY_SECONDS = 300.0
"""How long the events of a run are kept after its end."""
REPLAY_BYTES = 64 << 20
REPLAYS = 1000
END_SECONDS = 10.0
"""How long the exit waits."""


class Run:
    """One run."""

    def __init__(self, *, with_events: bool) -> None:
        """`with_events`: what it sends is kept for those who follow it."""
        self.with_events = with_events
        self.over = False
        self._sent: list[bytes] = []
        self._news = asyncio.Event()
        self._cancelled = asyncio.Event()

    @property
    def size(self) -> int:
        """Bytes of its events."""
        return sum(map(len, self._sent))

    def send(self, event: bytes) -> None:
        """Tell those who follow."""
        if self.with_events:
            self._sent.append(event)
            self._tell()

    async def follow(self, after: int) -> AsyncGenerator[bytes]:
        """The events behind the one with the number `after`, until the run is over."""
        position = after + 1
        while True:
            news = self._news
            if position < len(self._sent):
                fresh = self._sent[position:]
                position = len(self._sent)
                yield b"".join(fresh)
            elif self.over:
                return
            else:
                await news.wait()

    def cancel(self) -> None:
        """End it soon, as if its client left."""
        self._cancelled.set()

    async def receive(self) -> Message:
        """What its client sends, which is nothing until it leaves."""
        await self._cancelled.wait()
        return {"type": "http.disconnect"}

    def end(self) -> None:
        """Tell those who follow that nothing more comes."""
        self.over = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class Runs:
    """All runs of this replica. Its exit waits for those that go on: the engine has ended by
    then, so they end, too."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: dict[str, Run] = {}
        self._over: Kept[Run] = Kept(REPLAYS, REPLAY_BYTES, REPLAY_SECONDS)

    async def __aenter__(self) -> "Runs":
        return self

    async def __aexit__(self, *exc: object) -> None:
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=END_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def find(self, id_: str) -> Run | None:
        """The run of an id that nobody guesses, if it is here."""
        return self._running.get(id_) or self._over.get(id_)

    def begin(
        self,
        id_: str,
        tenant: str,
        work: Callable[[Run], Awaitable[None]],
        *,
        with_events: bool = False,
    ) -> Run:
        """Run `work` beside the request."""
        run = self._running[id_] = Run(with_events=with_events)

        async def running() -> None:
            try:
                await work(run)
            finally:
                run.end()
                del self._running[id_]
                if with_events:
                    self._over.put(id_, tenant, run, run.size)

        task = asyncio.create_task(running())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return run
