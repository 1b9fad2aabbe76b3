"""From `model.uri` to files that no longer change, and the registry that has them.

An alias, a stage or a branch is resolved here, once: what comes out names a version, a run, a commit or a folder.
"""

import importlib.util
import logging
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

from llm_runtime.contract import MlflowVersion
from llm_runtime.errors import ConfigInvalid, ModelNotFound
from llm_runtime.models.hub import HubRegistry
from llm_runtime.models.registry import MlflowRegistry, Registry, fatal_of

log = logging.getLogger(__name__)

FORMS = (
    "models:/name/3, models:/name@alias, models:/name/Stage, models:/m-…, runs:/…, mlflow-artifacts:/…, s3://, gs://, "
    "abfss://, hf://org/name@revision or file:///folder"
)
CLIENTS = {"s3": "boto3", "gs": "google.cloud.storage", "abfss": "azure.storage.filedatalake"}
"""What MLflow's client needs for a store that it asks directly."""
PACKAGES = {"s3": "boto3", "gs": "google-cloud-storage", "abfss": "azure-storage-file-datalake azure-identity"}


@dataclass(frozen=True, slots=True)
class Pinned:
    """Files at one place that is not a registered version."""

    name: str
    """For a reader: in logs and in the folder's name."""
    location: str
    server: str = ""
    """The MLflow server that is asked for them, if any."""


def find(uri: str, tracking_uri: str) -> tuple[Registry, MlflowVersion | Pinned]:
    """What `uri` stands for now. Raises a Fatal; asks the registry only when `uri` names something that may move."""
    scheme = urlparse(uri).scheme
    if scheme == "hf":
        hub = HubRegistry()
        repository, commit = hub.commit(uri)
        log.info("model resolved", extra={"uri": uri, "commit": commit})
        return hub, Pinned(f"{repository.rpartition('/')[2]}-{commit[:12]}", f"hf://{repository}@{commit}")
    if scheme in CLIENTS:
        _need_client(scheme)
        return MlflowRegistry(tracking_uri), Pinned(_last(uri), uri)
    if scheme not in ("models", "runs", "mlflow-artifacts"):
        raise ConfigInvalid(f"model.uri {uri!r} is none of {FORMS}")
    if not tracking_uri:
        raise ConfigInvalid(f"model.uri {uri!r} needs an MLflow server: set model.trackingUri or MLFLOW_TRACKING_URI")
    registry = MlflowRegistry(tracking_uri)
    if scheme != "models" or re.fullmatch(r"models:/m-[0-9a-f]+", uri):
        return registry, Pinned(_last(uri), uri, tracking_uri)
    return registry, _registered(uri, tracking_uri)


def _registered(uri: str, tracking_uri: str) -> MlflowVersion:
    found = re.fullmatch(r"models:/+(?P<name>[^/@]+)(?:/(?P<version>\d+)|/(?P<stage>[^/@]+)|@(?P<alias>[^/@]+))", uri)
    if found is None:
        raise ConfigInvalid(f"model.uri {uri!r} is none of {FORMS}")
    name, version = found["name"], found["version"]
    if version is None:
        version = _resolved(tracking_uri, name, found["stage"], found["alias"])
        log.info("model resolved", extra={"uri": uri, "model": name, "version": version})
    return MlflowVersion(tracking_uri=tracking_uri, name=name, version=version)


def _resolved(tracking_uri: str, name: str, stage: str | None, alias: str | None) -> str:
    registry = MlflowRegistry(tracking_uri)
    if stage == "latest":
        return registry.newest(name)
    what = f"alias {alias} of model {name}" if alias else f"stage {stage} of model {name}"
    try:
        version = registry.by_alias(name, alias) if alias else registry.in_stage(name, str(stage))
    except Exception as error:
        raise fatal_of(error, f"{what}") from error
    if version is None:
        raise ModelNotFound(f"MLflow has no version in {what}")
    return version


def _need_client(scheme: str) -> None:
    try:
        there: Any = importlib.util.find_spec(CLIENTS[scheme])
    except ModuleNotFoundError:  # A package above it is missing.
        there = None
    if there is None:
        raise ConfigInvalid(
            f"{scheme}:// needs a client that is not installed: pip install {PACKAGES[scheme]}, or register the model "
            "in MLflow, whose server then hands it out"
        )


def _last(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]
