"""`llm-runtime db`: bring the database's tables to this version, or look at them."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from llm_runtime import errors, settings
from llm_runtime.contract import CONFIG_FLAG, ENV_DATABASE_URL

if TYPE_CHECKING:
    from llm_runtime.db.database import Database
    from llm_runtime.db.migrate import Inspection

T = TypeVar("T")

Config = Annotated[Path | None, typer.Option(CONFIG_FLAG, help="Configuration; of it the database's address counts.")]
DatabaseUrl = Annotated[str | None, typer.Option(help=f"Over {ENV_DATABASE_URL} and the configuration.")]

cli = typer.Typer(help="The database: usage, keys, limits.", no_args_is_help=True)


@cli.command()
def upgrade(config: Config = None, database_url: DatabaseUrl = None) -> None:
    """Make the tables, or bring those of an older version to this one's. May run at any time, any number of times."""
    from llm_runtime.db import migrate

    async def run(database: "Database") -> tuple[str | None, str | None]:
        before = (await migrate.inspect(database)).revision
        await migrate.upgrade(database)
        return before, (await migrate.inspect(database)).revision

    before, after = asked(run, config, database_url)
    print(f"The database is at revision {after}; it was {f'at {before}' if before else 'empty'}.")


@cli.command()
def inspect(config: Config = None, database_url: DatabaseUrl = None) -> None:
    """Show the revision of the tables, their rows and their sizes."""
    from llm_runtime.db import migrate

    _show(asked(migrate.inspect, config, database_url))


def asked(ask: Callable[["Database"], Awaitable[T]], config: Path | None, database_url: str | None) -> T:
    """What `ask` finds out from the configured database. Ends the process with one line when it can't be had."""
    from llm_runtime.db.database import NO_DATABASE, Database, DatabaseAway

    async def run() -> T:
        address = settings.database_url(config) if database_url is None else database_url
        if address == NO_DATABASE:
            raise errors.ConfigInvalid(f"the configuration says that there is no database ({ENV_DATABASE_URL}=none)")
        database = Database(address)
        try:
            return await ask(database)
        except DatabaseAway as away:
            raise errors.ConfigInvalid(f"{database.place} does not answer: {away}") from None
        finally:
            await database.close()

    with _faults_in_one_line():
        return asyncio.run(run())


@contextmanager
def _faults_in_one_line() -> Iterator[None]:
    try:
        yield
    except (errors.ConfigInvalid, settings.SettingsInvalid) as fault:
        print(f"llm-runtime: {fault}", file=sys.stderr)
        raise typer.Exit(1) from None


def _show(found: "Inspection") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=found.place, title_justify="left", box=None, pad_edge=False)
    table.add_column("table")
    table.add_column("rows", justify="right")
    table.add_column("size with indexes", justify="right")
    for each in found.tables:
        table.add_row(each.name, f"{each.rows:,}", "" if each.bytes is None else f"{each.bytes / 1e6:,.1f} MB")
    console = Console()
    console.print(table)
    state = "current" if found.current else f"this program has {found.head}: run `llm-runtime db upgrade`"
    console.print(f"revision {found.revision or 'none'} ({state})", highlight=False)
