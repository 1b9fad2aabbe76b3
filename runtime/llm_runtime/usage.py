"""What a request used: one row for each admitted request, whichever way it ended. Never a prompt, never a key."""

import logging
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Protocol

log = logging.getLogger(__name__)


class Outcome(StrEnum):
    """How a request ended, as its client saw it."""

    COMPLETED = "completed"
    DISCONNECTED = "disconnected"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    """Cut by a shutdown."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class UsageRow:
    """The account of one request. Durations are in seconds, from admission on."""

    request_id: str
    key_id: str
    key_name: str
    user_hash: str | None
    """Tells the `user`s of one key apart without storing whom the client named."""
    endpoint: str
    model: str
    model_version: str
    stream: bool
    choices: int
    prompt_tokens: int
    completion_tokens: int
    finish_reasons: tuple[str, ...]
    """Of the choices that came to their end."""
    outcome: Outcome
    first_token_seconds: float | None
    duration_seconds: float


class UsageLog(Protocol):
    """Where rows go."""

    def write(self, row: UsageRow) -> None:
        """Take a row at once; must neither block nor raise."""
        ...


class LoggedUsage:
    """Rows as log lines, for whoever collects logs."""

    def write(self, row: UsageRow) -> None:
        log.info("usage", extra=asdict(row))
