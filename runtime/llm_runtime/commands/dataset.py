"""`llm-runtime dataset`: an evaluation dataset in MLflow,
of what clients have asked and were answered."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_runtime import errors, logs, settings
from llm_runtime.commands import faults
from llm_runtime.commands.database import DatabaseUrl, read
from llm_runtime.contract import CONFIG_FLAG, FilterPattern

if TYPE_CHECKING:
    from llm_runtime.commands.recorded import Chosen
    from llm_runtime.db.database import Database

Name = Annotated[
    str, typer.Argument(help="The dataset; made when it is not there, else what is new is added.")
]
Model = Annotated[str, typer.Option(help="Of which model's requests.")]
Version = Annotated[
    str, typer.Option(help="Of which version's answers, as the stable one's. Not said: of all.")
]
Since = Annotated[
    datetime | None,
    typer.Option(formats=["%Y-%m-%d"], help="First day, in UTC. Not said: all days."),
]
Limit = Annotated[int, typer.Option(min=1, max=20_000, help="Most records; the newest are taken.")]
Uri = Annotated[
    str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="Address of the MLflow server.")
]
Config = Annotated[
    Path | None,
    typer.Option(
        CONFIG_FLAG, help="Configuration; of it the database and the filters' patterns count."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only say how many records there would be.")
]


def dataset(
    name: Name,
    model: Model,
    version: Version = "",
    since: Since = None,
    limit: Limit = 500,
    tracking_uri: Uri = "",
    config: Config = None,
    database_url: DatabaseUrl = None,
    dry_run: DryRun = False,
) -> None:
    """Make an evaluation dataset of stored prompts, without those that hold personal data."""
    from llm_runtime.commands import recorded
    from llm_runtime.filters.finder import Finder

    logs.configure("console", os.environ.get("LOG_LEVEL", "INFO"), sys.stderr)
    with faults("dataset"):
        if not tracking_uri and not dry_run:
            raise errors.ConfigInvalid(
                "no MLflow server is named: pass --tracking-uri or set MLFLOW_TRACKING_URI"
            )
        finder = Finder(_patterns(config))
    day = since.replace(tzinfo=UTC) if since else None

    async def ask(database: "Database") -> "Chosen":
        return await recorded.choose(
            database, finder, model, version=version, since=day, limit=limit
        )

    chosen = read(ask, config, database_url)
    with faults("dataset"):
        _say(
            f"{len(chosen.records)} records of {chosen.looked_at} stored requests; left out:"
            f" {chosen.left_out}"
        )
        if not chosen.records:
            raise errors.ConfigInvalid(
                f"there is nothing to make a dataset of: are prompts of {model} stored"
                " (database.storePrompts)?"
            )
        if not dry_run:
            _say(f"dataset {name}: {recorded.publish(chosen.records, name, tracking_uri)}")


def _patterns(config: Path | None) -> tuple[FilterPattern, ...]:
    try:
        return settings.load(config).config.server.filters.patterns if config else ()
    except settings.SettingsInvalid as fault:
        raise errors.ConfigInvalid(str(fault)) from None


def _say(text: str) -> None:
    typer.echo(text)
