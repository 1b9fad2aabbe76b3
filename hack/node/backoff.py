"""How long a container waits before its next attempt. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Backoff:
    """The first restart is immediate, then 1, 2, 4 … seconds: the kubelet's shape, but it starts at 10 s."""

    initial_seconds: float = 1.0
    maximum_seconds: float = 60.0
    reset_after_seconds: float = 600.0
    _delay: float | None = field(default=None, init=False)

    def next(self, ran_seconds: float) -> float:
        """The wait after an attempt that ran for so long; a long run makes good for earlier failures."""
        if self._delay is None or ran_seconds >= self.reset_after_seconds:
            self._delay = 0.0
        elif self._delay == 0.0:
            self._delay = self.initial_seconds
        else:
            self._delay = min(self._delay * 2, self.maximum_seconds)
        return self._delay
