"""`llm-runtime db`: bring the database's tables to this version, or look at them."""

from typing import TYPE_CHECKING

import typer

from llm_runtime.commands.database import Config, DatabaseUrl, asked

if TYPE_CHECKING:
    from llm_runtime.db.database import Database
    from llm_runtime.db.migrate import Inspection

cli = typer.Typer(help="The database: usage, keys, limits.", no_args_is_help=True)


@cli.command()
def upgrade(config: Config = None, database_url: DatabaseUrl = None) -> None:
    """Make the tables, or bring those of an older version to this one's.
    May run at any time, any number of times."""
    from llm_runtime.db import migrate

    async def run(database: "Database") -> tuple[str | None, str | None]:
        before = (await migrate.inspect(database)).revision
        await migrate.upgrade(database)
        return before, (await migrate.inspect(database)).revision

    before, after = asked(run, config, database_url, make=True)
    print(f"The database is at revision {after}; it was {f'at {before}' if before else 'empty'}.")


@cli.command()
def inspect(config: Config = None, database_url: DatabaseUrl = None) -> None:
    """Show the revision of the tables, their rows and their sizes."""
    from llm_runtime.db import migrate

    _show(asked(migrate.inspect, config, database_url))


def _show(found: "Inspection") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=found.place, title_justify="left", box=None, pad_edge=False)
    table.add_column("table")
    table.add_column("rows", justify="right")
    table.add_column("size with indexes", justify="right")
    for each in found.tables:
        table.add_row(
            each.name, f"{each.rows:,}", "" if each.bytes is None else f"{each.bytes / 1e6:,.1f} MB"
        )
    console = Console()
    console.print(table)
    state = (
        "current"
        if found.current
        else f"this program has {found.head}: run `llm-runtime db upgrade`"
    )
    console.print(f"revision {found.revision or 'none'} ({state})", highlight=False)
