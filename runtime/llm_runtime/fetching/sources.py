"""Resolves `model.uri` to immutable files, and to the registry that has them.

An alias, a stage or a branch is resolved here, once.
The result names a version, a run, a commit or a folder.
"""

import hashlib
import importlib.util
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from llm_runtime.contract import ENV_MLFLOW_WORKSPACE, MODEL_FOLDER, MlflowVersion
from llm_runtime.errors import ConfigInvalid, ModelNotFound
from llm_runtime.fetching.hub import Hub
from llm_runtime.fetching.registry import Files, MlflowRegistry, fatal_of
from llm_runtime.fetching.versions import claim
from llm_runtime.files.verify import read_manifest

log = logging.getLogger(__name__)

FORMS = (
    "models:/name/3, models:/name@alias, models:/name/Stage, models:/m-…, runs:/…,"
    " mlflow-artifacts:/…, s3://, gs://, abfss://, hf://org/name@revision or file:///folder"
)
CLIENTS = {"s3": "boto3", "gs": "google.cloud.storage", "abfss": "azure.storage.filedatalake"}
"""Modules that MLflow's client needs to access an object store directly, by URI scheme."""
EXTRAS = {"s3": "s3", "gs": "gcs", "abfss": "azure"}
"""Extras of this package that install them."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """Files at one place that is not a registered version."""

    name: str
    """A readable name, for logs and the folder's name."""
    location: str
    server: str = ""
    """The MLflow server that has them, if any."""
    sub_path: str = ""
    """Folder of the model among them, needed if there are several candidates."""


@dataclass(frozen=True, slots=True)
class Reference:
    """`model.uri`, with what is needed to resolve it."""

    uri: str
    tracking_uri: str = ""
    """The MLflow server, for the schemes that need one."""
    sub_path: str = ""
    """`model.subPath`."""
    hub_token: str = field(default="", repr=False)
    """Token for `hf://`; "" means HF_TOKEN of the environment."""


def files_of(reference: Reference) -> Files:
    """The registry or hub with the files of `reference`.
    Sends no request. Raises ConfigInvalid for an unknown form."""
    uri = reference.uri
    scheme = urlparse(reference.uri).scheme
    if scheme == "hf":
        return Hub(reference.hub_token)
    if scheme in CLIENTS:
        _need_client(scheme)
    elif scheme not in ("models", "runs", "mlflow-artifacts"):
        raise ConfigInvalid(f"model.uri {uri!r} is not one of {FORMS}")
    elif not reference.tracking_uri:
        raise ConfigInvalid(
            f"model.uri {uri!r} needs an MLflow server: set model.trackingUri or"
            " MLFLOW_TRACKING_URI"
        )
    return MlflowRegistry(reference.tracking_uri)


def find(
    reference: Reference, patience: Callable[[str, Callable[[], str]], str]
) -> MlflowVersion | Pinned:
    """Resolve `reference`.
    Asks the registry, with retries by `patience`, only if the reference may change.

    Raises a Fatal.
    """
    uri = reference.uri
    server = reference.tracking_uri
    sub_path = reference.sub_path
    scheme = urlparse(uri).scheme
    if scheme == "hf":
        repository = Hub.repository(uri)
        commit = patience(f"resolving {uri}", lambda: Hub(reference.hub_token).commit(uri))
        log.info("model resolved", extra={"uri": uri, "commit": commit})
        name = f"{repository.rpartition('/')[2]}-{commit[:12]}"
        return Pinned(name, f"hf://{repository}@{commit}", sub_path=sub_path)
    if scheme in CLIENTS:
        return Pinned(_last(uri), uri, sub_path=sub_path)
    if scheme != "models" or re.fullmatch(r"models:/m-[0-9a-f]+", uri):
        return Pinned(_last(uri), uri, server, sub_path)
    match = re.fullmatch(
        r"models:/+(?P<name>[^/@]+)(?:/(?P<version>\d+)|/(?P<stage>[^/@]+)|@(?P<alias>[^/@]+))", uri
    )
    if match is None:
        raise ConfigInvalid(f"model.uri {uri!r} is not one of {FORMS}")
    name = match["name"]
    version = match["version"]
    if version is None:
        version = patience(
            f"resolving {uri}", lambda: _resolved(server, name, match["stage"], match["alias"])
        )
        log.info("model resolved", extra={"uri": uri, "model": name, "version": version})
    return MlflowVersion(tracking_uri=server, name=name, version=version, sub_path=sub_path)


def _resolved(tracking_uri: str, name: str, stage: str | None, alias: str | None) -> str:
    registry = MlflowRegistry(tracking_uri)
    what = f"alias {alias} of model {name}" if alias else f"stage {stage} of model {name}"
    try:
        if alias:
            return registry.by_alias(name, alias)
        for candidate in str(stage).split("|"):
            version = (
                registry.newest(name)
                if candidate == "latest"
                else registry.in_stage(name, candidate)
            )
            if version is not None:
                return version
    except Exception as error:
        raise fatal_of(error, what) from error
    raise ModelNotFound(f"MLflow has no version in {what}")


def _need_client(scheme: str) -> None:
    try:
        module: Any = importlib.util.find_spec(CLIENTS[scheme])
    except ModuleNotFoundError:  # A parent package is missing.
        module = None
    if module is None:
        raise ConfigInvalid(
            f"{scheme}:// needs a client that is not installed: pip install"
            f" 'llm-operator[{EXTRAS[scheme]}]', or register the model in MLflow, whose server then"
            " serves it"
        )


def _last(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]


def folder_name(version: MlflowVersion | Pinned) -> str:
    """Name of the version's folder: readable,
    and unique for server, workspace and version by a digest."""
    workspace = os.environ.get(ENV_MLFLOW_WORKSPACE, "")
    if isinstance(version, Pinned):
        # Without a subPath the name stays what it was before subPath existed,
        # so that old downloads are found.
        identity: tuple[str, ...] = (
            version.server,
            workspace,
            version.location,
            *filter(None, [version.sub_path]),
        )
    else:
        again = filter(None, [version.anew])
        identity = (
            version.tracking_uri,
            workspace,
            version.name,
            version.version,
            version.sub_path,
            *again,
        )
    digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()
    return f"{_readable(version)}-{digest[:12]}"


def numbered(version: MlflowVersion) -> str:
    """A registered version with its server: the beginning of a manifest's source."""
    again = f"#{version.anew}" if version.anew else ""
    return f"{version.tracking_uri} models:/{version.name}/{version.version}{again}"


def fetched(models: Path, version: MlflowVersion) -> Path | None:
    """The complete folder of `version` that a process with the registry's credentials has
    downloaded, if there is one.

    This process does not know the MLflow workspace. If several workspaces have such a version here,
    `current` decides; the result is None if it points to none of them.
    """
    folders = [
        folder
        for folder in models.glob(f"{_readable(version)}-*")
        if _holds(folder, version) and claim(folder)
    ]
    # Resolved once: on a shared volume another deployment's `fetch` may change the link at any
    # moment.
    current = (models / MODEL_FOLDER).resolve()
    if len(folders) > 1:
        return next((folder for folder in folders if folder.resolve() == current), None)
    return folders[0] if folders else None


def _holds(folder: Path, version: MlflowVersion) -> bool:
    manifest = read_manifest(folder)
    # Older manifests have no subPath.
    same_part = manifest.get("subPath", version.sub_path) == version.sub_path
    return same_part and str(manifest.get("source", "")).startswith(f"{numbered(version)} ")


def _readable(version: MlflowVersion | Pinned) -> str:
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", version.name)[:60].strip(".-") or "model"
    return f"{readable}-{version.version}" if isinstance(version, MlflowVersion) else readable
