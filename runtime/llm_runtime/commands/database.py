"""What commands that only need the database share: its address, its tables, and how faults are told."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import yaml

from llm_runtime import errors
from llm_runtime.contract import CONFIG_FLAG, ENV_DATABASE_URL
from llm_runtime.db.database import NO_DATABASE, Database, DatabaseAway
from llm_runtime.db.tables import metadata
from llm_runtime.keystore import KeyStore
from llm_runtime.settings import Environment

T = TypeVar("T")

Url = Annotated[str | None, typer.Option("--database-url", help="The database, over DATABASE_URL.")]
ConfigFile = Annotated[Path | None, typer.Option(CONFIG_FLAG, help="Configuration; only its `database.url` is read.")]


def database_url(configured: str = "") -> str:
    """The address that the environment gives, or else the configured one; "" for the default."""
    return os.environ.get(ENV_DATABASE_URL, "") or configured


@asynccontextmanager
async def prepared(database: Database) -> AsyncIterator[Database]:
    """The database with its tables, closed at the end. One that is away now is left to whoever uses it."""
    try:
        async with database.begin() as connection:
            await connection.run_sync(metadata.create_all)
    except DatabaseAway:
        pass  # `Database` has said so.
    try:
        yield database
    finally:
        await database.close()


def with_store(url: str | None, config: Path | None, work: Callable[[KeyStore], Awaitable[T]]) -> T:
    """Do `work` with the keys of the database. A fault is told in a line and ends the command with status 1."""

    async def run() -> T:
        chosen = url or database_url(_configured(config))
        if chosen == NO_DATABASE:
            raise errors.ConfigInvalid("there is no database: name one with --database-url, or set DATABASE_URL")
        async with prepared(Database(chosen)) as database:
            return await work(KeyStore(database, _pepper()))

    return _told(run())


def _told(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except (errors.Fatal, errors.Refusal, DatabaseAway) as fault:
        what = f"The database does not answer: {fault}" if isinstance(fault, DatabaseAway) else str(fault)
        typer.echo(what, err=True)
        raise typer.Exit(1) from fault


def _configured(config: Path | None) -> str:
    if config is None:
        return ""
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
        return str(((content or {}).get("database") or {}).get("url") or "")
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise errors.ConfigInvalid(f"{config}: can't be read: {error}") from error


def _pepper() -> str | None:
    pepper = Environment(_env_file=".env").key_pepper
    return pepper.get_secret_value() or None if pepper else None
