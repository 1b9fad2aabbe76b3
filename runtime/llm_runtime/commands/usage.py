"""`llm-runtime usage`: who used how much, as a table and a plot, or as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from llm_runtime.commands.database import Config, DatabaseUrl, read

if TYPE_CHECKING:
    from rich.table import Table

    from llm_runtime.db.database import Database
    from llm_runtime.usage.report import Period, Request, Total

PLOT_HEIGHT = 14
MOST_BARS = 20
FRAME_LINES = 3
NARROWEST = 40
WIDEST = 110
WIDEST_TABLE = 1000


class By(StrEnum):
    """What the report groups by."""

    DAY = "day"
    KEY = "key"
    MODEL = "model"


Day = Annotated[
    str,
    typer.Argument(
        metavar="[DAY]", help="today, yesterday or YYYY-MM-DD, in UTC, instead of a month."
    ),
]


def usage(
    day: Day = "",
    by: Annotated[By, typer.Option(help="Sums of each day, key or model.")] = By.DAY,
    month: Annotated[str, typer.Option(help="YYYY-MM, in UTC. Default: this month.")] = "",
    since: Annotated[str, typer.Option(help="First day, instead of a month.")] = "",
    until: Annotated[str, typer.Option(help="Last day. Default: today.")] = "",
    key: Annotated[str, typer.Option(help="Of this key's id only.")] = "",
    latest: Annotated[
        int, typer.Option(min=0, help="Show the key's last requests instead; how many.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    plot: Annotated[bool, typer.Option(help="Draw the tokens below the table.")] = True,
    config: Config = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Show requests and tokens of a month or day, as stored in the database."""
    from llm_runtime.usage import report

    if latest:
        if not key:
            raise typer.BadParameter(
                "the last requests of which key? Add --key ID", param_hint="--latest"
            )
        requests = read(lambda database: report.latest(database, key, latest), config, database_url)
        _print_json(requests) if as_json else _print_requests(key, requests)
        return
    period = _period(day, month, since, until)

    async def ask(database: "Database") -> "list[Total]":
        return await report.totals(database, period, by.value, key)

    totals = read(ask, config, database_url)
    if as_json:
        _print_json(totals)
    elif not totals:
        print(f"No usage, {_named(period)} (UTC).")
    else:
        _print_totals(by, period, totals)
        if plot and len(totals) > 1:
            _plot(by, totals)


def _period(day: str, month: str, since: str, until: str) -> "Period":
    from llm_runtime.usage import report

    if bool(day) + bool(month) + bool(since or until) > 1:
        raise typer.BadParameter(
            "name a day, or a month, or days with --since and --until", param_hint="--month"
        )
    if day:
        return report.Period(_day(day), _day(day))
    today = datetime.now(UTC).date()
    if since or until:
        last = _day(until) if until else today
        return report.Period(_day(since) if since else last.replace(day=1), last)
    try:
        chosen = datetime.strptime(month, "%Y-%m").date() if month else today
    except ValueError:
        raise typer.BadParameter(
            f"{month!r} is no month; write 2026-11", param_hint="--month"
        ) from None
    return report.month(chosen.year, chosen.month)


def _day(text: str) -> date:
    today = datetime.now(UTC).date()
    named = {"today": today, "yesterday": today - timedelta(days=1)}
    try:
        return named.get(text) or date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no day; write today, yesterday or 2026-11-28"
        ) from None


def _named(period: "Period") -> str:
    return f"{period.first}" if period.first == period.last else f"{period.first} to {period.last}"


def _print_json(rows: "Sequence[Total | Request]") -> None:
    print(json.dumps([asdict(row) for row in rows], default=str, indent=2))


def _print_totals(by: By, period: "Period", totals: "list[Total]") -> None:
    from rich.console import Console

    console = Console()
    boundless = console.options.update(width=WIDEST_TABLE)
    table = _table(by, period, totals, narrow=False)
    if console.measure(table, options=boundless).maximum > console.width:
        table = _table(by, period, totals, narrow=True)
    # Nothing is cut: names that are too long even so make long lines.
    console.width = max(console.width, console.measure(table, options=boundless).maximum)
    console.print(table)


def _table(by: By, period: "Period", totals: "list[Total]", *, narrow: bool) -> "Table":
    """Where there is little room: figures are rounded, and a key's id stands below its name."""
    from rich.table import Table

    title = f"Usage by {by.value}, {_named(period)} (UTC); tokens of prompts and answers"
    table = Table(
        title=title, title_justify="left", box=None, pad_edge=False, show_footer=len(totals) > 1
    )
    figure = _brief if narrow else "{:,}".format
    sums = [sum(column) for column in zip(*map(_figures, totals), strict=True)]
    table.add_column(by.value, footer="all", no_wrap=True)
    if by is By.KEY and not narrow:
        table.add_column("name", no_wrap=True)
    for name, total in zip(
        ("requests", "failed", "cached", "prompts", "answers"), sums, strict=True
    ):
        table.add_column(name, footer=figure(total), justify="right", no_wrap=True)
    table.add_column("last", no_wrap=True)
    for total in totals:
        names = (total.group, total.name) if by is By.KEY else (total.group,)
        first = ("\n".join(filter(None, reversed(names))),) if narrow else names
        last = f"{total.last_at:%m-%d}" if narrow else f"{total.last_at:%m-%d %H:%M}"
        table.add_row(*first, *map(figure, _figures(total)), last)
    return table


def _brief(figure: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M")):
        if figure >= size:
            return f"{figure / size:,.1f} {unit}"
    return f"{figure:,}"


def _figures(total: "Total") -> tuple[int, ...]:
    return total.requests, total.failed, total.cached, total.prompt_tokens, total.completion_tokens


def _print_requests(key: str, requests: "list[Request]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Last requests of {key}", title_justify="left", box=None, pad_edge=False)
    for name in ("at (UTC)", "endpoint", "model", "outcome"):
        table.add_column(name, overflow="fold")
    for name in ("prompt", "answer", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("request id", overflow="fold")
    for each in requests:
        model = f"{each.model}:{each.adapter}" if each.adapter else each.model
        figures = (
            f"{each.prompt_tokens:,}",
            f"{each.completion_tokens:,}",
            f"{each.duration_seconds:.2f}",
        )
        table.add_row(
            f"{each.at:%m-%d %H:%M:%S}",
            each.endpoint,
            model,
            each.outcome,
            *figures,
            each.request_id,
        )
    Console().print(table)


def _plot(by: By, totals: "list[Total]") -> None:
    import plotext
    from rich.console import Console

    by_day = by is By.DAY
    shown = totals if by_day else totals[:MOST_BARS][::-1]  # The first bar is drawn at the bottom.
    labels = [total.group[5:] if by_day else (total.name or total.group) for total in shown]
    thousands = [(total.prompt_tokens + total.completion_tokens) / 1000 for total in shown]
    shape = {} if by_day else {"orientation": "horizontal", "fill": False, "width": 0.3}
    figure = plotext.figure
    figure.clear()
    figure.draw(figure.bar(labels, thousands, **shape))
    width = min(max(Console().width, NARROWEST), WIDEST)
    figure.plot_size(width, PLOT_HEIGHT if by_day else len(shown) + FRAME_LINES)
    print(f"\nThousands of tokens by {by.value}")
    # Its colours are made for one background only.
    print(plotext.uncolorize(str(figure.build())))
