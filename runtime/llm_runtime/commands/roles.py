"""`llm-runtime roles list|set|remove`: tiers in the database, over those of the configuration."""

import json
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from llm_runtime.commands.database import Config, DatabaseUrl, with_store
from llm_runtime.contract import STANDARD_TIER, Tier

if TYPE_CHECKING:
    from llm_runtime.auth.store import KeyStore

cli = typer.Typer(help="Roles of the key holders: what they may use.", no_args_is_help=True)

LIMITS = [name for name in Tier.model_fields if name != "name"]
Name = Annotated[str, typer.Argument(help="The role.")]
Number = Annotated[int | None, typer.Option(min=1)]


@cli.command("list")
def list_roles(
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
    database_url: DatabaseUrl = None,
    config: Config = None,
) -> None:
    """The roles in the database; the configuration may have more."""

    async def work(store: "KeyStore") -> dict[str, Tier]:
        return await store.roles()

    found = with_store(work, config, database_url)
    if as_json:
        typer.echo(json.dumps([tier.model_dump() for tier in found.values()]))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("NAME", *(name.replace("_", " ").upper() for name in LIMITS))
    for tier in found.values():
        values = tier.model_dump()
        table.add_row(
            tier.name, *("-" if values[name] is None else str(values[name]) for name in LIMITS)
        )
    Console().print(table)


@cli.command("set")
def set_role(
    name: Name,
    requests_per_minute: Number = None,
    tokens_per_minute: Number = None,
    requests_per_month: Number = None,
    tokens_per_month: Number = None,
    max_concurrent: Number = STANDARD_TIER.max_concurrent,
    priority: Annotated[int, typer.Option(min=-100, max=100)] = 0,
    database_url: DatabaseUrl = None,
    config: Config = None,
) -> None:
    """Make or replace a role, whole. A limit that is not given limits nothing."""
    try:
        tier = Tier(
            name=name,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            requests_per_month=requests_per_month,
            tokens_per_month=tokens_per_month,
            max_concurrent=max_concurrent,
            priority=priority,
        )
    except ValidationError as error:
        raise typer.BadParameter(
            "letters, digits, dots and dashes, at most 63", param_hint="NAME"
        ) from error
    with_store(lambda store: store.set_role(tier), config, database_url)
    typer.echo(f"The role {name} is set; running servers follow within two seconds.")


@cli.command()
def remove(name: Name, database_url: DatabaseUrl = None, config: Config = None) -> None:
    """Forget a role. Its keys get the configured tier of that name, or the default one."""
    with_store(lambda store: store.remove_role(name), config, database_url)
    typer.echo(f"The role {name} is removed.")
