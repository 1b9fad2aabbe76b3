"""Usage rows for tests, and what a database holds of them."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select

from llm_runtime.contract import DatabaseConfig
from llm_runtime.db import migrate
from llm_runtime.db.database import Database
from llm_runtime.db.tables import inference_log, usage_daily
from llm_runtime.usage import Outcome, UsageRow

AT = datetime(2026, 11, 21, 12, tzinfo=UTC)
QUICK = DatabaseConfig(flush_seconds=0.02)


def row(**fields: Any) -> UsageRow:
    values: dict[str, Any] = {
        "at": AT, "request_id": "r", "key_id": "web", "key_name": "default/web", "tier": "standard", "user_hash": None,
        "endpoint": "/v1/completions", "model": "bot", "model_version": "3", "adapter": "", "stream": False,
        "cached": False, "choices": 1, "prompt_tokens": 7, "completion_tokens": 5, "finish_reasons": ("stop",),
        "outcome": Outcome.COMPLETED, "first_token_seconds": 0.1, "duration_seconds": 0.5,
    }  # fmt: skip
    return UsageRow(**values | fields)


async def empty(url: str) -> Database:
    """A database with all tables."""
    database = Database(url)
    await migrate.upgrade(database)
    return database


async def stored(database: Database) -> list[Any]:
    async with database.read() as connection:
        return list(
            (await connection.execute(select(inference_log).order_by(inference_log.c.id))).all()
        )


async def daily(database: Database) -> list[Any]:
    async with database.read() as connection:
        return list(
            (await connection.execute(select(usage_daily).order_by(*usage_daily.primary_key))).all()
        )


async def counted(database: Database) -> tuple[int, int, int]:
    """Rows; and requests and tokens by the daily sums."""
    sums = (
        func.sum(usage_daily.c.requests),
        func.sum(usage_daily.c.prompt_tokens + usage_daily.c.completion_tokens),
    )
    async with database.read() as connection:
        rows = await connection.scalar(select(func.count()).select_from(inference_log))
        requests, tokens = (await connection.execute(select(*sums))).one()
    return int(rows or 0), int(requests or 0), int(tokens or 0)
