"""How long the steps of a start take: the log names those that take over a second."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SLOW_SECONDS = 1.0


class Steps:
    """Adds up the seconds of named steps. A step may run several times."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = {}
        """By name, in the order in which they first ran."""

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """The block is `name`, also when it raises."""
        began = self._clock()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._clock() - began

    def slow(self) -> dict[str, float]:
        """The steps that took over a second, rounded."""
        return {
            name: round(seconds, 1)
            for name, seconds in self.seconds.items()
            if seconds > SLOW_SECONDS
        }
