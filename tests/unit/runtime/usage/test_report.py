"""Reports: sums over the daily sums, and which index they use."""

from datetime import date, timedelta

import pytest
from sqlalchemy import text

from llm_runtime.metrics import Metrics
from llm_runtime.usage import Outcome, report
from llm_runtime.usage.writer import DatabaseUsage
from usage_rows import AT, QUICK, empty, row

NOVEMBER = report.month(2026, 11)


def test_a_month_ends_with_its_last_day() -> None:
    assert report.month(2028, 2) == report.Period(date(2028, 2, 1), date(2028, 2, 29))


async def test_sums_by_day_key_and_model(database_url: str) -> None:
    database = await empty(database_url)
    async with DatabaseUsage(database, QUICK, Metrics()) as usage:
        usage.write(row(at=AT - timedelta(days=30)))
        usage.write(row(outcome=Outcome.FAILED))
        usage.write(row(key_id="ci", adapter="legal", prompt_tokens=100))
        usage.write(row(at=AT + timedelta(days=1), key_name="default/renamed"))
    by_day = await report.totals(database, NOVEMBER, "day")
    assert [(day.group, day.requests, day.failed) for day in by_day] == [
        ("2026-11-21", 2, 1),
        ("2026-11-22", 1, 0),
    ]
    by_key = await report.totals(database, NOVEMBER, "key")
    assert [(key.group, key.name, key.prompt_tokens) for key in by_key] == [
        ("ci", "default/web", 100), ("web", "default/web", 14)
    ]  # fmt: skip
    assert by_key[1].last_at == AT + timedelta(days=1)
    assert [model.group for model in await report.totals(database, NOVEMBER, "model")] == [
        "bot:legal",
        "bot",
    ]
    assert [day.requests for day in await report.totals(database, NOVEMBER, "day", "ci")] == [1]
    await database.close()


async def test_the_latest_requests_of_a_key_are_read_from_its_index(database_url: str) -> None:
    database = await empty(database_url)
    async with DatabaseUsage(database, QUICK, Metrics()) as usage:
        for number in range(2000):
            usage.write(
                row(
                    at=AT + timedelta(seconds=number),
                    key_id=f"k{number % 100}",
                    request_id=str(number),
                )
            )
    found = await report.latest(database, "k7", 2)
    assert [request.request_id for request in found] == ["1907", "1807"]
    async with database.begin() as connection:
        await connection.execute(text("ANALYZE"))
        plan = "EXPLAIN " if database.postgres else "EXPLAIN QUERY PLAN "
        query = "SELECT * FROM inference_log WHERE key_id = 'k7' ORDER BY at DESC LIMIT 2"
        lines = (await connection.execute(text(plan + query))).all()
    assert "ix_inference_log_key_id_at" in str(lines)
    await database.close()


@pytest.mark.parametrize("grouping", ["day", "key", "model"])
async def test_a_month_without_usage_has_no_sums(
    database_url: str, grouping: report.Grouping
) -> None:
    database = await empty(database_url)
    assert await report.totals(database, NOVEMBER, grouping) == []
    await database.close()
