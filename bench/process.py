"""A server as a process tree: start, readiness, peak memory, pausing while others are measured,
and its end by id."""

import ctypes
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

START_SECONDS = 600.0
STOP_SECONDS = 20.0
PR_SET_PDEATHSIG = 1


class NotStarted(Exception):
    """The server ended, or did not get ready in time; the message has the end of its log."""


class Process:
    """One server and all that it starts."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path
    ) -> None:
        self.log = log
        self._output: IO[bytes] = log.open("wb")
        self._root = subprocess.Popen(
            list(command), env=dict(environment), cwd=folder, stdin=subprocess.DEVNULL,
            stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_die_with_parent,
        )  # fmt: skip

    def wait_until_ready(self, url: str, poll_seconds: float = 0.25) -> None:
        """Wait until `url` answers 200. Raises `NotStarted`."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._root.poll() is not None:
                raise NotStarted(f"ended with {self._root.returncode}: {self._tail()}")
            with (
                suppress(urllib.error.URLError, OSError),
                urllib.request.urlopen(url, timeout=5) as answer,
            ):
                if answer.status == 200:
                    return
            time.sleep(poll_seconds)
        raise NotStarted(f"not ready after {START_SECONDS:.0f} s: {self._tail()}")

    def pids(self) -> list[int]:
        """The process and its descendants, parents first."""
        return descendants(self._root.pid, parents())

    def peak_memory_bytes(self) -> int:
        """Largest resident memory of the tree so far, shared pages counted once:
        PSS now, plus what each had more."""
        return sum(_peak_bytes(pid) for pid in self.pids())

    def pause(self) -> None:
        """Pause the processes: even an idle server may poll."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End the server, by force if it does not end in time, and its remaining children."""
        family = self.pids()
        self.resume()
        self._root.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._root.wait(STOP_SECONDS)
        for pid in family:
            with suppress(ProcessLookupError):
                if (
                    os.getsid(pid) == self._root.pid
                ):  # The id may have been reused by another process.
                    os.kill(pid, signal.SIGKILL)
        self._root.wait()
        self._output.close()

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _tail(self) -> str:
        return self.log.read_text(errors="replace").strip()[-600:]


def _die_with_parent() -> None:
    """A benchmark that is killed must not leave stopped servers behind,
    which hold gigabytes and show nothing."""
    with suppress(OSError, AttributeError):  # Linux only.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has taken, without its children's."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def descendants(root: int, parent_of: Mapping[int, int]) -> list[int]:
    """`root` and its descendants, parents before their children."""
    family = [root]
    for member in family:
        family += [pid for pid, parent in parent_of.items() if parent == member]
    return family


def parents() -> dict[int, int]:
    """The parent of every process."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                # The name in parentheses may hold anything; what follows is: state, parent.
                found[int(folder.name)] = int(
                    (folder / "stat").read_text().rpartition(")")[2].split()[1]
                )
    return found


def _peak_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return _field(rollup, "Pss") + _field(status, "VmHWM") - _field(status, "VmRSS")


def _field(text: str, name: str) -> int:
    """Bytes of the line `name:   123 kB`."""
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    return 0
