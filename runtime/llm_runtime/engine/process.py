"""The engine in a process of its own, as the HTTP process starts, hears and ends it; and the words
for how it died.

Both processes hold one end of an unnamed socket pair. The socket is the sign of life. When the
engine's process ends for any reason, it closes here; when this process ends, it closes there and
the engine ends at once.
"""

import asyncio
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from llm_runtime import logs
from llm_runtime.common.python import PYTHON
from llm_runtime.contract import FatalReport, RuntimeConfig
from llm_runtime.engine.client import STALL_SECONDS, EngineClient, EngineLink, load
from llm_runtime.engine.messages import Command, Frames, frame
from llm_runtime.machine import cgroup
from llm_runtime.machine.memory import KV_CACHE_FIELD, MIB
from llm_runtime.machine.threads import configure_threads

log = logging.getLogger(__name__)

WORKER = (*PYTHON, "-m", "llm_runtime.worker")
CLOSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Spawned:
    """A process that has been started and waits at the other end of `ours`.
    It ends when that closes, as it does when this process ends."""

    process: "subprocess.Popen[bytes]"
    ours: socket.socket
    oom_kills_before: int
    """Processes that the kernel had killed here for their memory when this one was started. It may
    be killed so before anybody listens to it."""

    def end(self) -> None:
        """End the process, unless it has ended: then nothing it writes comes after this."""
        self.process.kill()
        self.process.wait()


def spawn_engine(config: RuntimeConfig, worker: Sequence[str] = WORKER) -> Spawned:
    """Start `worker`, which imports what it needs before it is told which model to load."""
    return _spawned(
        [*worker, logs.format_of(config.server), _log_level(), config.engine.step_trace]
    )


async def start_engine(
    config: RuntimeConfig,
    folder: Path,
    worker: Sequence[str] = WORKER,
    stall_seconds: float = STALL_SECONDS,
    spawned: Spawned | None = None,
) -> EngineClient:
    """Have `spawned` load the model, or a new `worker`.
    Raises errors.EngineFailed with the reason it gave."""
    link = EngineLink(stall_seconds)
    process = await EngineProcess.attach(link, spawned or spawn_engine(config, worker))
    link.connect(process)
    try:
        return await load(link, config, folder)
    except BaseException:
        process.kill()
        raise


class EngineProcess(asyncio.Protocol):
    """A `client.Channel` to the engine's process."""

    def __init__(self, link: EngineLink, spawned: Spawned) -> None:
        self._link = link
        self._process = spawned.process
        self._loop = asyncio.get_running_loop()
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None
        # A copy that is this object's own: it can be shut down from any thread.
        self._socket = spawned.ours.dup()
        self._ending: asyncio.Task[None] | None = None
        self._wanted_gone = False
        self._oom_kills_before = spawned.oom_kills_before

    @classmethod
    async def start(cls, link: EngineLink, command: Sequence[str]) -> "EngineProcess":
        """Start `command`, with the number of its end of the socket as one more argument."""
        return await cls.attach(link, _spawned(command))

    @classmethod
    async def attach(cls, link: EngineLink, spawned: Spawned) -> "EngineProcess":
        """The channel to a process that was started before, on this event loop."""
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(lambda: cls(link, spawned), sock=spawned.ours)
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        for report in self._frames.feed(data):
            self._link.receive(report)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._ending = self._loop.create_task(self._tell())

    def send(self, command: Command) -> None:
        data = frame(command)
        if asyncio._get_running_loop() is self._loop:
            self._write(data)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._write, data)

    def alive(self) -> bool:
        return self._transport is not None and self._process.poll() is None

    def close(self) -> None:
        self._wanted_gone = True
        with suppress(OSError):  # It has gone already.
            self._socket.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._socket.close()

    def kill(self) -> None:
        """End it without waiting for the step it is in."""
        self._wanted_gone = True
        self._process.kill()
        self._process.wait()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    async def _tell(self) -> None:
        """Say how the process ended, to the log and to whoever waits for it."""
        try:
            status = await asyncio.to_thread(self._process.wait, CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            status = self._process.returncode
        if self._wanted_gone:
            self._link.lost()
            return
        report = death(status, cgroup.memory_groups(), self._oom_kills_before)
        log.error("%s", report.message)
        self._link.lost(report)


def _spawned(command: Sequence[str]) -> Spawned:
    ours, theirs = socket.socketpair()
    killed = oom_kills(cgroup.memory_groups())
    try:
        return Spawned(_spawn(command, theirs), ours, killed)
    finally:
        theirs.close()


def _spawn(command: Sequence[str], theirs: socket.socket) -> "subprocess.Popen[bytes]":
    """In this process's group: what is sent to the group,
    like the kernel's or a shell's SIGKILL, reaches both."""
    environment = dict(os.environ)
    configure_threads(
        environment
    )  # Read by libgomp when torch is first imported; torch is only imported there.
    return subprocess.Popen(
        [*command, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        env=environment,
    )


def oom_kills(groups: Sequence[cgroup.MemoryGroup]) -> int:
    """Processes that the kernel has killed for lack of memory in this process's own cgroup."""
    return groups[0].oom_kills if groups else 0


def death(status: int, groups: Sequence[cgroup.MemoryGroup], oom_kills_before: int) -> FatalReport:
    """The cause of a process's end by its exit status, as subprocess counts it:
    a signal's number is negative.

    The kernel's own count tells a process that it killed for its memory from one that somebody else
    killed.
    """
    if status == -signal.SIGKILL and oom_kills(groups) > oom_kills_before:
        return FatalReport(reason="OutOfMemory", message=_out_of_memory(groups))
    if status == -signal.SIGKILL:
        who = (
            "by a person or a program"
            if groups
            else "by a person or a program, or by the kernel for its memory"
        )
        message = (
            f"the engine's process was killed by signal 9 (SIGKILL) from outside: {who}; the server"
            " starts again"
        )
        return FatalReport(reason="EngineKilled", message=message)
    if status < 0:
        words = f"was ended by signal {-status} ({_signal_name(-status)})"
        return FatalReport(
            reason="EngineDied", message=f"the engine's process {words}; the log above may say why"
        )
    words = f"ended with status {status}"
    return FatalReport(
        reason="EngineDied", message=f"the engine's process {words}; the log above may say why"
    )


def _out_of_memory(groups: Sequence[cgroup.MemoryGroup]) -> str:
    killed = "the engine's process was killed by the kernel for its memory"
    limited = [group for group in groups if group.limit_bytes is not None]
    if not limited:
        return (
            f"{killed}: the machine had none left and there is no limit; set a memory limit, or"
            f" {KV_CACHE_FIELD}"
        )
    tightest = min(limited, key=lambda group: group.limit_bytes or 0)
    peak = (
        f", of which {tightest.peak_bytes / MIB:.0f} MiB were used at most"
        if tightest.peak_bytes
        else ""
    )
    return (
        f"{killed}: the limit is {(tightest.limit_bytes or 0) / MIB:.0f} MiB{peak}; raise the"
        f" memory limit, or lower {KV_CACHE_FIELD}, engine.maxBatchSize or engine.maxModelLength"
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _log_level() -> str:
    return logging.getLevelName(logging.getLogger().level)
