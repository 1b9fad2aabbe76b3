"""What a request used: one row for each admitted request, whichever way it ended. Never a key."""

import logging
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Protocol

log = logging.getLogger(__name__)


class Outcome(StrEnum):
    """How a request ended, as its client saw it."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    """The client left before the end."""
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    """Cut by a shutdown."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class UsageRow:
    """The account of one request. Durations are in seconds, from admission on."""

    at: datetime
    """When it ended."""
    request_id: str
    key_id: str
    key_name: str
    tier: str
    user_hash: str | None
    """Tells the `user`s of one key apart without storing whom the client named."""
    endpoint: str
    model: str
    model_version: str
    adapter: str
    stream: bool
    cached: bool
    """Answered from the completion cache, which costs no tokens of any limit."""
    choices: int
    prompt_tokens: int
    completion_tokens: int
    finish_reasons: tuple[str, ...]
    """Of the choices that came to their end."""
    outcome: Outcome
    first_token_seconds: float | None
    duration_seconds: float
    prompt: str | None = None
    """Only where the configuration asks for it, as `completion`."""
    completion: str | None = None


class UsageLog(Protocol):
    """Where rows go."""

    def write(self, row: UsageRow) -> None:
        """Take a row at once; must neither block nor raise."""
        ...


class LoggedUsage:
    """Rows as log lines, for whoever collects logs. Texts are for the database, and never in a log."""

    def write(self, row: UsageRow) -> None:
        log.info("usage", extra={name: getattr(row, name) for name in _LOGGED})


_LOGGED = tuple(field.name for field in fields(UsageRow) if field.name not in ("prompt", "completion"))
