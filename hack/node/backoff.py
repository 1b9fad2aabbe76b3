"""How long a container waits before its next attempt. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Backoff:
    """Exponential back-off: the first restart is immediate, then after 1, 2, 4 … s.
    The kubelet begins with 10 s."""

    initial_seconds: float = 1.0
    maximum_seconds: float = 60.0
    reset_after_seconds: float = 600.0
    _delay: float | None = field(default=None, init=False)

    def next(self, ran_seconds: float) -> float:
        """The pause after an attempt that ran for `ran_seconds`. A long run resets the back-off."""
        if self._delay is None or ran_seconds >= self.reset_after_seconds:
            self._delay = 0.0
        elif self._delay == 0.0:
            self._delay = self.initial_seconds
        else:
            self._delay = min(self._delay * 2, self.maximum_seconds)
        return self._delay
