"""Waiting that says so: what is waited for, and for how long already.
Standard library only, for hack/kube/build."""

from __future__ import annotations

import fcntl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SILENT_SECONDS = 5.0
LATER_SECONDS = 15.0
"""How long a wait may be silent: at first, and once it lasts for minutes."""


def complain(text: str) -> None:
    """A line for a person, away from standard output, which belongs to programs."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def waiting(
    what: Callable[[], str],
    say: Callable[[str], None] = complain,
    every_seconds: float | None = None,
) -> Iterator[None]:
    """Say `what()` and the seconds so far, again and again until the block ends.
    A quick block says nothing.

    Without `every_seconds` the lines come more rarely as time goes on.
    """
    started = time.monotonic()
    ended = threading.Event()

    def pause() -> float:
        if every_seconds is not None:
            return every_seconds
        return min(max((time.monotonic() - started) / 4, SILENT_SECONDS), LATER_SECONDS)

    def speak() -> None:
        while not ended.wait(pause()):
            say(f"{what()} ({time.monotonic() - started:.0f} s)")

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        ended.set()
        speaker.join()


@contextmanager
def locked(file: Path, held_by: str, say: Callable[[str], None] = complain) -> Iterator[None]:
    """Hold the lock `file` for the block.
    Where another process holds it, say what that is and for how long we wait."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        try:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{held_by}; waiting for it")
            with waiting(lambda: f"{held_by}; still waiting", say):
                fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
        yield
