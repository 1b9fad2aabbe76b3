"""The servers of one comparison: all are started, but only one runs at a time."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from bench import load, models, workload
from bench.process import NotStarted, Process
from bench.servers import Server

Say = Callable[[str], None]
WARM_UP_SEED = 1_000_003


class Arena:
    """Start every server, warm it up and stop it on its feet;
    `measure` wakes the one that is measured.

    All stay up between rounds, so that rounds can take turns;
    an idle one gets no processor time at all.
    """

    def __init__(self, servers: Sequence[Server], say: Say, warm_up_clients: int = 8) -> None:
        self._servers = {server.key: server for server in servers}
        self._running: dict[str, Process] = {}
        self._say = say
        self._warm_up_clients = warm_up_clients
        self.commands: dict[str, str] = {}
        self.absent: dict[str, str] = {}
        """Servers that did not start or failed, each with the reason."""
        self.start_seconds: dict[str, float] = {}
        """From the process to its readiness. A first start reads files and compiles, too."""

    @property
    def present(self) -> list[str]:
        return list(self._running)

    def __enter__(self) -> Self:
        try:
            for key in self._servers:
                self._start(key)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def measure(self, key: str, clients: int, asks: Sequence[workload.Ask]) -> load.Load:
        """One measurement of one server.
        Raises RuntimeError unless it answered everything completely."""
        server = self._servers[key]
        with self.awake(key):
            try:
                return load.run(server.url, server.name, clients, asks, server.asks_for)
            except RuntimeError as error:
                raise RuntimeError(f"{server.title}: {error}") from error

    @contextmanager
    def awake(self, key: str) -> Iterator[None]:
        """Let one server run inside the block."""
        self._running[key].resume()
        try:
            yield
        finally:
            self._running[key].pause()

    def memory_mib(self) -> Mapping[str, int]:
        """Peak memory of each server since its start."""
        return {key: process.peak_memory_bytes() >> 20 for key, process in self._running.items()}

    def _start(self, key: str) -> None:
        server = self._servers[key]
        self._say(f"starting {server.title}")
        try:
            server.prepare()
            began = time.monotonic()
            self._running[key] = server.start()
            self.start_seconds[key] = round(time.monotonic() - began, 2)
        except NotStarted as reason:
            self._leave_out(server, str(reason))
            return
        self.commands[key] = server.described()
        words = models.words(server.model)
        self.measure(
            key, self._warm_up_clients, workload.mixed(words, self._warm_up_clients, WARM_UP_SEED)
        )

    def drop(self, key: str, reason: str) -> None:
        """Stop one server and continue without it."""
        self._running.pop(key).stop()
        self._leave_out(self._servers[key], reason)

    def _leave_out(self, server: Server, reason: str) -> None:
        self.absent[server.key] = server.anonymous(" ".join(reason.split()))
        self._say(f"without {server.title}: {reason}")

    def _stop(self) -> None:
        for process in self._running.values():
            process.stop()
        for server in self._servers.values():
            shutil.rmtree(server.scratch, ignore_errors=True)
