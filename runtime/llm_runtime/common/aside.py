"""Runs work beside the event loop that all clients share, so that it does not block it."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="aside")
"""Few threads: this work holds Python's lock, so more would gain nothing.
Slots already bound each caller's share."""


async def aside(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in a thread and return its result. A cancelled caller does not stop it."""
    call = partial(copy_context().run, work, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_threads, call)


def in_thread(work: Callable[[], T]) -> Callable[[], Awaitable[T]]:
    """`work` on a thread of its own, as something to await: for what takes minutes, like a model.

    Not `asyncio.to_thread`: its threads are joined at exit,
    and SIGTERM must not wait for a model to be fetched.
    """

    async def done() -> T:
        loop = asyncio.get_running_loop()
        result = asyncio.Future[T]()

        def run() -> None:
            try:
                settle = partial(_settle, result, work())
            except Exception as error:
                settle = partial(_settle, result, None, error)
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle)

        threading.Thread(target=run, name="load", daemon=True).start()
        return await result

    return done


def _settle(result: asyncio.Future[Any], value: Any, fault: Exception | None = None) -> None:
    if result.cancelled():
        return
    if fault:
        result.set_exception(fault)
    else:
        result.set_result(value)
