"""Uploads a verified package as a version of a registered model in MLflow,
completely or not at all.

`mlflow.register_model` refuses a folder without an MLmodel file, and a flavour would import and
rewrite the model. So the files are logged to a run unchanged and the version points to them.
`fetch` reads them back byte for byte.
"""

import logging
import os
import posixpath
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from llm_runtime.errors import ConfigInvalid, ModelCorrupt, ModelNotFound, RegistryUnreachable
from llm_runtime.fetching.progress import Progress
from llm_runtime.fetching.registry import MlflowRegistry, fatal_of, named
from llm_runtime.files.package import Package

log = logging.getLogger(__name__)

TAG = "llm-operator.dev"
DIGEST_TAG = f"{TAG}/digest"
KIND_TAG = f"{TAG}/kind"
BASE_TAG = f"{TAG}/base-model"
PARALLEL_FILES = 4
ATTEMPTS = 4
PAUSE_SECONDS = 1.0
UPLOAD_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "3600",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""The timeout covers one request, and a whole shard is uploaded in one request."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Name, alias and tags for a package.
    Raises ConfigInvalid for names that MLflow would refuse later."""

    name: str
    alias: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    experiment: str = "Default"
    base_model: str = ""
    again: bool = False
    """Create a version even if the registry already has one with the same files."""

    def __post_init__(self) -> None:
        if not self.name.strip() or set(self.name) & set("/:"):
            raise ConfigInvalid(f"the model name {self.name!r} must not be empty or contain / or :")
        if self.alias and (not re.fullmatch(r"[\w-]{1,255}", self.alias) or self.alias.isdigit()):
            raise ConfigInvalid(
                f"the alias {self.alias!r} must consist of letters, digits, _ and -, and not be a"
                " number"
            )
        if self.alias == "latest" or re.fullmatch(r"v\d+", self.alias):
            raise ConfigInvalid(
                f"MLflow reserves the alias {self.alias!r}: choose another, like champion"
            )
        if self.base_model and not re.fullmatch(r"(models:/|hf://).+", self.base_model):
            raise ConfigInvalid(
                f"the base model {self.base_model!r} must begin with models:/ or hf://"
            )


@dataclass(frozen=True, slots=True)
class Published:
    """The version that holds the package."""

    name: str
    version: str
    digest: str
    created: bool
    """False if the registry already had a version with these files."""


def publish(package: Package, wish: Wish, tracking_uri: str, progress: Progress) -> Published:
    """Make sure that a version holds the package, with its tags and alias. Raises errors.Fatal."""
    for name, value in UPLOAD_SETTINGS.items():
        os.environ.setdefault(name, value)
    registry = MlflowRegistry(tracking_uri)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri, tracking_uri)
    digest = package.digest()
    with registry_errors(f"model {wish.name} at {tracking_uri}"):
        _ensure_model(client, wish.name)
        known = None if wish.again else _known(client, wish.name, digest)
        version = known or _upload(client, registry, package, wish, digest, progress)
        named = {BASE_TAG: wish.base_model} if wish.base_model else {}
        for key, value in {**named, **wish.tags}.items():
            client.set_model_version_tag(wish.name, version, key, value)
        if wish.alias:
            client.set_registered_model_alias(wish.name, wish.alias, version)
    return Published(wish.name, version, digest, created=known is None)


@contextmanager
def registry_errors(what: str) -> Iterator[None]:
    """Raise any error of the block as a Fatal whose message names `what`."""
    try:
        yield
    except Exception as error:
        fatal = fatal_of(error, what)
        if isinstance(fatal, ModelNotFound) and fatal is not error:
            raise ConfigInvalid(
                f"MLflow refused {what}: {getattr(error, 'message', error)}"
            ) from error
        raise fatal from error


def _ensure_model(client: Any, name: str) -> None:
    """Create the registered model if needed, before the upload:
    a bad name or missing rights then fail at once."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(name)


def _known(client: Any, name: str, digest: str) -> str | None:
    versions = client.search_model_versions(f"{named(name)} and tags.`{DIGEST_TAG}` = '{digest}'")
    ready = sorted(
        (int(version.version) for version in versions if version.status == "READY"), reverse=True
    )
    return str(ready[0]) if ready else None


def _upload(
    client: Any,
    registry: MlflowRegistry,
    package: Package,
    wish: Wish,
    digest: str,
    progress: Progress,
) -> str:
    run = client.create_run(_experiment(client, wish.experiment), run_name=f"push {wish.name}")
    run_id = run.info.run_id
    source = f"runs:/{run.info.run_id}/{package.kind}"
    try:
        _check_destination(run.info.artifact_uri)
        _send(client, run_id, package, progress)
        _check_arrived(registry, f"{run.info.artifact_uri}/{package.kind}", package)
        tags = {DIGEST_TAG: digest, KIND_TAG: package.kind}
        if base := wish.base_model or package.base:
            tags[BASE_TAG] = base
        version = client.create_model_version(
            wish.name, source=source, run_id=run_id, tags=tags, await_creation_for=None
        )
    except BaseException:
        # Nobody may take half an upload for a finished one.
        client.set_terminated(run_id, "FAILED")
        client.delete_run(run_id)
        raise
    client.set_terminated(run_id)
    return str(version.version)


def _experiment(client: Any, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    return str(experiment.experiment_id if experiment else client.create_experiment(name))


def _check_destination(location: str) -> None:
    if urlparse(location).scheme in ("", "file"):
        raise ConfigInvalid(
            f"the server stores artifacts at {location}, a path on its own machine that only"
            " clients there can write; start it with --artifacts-destination, so that it accepts"
            " and serves them"
        )


def _send(client: Any, run_id: str, package: Package, progress: Progress) -> None:
    total = package.total_bytes
    done = [0]
    lock = threading.Lock()
    progress(0, total)

    def send(name: str, file: Path) -> None:
        place = posixpath.join(package.kind, posixpath.dirname(name)).rstrip("/")
        _patiently(f"uploading {file.name}", lambda: client.log_artifact(run_id, str(file), place))
        with lock:
            done[0] += file.stat().st_size
            progress(done[0], total)

    with ThreadPoolExecutor(PARALLEL_FILES) as pool:
        jobs = [pool.submit(send, name, file) for name, file in package.files.items()]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _patiently(what: str, attempt: Callable[[], None]) -> None:
    """Retry after transient faults, with exponential back-off:
    one must not cost an upload of many gigabytes."""
    for failures in range(1, ATTEMPTS + 1):
        try:
            attempt()
            return
        except Exception as error:
            fatal = fatal_of(error, what)
            if failures == ATTEMPTS or not isinstance(fatal, RegistryUnreachable):
                raise
            log.warning("trying again", extra={"what": what, "error": str(fatal)})
            time.sleep(PAUSE_SECONDS * 2**failures)


def _check_arrived(registry: MlflowRegistry, location: str, package: Package) -> None:
    uploaded = registry.sizes(location)
    for name, file in package.files.items():
        if uploaded.get(name, -1) not in (None, file.stat().st_size):
            raise ModelCorrupt(
                f"{name} has {file.stat().st_size} bytes here and {uploaded.get(name, 'none')} in"
                " the registry after its upload; push again"
            )
