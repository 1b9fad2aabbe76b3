"""Child processes of the development stack:
started with a log file, ended by their id, never left behind."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx

from devstack.waits import complain, waiting


class StartFailed(RuntimeError):
    """A process of the stack ended or stayed silent; the message ends with the tail of its log."""


class Child:
    """One long-running process with its own session, so that its whole group can be ended."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, grace_seconds: float = 15.0) -> None:
        """End the process group: SIGTERM, then SIGKILL after the grace period.
        Does nothing if it has ended."""
        if not self.running:
            return
        _signal_group(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            _signal_group(self.process.pid, signal.SIGKILL)
            self.process.wait(5)


def wait_until(
    child: Child,
    ready: Callable[[], bool],
    timeout_seconds: float,
    say: Callable[[str], None] = complain,
) -> None:
    """Return once `ready()` holds; raise `StartFailed` if the child ends first or the time is up.

    After some seconds says that the child is waited for, on standard error if nowhere else.
    """
    deadline = time.monotonic() + timeout_seconds
    with waiting(lambda: f"waiting for the {child.name}", say):
        while time.monotonic() < deadline:
            if not child.running:
                raise StartFailed(
                    f"{child.name} ended with code {child.process.returncode}:\n{child.tail()}"
                )
            if ready():
                return
            time.sleep(0.1)
    raise StartFailed(f"{child.name} was not ready after {timeout_seconds:.0f} s:\n{child.tail()}")


def answers(url: str) -> bool:
    """Whether a GET of `url` gets a 2xx answer now."""
    try:
        return httpx.get(url, timeout=2.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return


def _die_with_parent() -> None:
    # A killed demo or test run must not leave servers behind (prctl(2), PR_SET_PDEATHSIG = 1).
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)
