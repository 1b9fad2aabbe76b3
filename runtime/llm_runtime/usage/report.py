"""Usage reports: sums by day, key or model, computed from daily sums only; and the latest
requests of one key."""

from calendar import monthrange
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal

import sqlalchemy as sa

from llm_runtime.db.database import Database
from llm_runtime.db.tables import inference_log, usage_daily

Grouping = Literal["day", "key", "model"]


@dataclass(frozen=True, slots=True)
class Period:
    """A range of UTC days, including the last one."""

    first: date
    last: date


@dataclass(frozen=True, slots=True)
class Total:
    """Usage of one day, key or model."""

    group: str
    """The day as YYYY-MM-DD, the key's id, or the model (with `:adapter` if there is one)."""
    name: str
    """The key's name; "" for days and models."""
    requests: int
    failed: int
    cached: int
    """Requests answered from the completion cache. Their tokens are included in the sums."""
    prompt_tokens: int
    completion_tokens: int
    last_at: datetime


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a key."""

    at: datetime
    request_id: str
    endpoint: str
    model: str
    adapter: str
    prompt_tokens: int
    completion_tokens: int
    outcome: str
    duration_seconds: float


def month(year: int, number: int) -> Period:
    """A whole month; January is 1."""
    return Period(date(year, number, 1), date(year, number, monthrange(year, number)[1]))


async def totals(database: Database, period: Period, by: Grouping, key_id: str = "") -> list[Total]:
    """Sums of `period`, for one key or all. Days are in order;
    keys and models with most tokens come first.

    Raises `DatabaseAway`.
    """
    async with database.read() as connection:
        rows = (await connection.execute(_totals(period, by, key_id))).all()
    return [_total(*row) for row in rows]


async def latest(database: Database, key_id: str, limit: int = 20) -> list[Request]:
    """The last requests of one key, newest first. Raises `DatabaseAway`."""
    async with database.read() as connection:
        return [Request(*row) for row in (await connection.execute(_latest(key_id, limit))).all()]


def _total(group: object, name: str, *figures: Any) -> Total:
    requests, failed, cached, prompt_tokens, completion_tokens = map(
        int, figures[:5]
    )  # Postgres sums to decimals.
    return Total(
        str(group), name, requests, failed, cached, prompt_tokens, completion_tokens, figures[5]
    )


def _totals(period: Period, by: Grouping, key_id: str) -> sa.Select[tuple[Any, ...]]:
    columns = usage_daily.c
    tokens = sa.func.sum(columns.prompt_tokens + columns.completion_tokens)
    named = sa.case(
        (columns.adapter == "", columns.model), else_=columns.model + ":" + columns.adapter
    )
    group = {"day": columns.day, "key": columns.key_id, "model": named}[by]
    sums = [
        sa.func.sum(columns[name])
        for name in ("requests", "failed", "cached", "prompt_tokens", "completion_tokens")
    ]
    # One name for each key, even if it was renamed.
    name = sa.func.max(columns.key_name) if by == "key" else sa.literal("")
    statement: sa.Select[tuple[Any, ...]] = (
        sa.select(
            group.label("grouped"),
            name,
            *sums,
            sa.func.max(columns.last_at, type_=columns.last_at.type),
        )
        .where(columns.day.between(period.first, period.last))
        .group_by(sa.literal_column("grouped"))
        .order_by(sa.literal_column("grouped") if by == "day" else tokens.desc())
    )
    return statement.where(columns.key_id == key_id) if key_id else statement


def _latest(key_id: str, limit: int) -> sa.Select[tuple[Any, ...]]:
    names = (
        "at",
        "request_id",
        "endpoint",
        "model",
        "adapter",
        "prompt_tokens",
        "completion_tokens",
        "outcome",
    )
    columns = inference_log.c
    return (
        sa.select(*(columns[name] for name in names), columns.duration_seconds)
        .where(columns.key_id == key_id)
        .order_by(columns.at.desc())
        .limit(limit)
    )
