"""Usage rows: one for each admitted request, however it ended. They never contain a key."""

import logging
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Protocol

log = logging.getLogger(__name__)


class Outcome(StrEnum):
    """How a request ended, from its client's view."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    """The client disconnected before the end."""
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    """Ended by a shutdown."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Usage of one request. Durations are in seconds since admission."""

    at: datetime
    """The time at which the request ended."""
    request_id: str
    key_id: str
    key_name: str
    tier: str
    user_hash: str | None
    """Distinguishes the `user`s of one key without storing their names."""
    endpoint: str
    model: str
    model_version: str
    adapter: str
    stream: bool
    cached: bool
    """Whether it was answered from the completion cache, which costs no tokens of any limit."""
    choices: int
    prompt_tokens: int
    completion_tokens: int
    finish_reasons: tuple[str, ...]
    """Finish reasons of the choices that ended."""
    outcome: Outcome
    first_token_seconds: float | None
    duration_seconds: float
    prompt: str | None = None
    """Stored only if configured, as is `completion`."""
    completion: str | None = None


class UsageLog(Protocol):
    """Where rows are written."""

    def write(self, row: UsageRow) -> None:
        """Accept a row. Must neither block nor raise."""
        ...


class LoggedUsage:
    """Writes rows as log lines.
    Prompts and completions are stored only in the database, never in a log."""

    def write(self, row: UsageRow) -> None:
        log.info("usage", extra={name: getattr(row, name) for name in _LOGGED})


_LOGGED = tuple(
    field.name for field in fields(UsageRow) if field.name not in ("prompt", "completion")
)
