"""How long reports take over 1,000,000 requests of 200 keys in 90 days, on both databases.

`.venv/bin/python -m bench.usage_report [ROWS]` makes the rows (about a minute for each database),
prints medians and query plans. Needs PostgreSQL's server programs.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from llm_runtime.db import migrate
from llm_runtime.db.database import Database
from llm_runtime.usage import report

ROOT = Path(__file__).resolve().parent.parent
KEYS = 200
DAYS = 90
MODELS = 2
FIRST = datetime(2026, 9, 1, tzinfo=UTC)
MONTH = report.month(2026, 10)
REPEATS = 21
COLUMNS = (
    "id, at, request_id, key_id, key_name, tier, endpoint, model, model_version, adapter, stream,"
    " cached, choices, prompt_tokens, completion_tokens, finish_reasons, outcome, duration_seconds"
)
SERIES = {
    "postgresql": "generate_series(1::bigint, {rows}) AS series(n)",
    "sqlite": (
        "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {rows}) SELECT n"
        " FROM s)"
    ),
}
ID = {"postgresql": "gen_random_uuid()", "sqlite": "printf('%032x', n)"}
AT = {
    "postgresql": "timestamptz '2026-09-01 00:00:00+00' + n * interval '{step} seconds'",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', '2026-09-01', '+' || (n * {step}) || ' seconds')",
}
DAY = {"postgresql": "(at AT TIME ZONE 'UTC')::date", "sqlite": "date(at)"}


async def fill(database: Database, kind: str, rows: int) -> None:
    """Rows spread evenly, keys and models mixed;
    then the daily sums that the writer would have raised."""
    at = AT[kind].format(step=DAYS * 86400 / rows)
    log = f"""
        INSERT INTO inference_log ({COLUMNS}) SELECT {ID[kind]}, {at}, 'req-' || n, 'key' || (n * 7919 % {KEYS}),
        'team/key' || (n * 7919 % {KEYS}), 'standard', '/v1/chat/completions', 'bot' || (n / {KEYS} % {MODELS}),
        '3', '', true, false, 1, n % 2000, n % 500, 'stop', 'completed', 1.5 FROM {SERIES[kind].format(rows=rows)}"""
    sums = f"""
        INSERT INTO usage_daily SELECT {DAY[kind]}, key_id, model, adapter, key_name, count(*), 0, 0,
        sum(prompt_tokens), sum(completion_tokens), max(at) FROM inference_log GROUP BY 1, 2, 3, 4, 5"""
    async with database.begin() as connection:
        for statement in (log, sums):
            await connection.execute(sa.text(statement))
    async with database.begin() as connection:
        await connection.execute(sa.text("ANALYZE"))


async def median_ms(ask: Callable[[], Awaitable[Any]]) -> float:
    """Median of some repetitions, after one that fills caches."""
    await ask()
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        await ask()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1000


async def measure(url: str, rows: int) -> None:
    """Fill one database, run all reports, and print their times."""
    kind = url.partition(":")[0]
    database = Database(url, statement_seconds=600)
    await migrate.upgrade(database)
    began = time.perf_counter()
    await fill(database, kind, rows)
    found = {table.name: table for table in (await migrate.inspect(database)).tables}
    print(f"\n{kind}: filled in {time.perf_counter() - began:.0f} s")
    for name in ("inference_log", "usage_daily"):
        print(f"  {name}: {found[name].rows:,} rows, {(found[name].bytes or 0) / 1e6:.0f} MB")
    quarter = report.Period(FIRST.date(), (FIRST + timedelta(days=DAYS)).date())
    one_day = report.Period(date(2026, 10, 5), date(2026, 10, 5))
    questions: list[tuple[str, report.Period, report.Grouping, str]] = [
        ("a month by day", MONTH, "day", ""),
        ("a month by key", MONTH, "key", ""),
        ("a month by model", MONTH, "model", ""),
        ("90 days by key", quarter, "key", ""),
        ("a month of one key by day", MONTH, "day", "key7"),
        ("one day by key", one_day, "key", ""),
    ]
    for what, period, by, key in questions:
        took = await median_ms(partial(report.totals, database, period, by, key))
        print(f"  {took:7.1f} ms  {what}: {await plan(database, report._totals(period, by, key))}")
    took = await median_ms(partial(report.latest, database, "key7", 20))
    print(
        f"  {took:7.1f} ms  the last 20 requests of a key:"
        f" {await plan(database, report._latest('key7', 20))}"
    )
    await database.close()


async def plan(database: Database, statement: sa.Select[Any]) -> str:
    """The lines of the query plan that say how a table is read."""
    async with database.read() as connection:
        compiled = statement.compile(
            dialect=connection.dialect, compile_kwargs={"literal_binds": True}
        )
        explain = "EXPLAIN " if database.postgres else "EXPLAIN QUERY PLAN "
        rows = (await connection.exec_driver_sql(explain + str(compiled).replace("%%", "%"))).all()
    lines = [str(row[-1]).strip() for row in rows]
    return "; ".join(
        line.partition("  (")[0]
        for line in lines
        if "Scan" in line or "SEARCH" in line or "SCAN" in line
    )


async def main() -> None:
    """Both databases in turn."""
    sys.path.insert(0, str(ROOT / "tests"))
    from postgres import postgres

    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        await measure(f"sqlite:///{folder}/usage.db", rows)
    with postgres() as server:
        await measure(server.create(), rows)


if __name__ == "__main__":
    asyncio.run(main())
