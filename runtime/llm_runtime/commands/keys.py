"""`llm-runtime keys create|list|revoke|rotate`:
keys in the database, which running servers follow."""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from llm_runtime.commands.database import Config, DatabaseUrl, with_store
from llm_runtime.contract import STANDARD_TIER, Limits

if TYPE_CHECKING:
    from llm_runtime.auth.store import Issued, KeyStore, StoredKey

cli = typer.Typer(help="API keys in the database.", no_args_is_help=True)

UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


@cli.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    owner: Annotated[str, typer.Option(help="Who holds it.")] = "",
    role: Annotated[str, typer.Option(help="Its tier; none: the default one.")] = "",
    expires: Annotated[
        str | None, typer.Option(help="Its end: 90d, 12h, or a date like 2027-01-31.")
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="An adapter that it may use; none: all. Repeatable.")
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="A limit of its own: tokens-per-minute=1000. Repeatable."),
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="It may manage models and keys.")] = False,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
    config: Config = None,
) -> None:
    """Make a key and print it: the only time that it is seen."""
    # Here, as the database's libraries would keep `serve` waiting, which is one of these commands.
    from llm_runtime.auth.store import NewKey

    if not 0 < len(name) <= 200:
        raise typer.BadParameter("must have 1 to 200 characters", param_hint="NAME")
    end = _end(expires, datetime.now(UTC)) if expires else None
    wish = NewKey(name, owner, role, _limits(limit or []), tuple(adapter or ()), admin, end)

    async def work(store: "KeyStore") -> "tuple[Issued, bool]":
        return await store.create(wish), role in {"", STANDARD_TIER.name, *await store.roles()}

    issued, known = with_store(work, config, database_url)
    if not known:
        typer.echo(
            f"The database has no role {role!r}: unless the configuration has one, the default tier"
            " counts.",
            err=True,
        )
    _show_once(issued, as_json)


@cli.command("list")
def list_keys(
    as_json: Json = False, database_url: DatabaseUrl = None, config: Config = None
) -> None:
    """All keys: who holds them, their state, their limits."""

    async def work(store: "KeyStore") -> "list[StoredKey]":
        return await store.stored()

    found = [_described(key, datetime.now(UTC)) for key in with_store(work, config, database_url)]
    if as_json:
        typer.echo(json.dumps(found))
        return
    if not found:
        typer.echo("No keys yet: `llm-runtime keys create NAME` makes one.")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("ID", "NAME", "OWNER", "ROLE", "STATE", "EXPIRES", "LIMITS", "ADAPTERS")
    for key in found:
        limits = " ".join(f"{name}={value}" for name, value in key["limits"].items())
        cells = (
            key["id"],
            key["name"],
            key["owner"],
            key["role"],
            key["state"],
            key["expires_at"] or "",
            limits,
        )
        table.add_row(*cells, " ".join(key["adapters"]) or "all")
    Console().print(table)


@cli.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Its id: see `keys list`.")],
    database_url: DatabaseUrl = None,
    config: Config = None,
) -> None:
    """End a key for good, within two seconds everywhere."""
    with_store(lambda store: store.revoke(_id(key_id)), config, database_url)
    typer.echo(f"The key {_id(key_id)} is revoked.")


@cli.command()
def rotate(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Its id: see `keys list`.")],
    overlap_hours: Annotated[
        float, typer.Option(min=0, max=24 * 365, help="How long the old key still works.")
    ] = 24,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
    config: Config = None,
) -> None:
    """Make a new key like an old one, print it, and let the old one end."""
    overlap = timedelta(hours=overlap_hours)
    issued = with_store(lambda store: store.rotate(_id(key_id), overlap), config, database_url)
    typer.echo(
        f"The old key {_id(key_id)} works for {overlap_hours:g} more hours at most.", err=True
    )
    _show_once(issued, as_json)


def _show_once(issued: "Issued", as_json: bool) -> None:
    """Print only the key to standard output, so that a script can read it."""
    if as_json:
        wish = issued.wish
        end = issued.wish.expires_at
        shown = {"api_key": issued.key, "id": issued.id, "name": wish.name, "role": wish.role}
        typer.echo(json.dumps({**shown, "expires_at": end.isoformat() if end else None}))
        return
    typer.echo(f"The key {issued.id} for {issued.wish.name}. It is shown this once only:", err=True)
    typer.echo(issued.key)


def _described(key: "StoredKey", now: datetime) -> dict[str, Any]:
    record = key.record
    return {
        "id": record.id,
        "name": record.name,
        "owner": record.owner,
        "role": record.tier,
        "state": _state(key, now),
        "created_at": key.created_at.isoformat(),
        "expires_at": record.expires_at.isoformat() if record.expires_at else None,
        "replaced_by": key.replaced_by,
        "limits": record.limits.model_dump(exclude_none=True),
        "adapters": list(record.adapters),
        "admin": record.admin,
    }


def _state(key: "StoredKey", now: datetime) -> str:
    end = key.record.expires_at
    if key.revoked_at:
        return "revoked"
    if key.record.suspended:
        return "invalid"
    if end and end <= now:
        return "expired"
    return "rotated" if key.replaced_by else "admin" if key.record.admin else "active"


def _id(text: str) -> str:
    """The id in `text`, which may also be the beginning of a key, `llmk_<id>`."""
    return text.removeprefix("llmk_").partition("_")[0]


def _end(text: str, now: datetime) -> datetime:
    if found := re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", text):
        return now + int(found[1]) * UNITS[found[2]]
    try:
        end = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(
            "write 90d, 12h, 30m or a date like 2027-01-31", param_hint="--expires"
        ) from error
    end = end if end.tzinfo else end.replace(tzinfo=UTC)
    if end <= now:
        raise typer.BadParameter("lies in the past", param_hint="--expires")
    return end


def _limits(texts: list[str]) -> Limits:
    wished: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        wished[name.replace("-", "_")] = value
    names = ", ".join(name.replace("_", "-") for name in Limits.model_fields)
    if unknown := wished.keys() - Limits.model_fields.keys():
        raise typer.BadParameter(f"{min(unknown)} is none; there are {names}", param_hint="--limit")
    try:
        return Limits.model_validate(wished)
    except ValidationError as error:
        field = str(error.errors()[0]["loc"][0]).replace("_", "-")
        raise typer.BadParameter(
            f"{field}: {error.errors()[0]['msg']}", param_hint="--limit"
        ) from error
