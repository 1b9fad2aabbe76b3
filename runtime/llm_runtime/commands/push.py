"""`llm-runtime push`: a local folder becomes a version in MLflow,
and the YAML that serves it is printed."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_runtime import errors, logs
from llm_runtime.commands import faults
from llm_runtime.fetching.progress import MIB, LogProgress, Progress, progress_bar

if TYPE_CHECKING:
    from llm_runtime.commands.publish import Published, Wish
    from llm_runtime.files.package import Package

Folder = Annotated[
    Path, typer.Argument(help="A model (config.json, safetensors, tokenizer) or a LoRA adapter.")
]
Name = Annotated[str, typer.Option(help="Registered model; made when it is not there.")]
Alias = Annotated[
    str,
    typer.Option(help="Let this alias name the version, like champion: what follows it rolls out."),
]
Tag = Annotated[
    list[str] | None, typer.Option(help="A tag of the version, KEY=VALUE; may be repeated.")
]
Uri = Annotated[
    str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="Address of the MLflow server.")
]
Experiment = Annotated[
    str, typer.Option(help="Experiment of the run that holds the files; made when not there.")
]
Base = Annotated[
    str,
    typer.Option(help="An adapter's base, models:/… or hf://…; else as its configuration says."),
]
Force = Annotated[
    bool, typer.Option("--force", help="Make a version even if the registry has these very files.")
]


def push(
    folder: Folder,
    name: Name,
    alias: Alias = "",
    tag: Tag = None,
    tracking_uri: Uri = "",
    experiment: Experiment = "Default",
    base_model: Base = "",
    force: Force = False,
) -> None:
    """Verify a model or adapter folder and upload it to MLflow as a new version."""
    from llm_runtime.commands.publish import Wish, publish
    from llm_runtime.files.package import package

    logs.configure("console", os.environ.get("LOG_LEVEL", "INFO"), sys.stderr)
    with faults("push"):
        if not tracking_uri:
            raise errors.ConfigInvalid(
                "no MLflow server is named: pass --tracking-uri or set MLFLOW_TRACKING_URI"
            )
        wish = Wish(name, alias, _tags(tag or []), experiment, base_model, force)
        found = package(folder)
        if base_model and found.kind == "model":
            raise errors.ConfigInvalid(
                f"{folder} holds a whole model: --base-model is for adapters"
            )
        _say(
            f"{folder}: {found.kind} of {len(found.files)} files, {found.total_bytes / MIB:.1f}"
            " MiB, verified"
        )
        with _progress() as progress:
            published = publish(found, wish, tracking_uri, progress)
    _report(found, wish, published)


@contextmanager
def _progress() -> Iterator[Progress]:
    if not sys.stderr.isatty():
        yield LogProgress("upload")
        return
    with progress_bar("upload") as progress:
        yield progress


def _tags(pairs: list[str]) -> dict[str, str]:
    tags = dict[str, str]()
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise errors.ConfigInvalid(f"the tag {pair!r} is not KEY=VALUE")
        tags[key] = value
    return tags


def _report(package: "Package", wish: "Wish", published: "Published") -> None:
    named = f"{published.name} version {published.version}"
    if published.created:
        _say(f"{named} is registered, {published.digest}")
    else:
        _say(
            f"{named} holds these very files already, so nothing was uploaded (--force makes"
            " another version)"
        )
    if wish.alias:
        _say(f"alias {wish.alias} names version {published.version}")
    typer.echo(
        adapter_yaml(wish, published)
        if package.kind == "adapter"
        else deployment_yaml(wish, published)
    )


def _say(text: str) -> None:
    # Only the YAML goes to standard output, so that it can be piped to kubectl.
    typer.echo(text, err=True)


def deployment_yaml(wish: "Wish", published: "Published") -> str:
    """The YAML to apply so that the model is served."""
    return f"""\
apiVersion: llm-operator.dev/v1alpha1
kind: LLMDeployment
metadata:
  name: {quoted(object_name(published.name))}
spec:
  model:
    mlflow: {_reference(wish, published)}"""


def adapter_yaml(wish: "Wish", published: "Published") -> str:
    """The entry to add to the LLMDeployment of the adapter's base."""
    entry = (
        f"{{name: {quoted(object_name(published.name))}, mlflow: {_reference(wish, published)}}}"
    )
    return f"spec:\n  adapters:\n    - {entry}"


def _reference(wish: "Wish", published: "Published") -> str:
    which = f"alias: {quoted(wish.alias)}" if wish.alias else f"version: {published.version}"
    return f"{{name: {quoted(published.name)}, {which}}}"


def quoted(text: str) -> str:
    """`text` for YAML, unquoted if it can only be read as a string."""
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", text) and text.lower() not in _WORDS
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return text if plain else f'"{escaped}"'


_WORDS = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")


def object_name(name: str) -> str:
    """A valid Kubernetes name for an LLMDeployment."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (plain if plain[:1].isalpha() else f"model-{plain}")[:40].rstrip("-")
