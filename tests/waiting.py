"""Waiting for what happens elsewhere: on another thread, in another process, in a cluster."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

PATIENCE_SECONDS = 120.0
"""Until a test gives up.
It measures nothing: what comes in a moment here may take long where much else runs."""


def eventually(holds: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    """The first true answer of `holds`; what went wrong last is told when none comes."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := holds():
                return found
            trouble: object = found
        except Exception as error:
            trouble = error
        assert time.monotonic() < deadline, f"not within {seconds} s: {trouble!r}"
        time.sleep(0.02)


async def until(holds: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> None:
    """`eventually`, while the tasks of this loop go on; what `holds` raises is raised at once."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - nobody there sets an event
            await asyncio.sleep(0.002)
