"""Retries after transient faults: an unreachable registry, a response body that ended early."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from llm_runtime.errors import Fatal, ModelCorrupt, RegistryUnreachable
from llm_runtime.fetching.part import BadDownload
from llm_runtime.fetching.registry import fatal_of

log = logging.getLogger(__name__)

ATTEMPTS = 5

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Patience:
    """Retries with exponential back-off and jitter.
    `sleep` and `chance` (0 to 1) are arguments for tests."""

    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.random

    def __call__(self, what: str, attempt: Callable[[], Result]) -> Result:
        """Call `attempt` until it succeeds, at most five times.
        Raises a Fatal whose message names `what`."""
        failures = 0
        while True:
            try:
                return attempt()
            except Exception as error:
                failures += 1
                fatal = fatal_of(error, what)
                if failures == ATTEMPTS or not isinstance(
                    fatal, (RegistryUnreachable, BadDownload)
                ):
                    raise _public(fatal) from error
                pause_seconds = 2 ** (failures - 1) * (0.5 + self.chance())
                more = {"what": what, "error": str(fatal), "in_seconds": round(pause_seconds, 1)}
                log.warning("trying again", extra=more)
                self.sleep(pause_seconds)


def _public(fatal: Fatal) -> Fatal:
    # The class name becomes a condition's reason, and BadDownload is not a documented one.
    return ModelCorrupt(str(fatal)) if isinstance(fatal, BadDownload) else fatal
