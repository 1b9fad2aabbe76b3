"""How a caller stands with its limits: for `x-ratelimit-*` headers and for `/v1/key`."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LimitStanding:
    """One limit at one moment."""

    limit: int
    remaining: int
    reset_seconds: float
    """Seconds until the whole limit is there again: a minute's limit comes back bit by bit, a
    month's at once."""


@dataclass(frozen=True, slots=True)
class Standing:
    """All limits of one caller at one moment. None: there is no such limit."""

    requests_per_minute: LimitStanding | None = None
    tokens_per_minute: LimitStanding | None = None
    requests_per_month: LimitStanding | None = None
    tokens_per_month: LimitStanding | None = None
    max_concurrent: int | None = None
    running: int = 0
    waiting: int = 0
    """Requests that wait for one of the concurrent places."""

    def headers(self) -> dict[str, str]:
        """OpenAI's headers. They have room for one limit on requests and one on tokens:
        the one with less remaining."""
        headers: dict[str, str] = {}
        _add(headers, "requests", self.requests_per_minute, self.requests_per_month)
        _add(headers, "tokens", self.tokens_per_minute, self.tokens_per_month)
        return headers


def _add(
    headers: dict[str, str], unit: str, minute: LimitStanding | None, month: LimitStanding | None
) -> None:
    tighter = minute
    if month and (minute is None or month.remaining < minute.remaining):
        tighter = month
    if tighter:
        headers[f"x-ratelimit-limit-{unit}"] = str(tighter.limit)
        headers[f"x-ratelimit-remaining-{unit}"] = str(tighter.remaining)
        headers[f"x-ratelimit-reset-{unit}"] = duration(tighter.reset_seconds)


def duration(seconds: float) -> str:
    """As OpenAI writes it: `20ms`, `1.5s`, `6m0s`, `1h30m0s`; rounded up to a millisecond."""
    milliseconds = math.ceil(round(seconds * 1000, 3))
    if milliseconds <= 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60}m{text}"
    return f"{minutes}m{text}" if minutes else text
