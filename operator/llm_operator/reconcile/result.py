"""What a reconcile answers, and how often it looks by itself."""

from dataclasses import dataclass

from llm_operator.state import Key


@dataclass(frozen=True)
class Pace:
    """Seconds between looks that no event asked for."""

    verify_seconds: float
    settle_seconds: float


@dataclass(frozen=True)
class Done:
    """Finished: look again after `after_seconds` at the latest, let others look now or later."""

    after_seconds: float | None = None
    wake: tuple[Key, ...] = ()
    later: tuple[tuple[Key, float], ...] = ()
    gone: bool = False
    """The object is no more: no resync."""


class Retry(Exception):
    """The state is reported, but the work is not done: again with back-off.
    What `done` asks for is done besides."""

    def __init__(self, message: str, done: Done | None = None) -> None:
        super().__init__(message)
        self.done = done or Done()
