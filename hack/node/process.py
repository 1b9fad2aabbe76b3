"""One attempt of a container: a process group, its log file, and a clear end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Launch:
    """Everything needed to start a process: final values, nothing left to expand."""

    command: list[str]
    environment: dict[str, str]
    folder: Path
    # Where the container may leave a last word (terminationMessagePath).
    message: Path


class Process:
    """A running attempt. Ends with the node, even when the node is killed (Linux)."""

    def __init__(self, handle: asyncio.subprocess.Process, launch: Launch, log: Path) -> None:
        self.handle = handle
        self.launch = launch
        self.log = log

    @classmethod
    async def start(cls, launch: Launch, log: Path) -> Process:
        """Start it. Raises OSError when the program does not exist or may not run."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            handle = await spawn(launch, output.fileno())
        return cls(handle, launch, log)

    @property
    def over(self) -> bool:
        return self.handle.returncode is not None

    async def wait(self) -> int:
        """Wait for the exit code, negative for a signal.
        Kills remaining children, as the end of a container would."""
        code = await self.handle.wait()
        self.signal(signal.SIGKILL)
        return code

    def signal(self, sign: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.handle.pid, sign)

    async def stop(self, seconds: float) -> None:
        """SIGTERM to the group, and SIGKILL when it has not gone after `seconds`."""
        if not self.over:
            self.signal(signal.SIGTERM)
        try:
            # Not wait_for: Python 3.11's forgets a cancellation that comes in the moment the
            # process ends.
            async with asyncio.timeout(seconds):
                await self.handle.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self.handle.wait()


async def spawn(launch: Launch, output: int) -> asyncio.subprocess.Process:
    program = find(launch.command[0], launch.environment["PATH"])
    return await asyncio.create_subprocess_exec(
        program,
        *launch.command[1:],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=launch.environment,
        cwd=launch.folder,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )


def find(program: str, path: str) -> str:
    # Searched in the container's PATH, not in the node's.
    file = shutil.which(program, path=path)
    if file is None:
        raise FileNotFoundError(f'exec: "{program}": executable file not found in $PATH={path}')
    return file


def die_with_parent() -> None:
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


async def run(launch: Launch, command: list[str], seconds: float) -> tuple[int, str]:
    """Run a command beside the container (exec probe, hook):
    exit code and the end of its output."""
    program = find(command[0], launch.environment["PATH"])
    handle = await asyncio.create_subprocess_exec(
        program,
        *command[1:],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=launch.environment,
        cwd=launch.folder,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    try:
        async with asyncio.timeout(seconds):
            output, _ = await handle.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(handle.pid, signal.SIGKILL)
    return int(handle.returncode or 0), output[-1024:].decode(errors="replace").strip()


def last_words(launch: Launch, log: Path, policy: str, failed: bool) -> str:
    """The termination message: the file the container wrote,
    else on request and failure the end of its log."""
    if launch.message.is_file() and launch.message.stat().st_size:
        return launch.message.read_bytes()[:4096].decode(errors="replace")
    if policy != "FallbackToLogsOnError" or not failed:
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2048))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-80:])
