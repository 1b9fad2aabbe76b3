"""The process's own frame: what ends together, and what a lost cancellation may not do."""

from __future__ import annotations

import asyncio

import pytest

from llm_operator.__main__ import _first_to_end


async def test_a_part_that_loses_its_cancellation_is_ended_all_the_same() -> None:
    """As asyncio.gather loses one where an awaitable has just failed:
    a worker would go on without the lease."""
    lost = asyncio.Event()

    async def worker() -> None:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if lost.is_set():
                    raise
                lost.set()

    async def lease() -> None:
        await asyncio.sleep(0)
        raise RuntimeError("the lease is lost")

    working = asyncio.create_task(worker())
    with pytest.raises(RuntimeError, match="the lease is lost"):
        await asyncio.wait_for(_first_to_end([working, asyncio.create_task(lease())], 0.01), 5)
    assert lost.is_set()
    assert working.cancelled()
