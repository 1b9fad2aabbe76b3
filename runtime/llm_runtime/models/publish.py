"""A verified package → a version of a registered model in MLflow, whole or not at all.

`mlflow.register_model` refuses a folder without an MLmodel file, and a flavour would import and rewrite the model. So
the files go to a run as they are, and the version points to them: that is what `fetch` reads back, byte for byte.
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
from llm_runtime.models.package import Package
from llm_runtime.models.progress import Progress
from llm_runtime.models.registry import MlflowRegistry, fatal_of

log = logging.getLogger(__name__)

TAG = "llm-operator.dev"
DIGEST_TAG = f"{TAG}/digest"
KIND_TAG = f"{TAG}/kind"
BASE_TAG = f"{TAG}/base-model"
PARALLEL_FILES = 4
ATTEMPTS = 4
PAUSE_SECONDS = 1.0
UPLOAD_SETTINGS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "3600", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
"""The time-out is for one request, and a shard is one."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Under which name a package shall be found. Raises ConfigInvalid for names that MLflow would refuse later."""

    name: str
    alias: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    experiment: str = "Default"
    base_model: str = ""
    again: bool = False
    """Make a version even if the registry has these very files."""

    def __post_init__(self) -> None:
        if not self.name.strip() or set(self.name) & set("/:"):
            raise ConfigInvalid(f"the model name {self.name!r} must not be empty nor hold / or :")
        if self.alias and (not re.fullmatch(r"[\w-]{1,255}", self.alias) or self.alias.isdigit()):
            raise ConfigInvalid(f"the alias {self.alias!r} must be of letters, digits, _ and -, and no number")
        if self.alias == "latest" or re.fullmatch(r"v\d+", self.alias):
            raise ConfigInvalid(f"MLflow keeps the alias {self.alias!r} for itself: take another, like champion")
        if self.base_model and not re.fullmatch(r"(models:/|hf://).+", self.base_model):
            raise ConfigInvalid(f"the base model {self.base_model!r} must begin with models:/ or hf://")


@dataclass(frozen=True, slots=True)
class Published:
    """The version that holds the package."""

    name: str
    version: str
    digest: str
    created: bool
    """False: the registry had these files already."""


def publish(package: Package, wish: Wish, tracking_uri: str, progress: Progress) -> Published:
    """Make sure that a version holds the package, with its tags and alias. Raises errors.Fatal."""
    for name, value in UPLOAD_SETTINGS.items():
        os.environ.setdefault(name, value)
    registry = MlflowRegistry(tracking_uri)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri, tracking_uri)
    digest = package.digest()
    with told(f"model {wish.name} at {tracking_uri}"):
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
def told(what: str) -> Iterator[None]:
    """Let any error of the block leave as a Fatal whose message names `what`."""
    try:
        yield
    except Exception as error:
        fatal = fatal_of(error, what)
        if isinstance(fatal, ModelNotFound) and fatal is not error:
            raise ConfigInvalid(f"MLflow refused {what}: {getattr(error, 'message', error)}") from error
        raise fatal from error


def _ensure_model(client: Any, name: str) -> None:
    """Before anything is uploaded, so that a name or rights that are wrong cost no time."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(name)


def _known(client: Any, name: str, digest: str) -> str | None:
    # MLflow's filters know no escapes, but two kinds of quotes.
    quote = '"' if "'" in name else "'"
    found = client.search_model_versions(f"name = {quote}{name}{quote} and tags.`{DIGEST_TAG}` = '{digest}'")
    ready = sorted((int(version.version) for version in found if version.status == "READY"), reverse=True)
    return str(ready[0]) if ready else None


def _upload(
    client: Any, registry: MlflowRegistry, package: Package, wish: Wish, digest: str, progress: Progress
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
        # Half an upload must be taken for nothing else.
        client.set_terminated(run_id, "FAILED")
        client.delete_run(run_id)
        raise
    client.set_terminated(run_id)
    return str(version.version)


def _experiment(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))


def _check_destination(location: str) -> None:
    if urlparse(location).scheme in ("", "file"):
        raise ConfigInvalid(
            f"the server keeps artifacts at {location}, a path on its own machine that only clients there can fill; "
            "start it with --artifacts-destination, so that it takes and serves them"
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
    """Try again after transient faults, with growing pauses: one must not cost an upload of many gigabytes."""
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
    found = registry.sizes(location)
    for name, file in package.files.items():
        if found.get(name, -1) not in (None, file.stat().st_size):
            raise ModelCorrupt(
                f"{name} has {file.stat().st_size} bytes here and {found.get(name, 'none')} in the registry after its "
                "upload; push again"
            )
