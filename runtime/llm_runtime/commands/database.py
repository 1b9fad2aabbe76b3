"""What the commands share that need only the database: finding its address, and reporting
faults."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from llm_runtime import errors, settings
from llm_runtime.contract import CONFIG_FLAG, ENV_DATABASE_URL

if TYPE_CHECKING:
    from llm_runtime.auth.store import KeyStore
    from llm_runtime.db.database import Database

T = TypeVar("T")

Config = Annotated[
    Path | None,
    typer.Option(CONFIG_FLAG, help="Configuration; of it the database's address counts."),
]
DatabaseUrl = Annotated[
    str | None, typer.Option(help=f"Over {ENV_DATABASE_URL} and the configuration.")
]

MAKE_IT = (
    "check its address, or run `llm-runtime db upgrade` with it (a server does so at its start)"
)


def asked(
    ask: "Callable[[Database], Awaitable[T]]",
    config: Path | None,
    database_url: str | None,
    *,
    make: bool = False,
) -> T:
    """Return the result of `ask` on the configured database.
    A fault ends the command with one line and status 1.

    Without `make`, a missing SQLite file is a fault, too.
    """
    from llm_runtime.db.database import NO_DATABASE, Database, DatabaseAway, is_there, place_of

    async def run() -> T:
        address = settings.storage(config).url if database_url is None else database_url
        if address == NO_DATABASE:
            raise errors.ConfigInvalid(
                f"there is no database: name one with --database-url or {ENV_DATABASE_URL}"
            )
        if not make and not is_there(address):
            raise errors.ConfigInvalid(f"there is no {place_of(address)}: {MAKE_IT}")
        database = Database(address)
        try:
            return await ask(database)
        except DatabaseAway as away:
            raise errors.ConfigInvalid(f"{database.place} does not answer: {away}") from None
        finally:
            await database.close()

    try:
        return asyncio.run(run())
    except (errors.Fatal, errors.Refusal, settings.SettingsInvalid) as fault:
        typer.echo(f"llm-runtime: {fault}", err=True)
        raise typer.Exit(1) from None


def read(
    ask: "Callable[[Database], Awaitable[T]]", config: Path | None, database_url: str | None
) -> T:
    """Return the result of `ask`, as `asked` does, on a database whose tables exist. A read-only
    command must not create any, least of all in a wrong place."""
    from llm_runtime.db import migrate

    async def checked(database: "Database") -> T:
        if why := await migrate.outdated(database):
            raise errors.ConfigInvalid(f"{database.place} {why}: {MAKE_IT}")
        return await ask(database)

    return asked(checked, config, database_url)


def with_store(
    work: "Callable[[KeyStore], Awaitable[T]]", config: Path | None, database_url: str | None
) -> T:
    """Do `work` with the keys of the configured database. Creates the tables if needed."""
    from llm_runtime.auth.store import KeyStore
    from llm_runtime.db import migrate

    async def ask(database: "Database") -> T:
        await migrate.upgrade(database)
        return await work(KeyStore(database, settings.storage(config).key_pepper))

    return asked(ask, config, database_url, make=True)
