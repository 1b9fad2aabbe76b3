"""Where on this machine built and downloaded things are kept from one run to the next.
Standard library only."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def home() -> Path:
    """This user's home folder; the program ends with advice where there is none."""
    try:
        return Path.home()
    except RuntimeError:
        sys.exit(
            f"User {os.getuid()} has no name on this machine and so no home folder: set HOME to a"
            " folder of yours."
        )


CACHE = Path(
    os.environ.get("LLM_OPERATOR_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or home() / ".cache") / "llm-operator"
)


@contextmanager
def workplace(parent: Path) -> Iterator[Path]:
    """A folder in `parent` for things that take their final name once they are whole;
    gone after the block.

    For the holder of a lock on `parent`: what a killed holder left there goes, too.
    """
    _sweep(parent)
    try:
        yield Path(tempfile.mkdtemp(prefix=".partial-", dir=parent))
    finally:
        _sweep(parent)


def _sweep(parent: Path) -> None:
    # Whoever is told to end while removing (the demo, when another preparation failed)
    # finishes removing.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        for left in parent.glob(".partial-*"):
            shutil.rmtree(left, ignore_errors=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
