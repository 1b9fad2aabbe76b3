"""A worker: takes keys off the queue, reconciles, and puts them back for the next look."""

import logging
import random
import time
from collections.abc import Awaitable, Callable

from llm_operator import metrics
from llm_operator.ports.cluster import ApiError
from llm_operator.queue import Lanes, Queue
from llm_operator.reconcile.result import Done, Retry
from llm_operator.state import Key

log = logging.getLogger(__name__)
Handler = Callable[[Key], Awaitable[Done]]


async def work(
    queue: Queue[Key], handle: Handler, resync_seconds: float, lanes: Lanes[Key]
) -> None:
    """Forever: one key of `queue` at a time.
    One that fails comes back with growing delay and holds up no other."""
    while True:
        key = await queue.get()
        started = time.monotonic()
        result = "error"
        try:
            done = await handle(key)
            queue.succeed(key)
            _settle(lanes, key, done, resync_seconds)
            result = "success"
        except (Retry, ApiError) as error:
            result = "retry"
            _again(queue, key, error)
            if isinstance(error, Retry):
                _settle(lanes, key, error.done, resync_seconds)
        except Exception as error:
            log.exception("%s %s/%s: unexpected", key.kind, key.namespace, key.name)
            _again(queue, key, error)
        finally:
            metrics.RECONCILES.labels(key.kind, result).inc()
            metrics.RECONCILE_SECONDS.labels(key.kind).observe(time.monotonic() - started)
            queue.done(key)


def _settle(lanes: Lanes[Key], key: Key, done: Done, resync_seconds: float) -> None:
    for other in done.wake:
        lanes.add(other)
    for other, seconds in done.later:
        lanes.add_after(other, seconds)
    if not done.gone:
        # Spread by a fifth so that a restart's wave does not come back as a wave.
        resync = resync_seconds * random.uniform(0.8, 1.2)
        lanes.add_after(key, min(resync, done.after_seconds or resync))


def _again(queue: Queue[Key], key: Key, error: Exception) -> None:
    metrics.RETRIES.labels(key.kind).inc()
    delay = queue.retry(key)
    failures = queue.failures(key)
    # 1, 4, 16, 64, …: thousands of objects may fail for hours,
    # and their statuses say so all the time.
    logged = failures.bit_count() == 1 and failures.bit_length() % 2 == 1
    level = logging.WARNING if logged else logging.DEBUG
    log.log(level, "%s %s/%s: again in %.1f s: %s", key.kind, key.namespace, key.name, delay, error)
