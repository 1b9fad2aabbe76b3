"""The runtime's access to MLflow: where a version's artifacts are, their list, and their bytes.

MLflow's client provides the artifact stores (S3, GCS, Azure) and authentication. It downloads one
file at a time here, because its download of a folder verifies nothing and hides errors of single
files. Artifacts that the server serves itself, or for which a store's client presigns URLs, come
through `stream`, which can resume. No flavour is ever imported.
"""

import errno
import os
import posixpath
import re
import threading
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable
from urllib.parse import SplitResult, urlsplit

from llm_runtime.contract import ENV_ARTIFACT_HOSTS, MlflowVersion
from llm_runtime.errors import (
    DiskFull,
    Fatal,
    ModelCorrupt,
    ModelNotFound,
    RegistryDenied,
    RegistryUnreachable,
)
from llm_runtime.fetching import addresses
from llm_runtime.fetching.part import Part
from llm_runtime.fetching.stream import FileRequest, download
from llm_runtime.files.locate import MAX_DEPTH

MAX_FILES = 10_000

_CLIENT_SETTINGS = {
    # `retry` retries instead, per file and with its own messages.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class Files(Protocol):
    """Files at a location: the hub, or a registry. Tests have a fake with these methods."""

    def sizes(self, location: str) -> dict[str, int | None]:
        """Bytes of every artifact by its relative path."""
        ...

    def download(self, location: str, path: str, part: Part) -> None:
        """Download one artifact into `part`, resuming it if possible."""
        ...


@runtime_checkable
class Registry(Files, Protocol):
    """Files that also have registered model versions."""

    def resolve(self, version: MlflowVersion) -> str:
        """Where the version's artifacts are."""
        ...


def named(name: str) -> str:
    """A filter of MLflow's for this name.
    Its filters have no escapes, but accept two kinds of quotes."""
    quote = '"' if "'" in name else "'"
    return f"name = {quote}{name}{quote}"


class MlflowRegistry:
    """An MLflow server. Credentials, workspace and CA come from MLflow's own environment
    variables."""

    def __init__(self, tracking_uri: str) -> None:
        for name, value in _CLIENT_SETTINGS.items():
            os.environ.setdefault(name, value)
        self._tracking_uri = tracking_uri
        self._repositories: dict[str, Any] = {}
        self._lock = threading.Lock()

    def resolve(self, version: MlflowVersion) -> str:
        from mlflow import MlflowClient

        client = MlflowClient(self._tracking_uri, self._tracking_uri)
        return str(client.get_model_version_download_uri(version.name, version.version))

    def newest(self, name: str) -> str:
        """The number of the newest version of a registered model. Raises a Fatal."""
        from mlflow import MlflowClient

        client = MlflowClient(self._tracking_uri, self._tracking_uri)
        what = f"the versions of model {name}"
        try:
            numbers = [
                int(version.version) for version in client.search_model_versions(named(name))
            ]
        except Exception as error:
            raise fatal_of(error, f"listing {what}") from error
        if not numbers:
            raise ModelNotFound(f"MLflow knows nothing of {what}")
        return str(max(numbers))

    def by_alias(self, name: str, alias: str) -> str:
        """The version that `alias` names. Raises MLflow's own errors."""
        from mlflow import MlflowClient

        client = MlflowClient(self._tracking_uri, self._tracking_uri)
        return str(client.get_model_version_by_alias(name, alias).version)

    def in_stage(self, name: str, stage: str) -> str | None:
        """The newest version in `stage`; None if there is none. Raises MLflow's own errors."""
        from mlflow import MlflowClient

        client = MlflowClient(self._tracking_uri, self._tracking_uri)
        numbers = [int(version.version) for version in client.get_latest_versions(name, [stage])]
        return str(max(numbers)) if numbers else None

    def sizes(self, location: str) -> dict[str, int | None]:
        return dict(self._walk(self._repository(location), None, 0))

    def download(self, location: str, path: str, part: Part) -> None:
        if source := self.source(location, path, part.size):
            download(source, part)
        else:
            part.discard()
            self._repository(location)._download_file(path, str(part.path))

    def source(self, location: str, path: str, size: int | None = None) -> FileRequest | None:
        """The HTTP source of an artifact;
        None if only MLflow's client for its store can download it."""
        from mlflow.store.artifact.artifact_repo import MultipartDownloadMixin
        from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

        repository = self._repository(location)
        if isinstance(repository, HttpArtifactRepository):
            return addresses.of_mlflow(repository, path, size)
        return (
            addresses.of_store(repository, path)
            if isinstance(repository, MultipartDownloadMixin)
            else None
        )

    def _repository(self, location: str) -> Any:
        with self._lock:
            if location not in self._repositories:
                self._repositories[location] = self._found(location)
            return self._repositories[location]

    def _found(self, location: str) -> Any:
        if location.startswith("models:/m-"):
            return self._repository_at(self._logged(location.removeprefix("models:/")))
        repository = self._repository_at(location)
        if location.startswith("runs:/") and not repository.list_artifacts():
            return self._logged_by_run(location) or repository
        return repository

    def _repository_at(self, location: str) -> Any:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        check_place(location, self._tracking_uri)
        repository = get_artifact_repository(location, tracking_uri=self._tracking_uri)
        while hasattr(
            repository, "repo"
        ):  # Those of runs:/ and models:/ wrap the repository with the bytes.
            repository = repository.repo
        check_place(str(repository.artifact_uri), self._tracking_uri)
        return repository

    def _logged(self, model_id: str) -> str:
        # MLflow's own repository for models:/m-… asks the process's default server,
        # whatever tracking_uri it gets.
        from mlflow import MlflowClient

        client = MlflowClient(self._tracking_uri, self._tracking_uri)
        return str(client.get_logged_model(model_id).artifact_location)

    def _logged_by_run(self, location: str) -> Any:
        """The logged model at runs:/<run>/<name>.
        Since MLflow 3, a run's model is not among the run's artifacts."""
        from mlflow import MlflowClient

        client = MlflowClient(self._tracking_uri, self._tracking_uri)
        run, _, path = location.removeprefix("runs:/").partition("/")
        name, _, inside = path.partition("/")
        if not re.fullmatch(r"[^'\"]+", name):
            return None
        experiment = client.get_run(run).info.experiment_id
        logged = client.search_logged_models([experiment], filter_string=f"name = '{name}'")
        places = [str(model.artifact_location) for model in logged if model.source_run_id == run]
        return (
            self._repository_at(posixpath.join(places[0], inside).rstrip("/")) if places else None
        )

    def _walk(
        self, repository: Any, folder: str | None, depth: int
    ) -> Iterator[tuple[str, int | None]]:
        for count, entry in enumerate(repository.list_artifacts(folder)):
            if count >= MAX_FILES:
                raise ModelCorrupt(
                    f"more than {MAX_FILES} files in {folder or 'the artifacts'}: not a model"
                )
            if not entry.is_dir:
                yield entry.path, entry.file_size
            elif depth <= MAX_DEPTH + 1:
                yield from self._walk(repository, entry.path, depth + 1)


def check_place(location: str, tracking_uri: str) -> None:
    """Raise RegistryDenied for an artifact location that an MLflow server must not redirect us to.

    Otherwise a person who can set a version's location could choose a host that receives the
    server's credentials, or a local file that is read.
    """
    server = urlsplit(tracking_uri)
    place = urlsplit(location)
    if server.scheme not in ("http", "https"):
        return  # The registry itself is on this machine, so its local locations are fine.
    if place.scheme in ("", "file"):
        raise RegistryDenied(
            f"the artifacts are at {location}, a path on the MLflow server's machine, which can't"
            " be read from here; start the server with --artifacts-destination so that it serves"
            " them, and register the model again"
        )
    if place.scheme not in ("http", "https", "mlflow-artifacts") or not place.netloc:
        return
    scheme = server.scheme if place.scheme == "mlflow-artifacts" else place.scheme
    if not _ODD.search(place.netloc) and (scheme == "https" or server.scheme == "http"):
        port = _port(place, scheme)
        allowed = os.environ.get(ENV_ARTIFACT_HOSTS, "").lower().split(",")
        if (place.hostname, port) == (server.hostname, _port(server, server.scheme)):
            return
        if {str(place.hostname), f"{place.hostname}:{port}"} & set(allowed):
            return
    raise RegistryDenied(
        f"the artifacts are at {scheme}://{place.hostname}, which is not the MLflow server, so its"
        f" credentials are not sent there. If that host is yours, add it to {ENV_ARTIFACT_HOSTS}"
        " (in a cluster: artifactHosts of the connection)"
    )


_ODD = re.compile(r"[\\@\s]")
"""Characters that some URL parsers treat as the end of the host and others do not:
an old way to fool a check."""


def _port(address: SplitResult, scheme: str) -> int | None:
    try:
        return address.port or (443 if scheme == "https" else 80)
    except ValueError:  # Not a number, so it equals no server's port.
        return None


def fatal_of(error: Exception, what: str) -> Fatal:
    """Translate an error of the registry,
    the network or the disk into a Fatal whose message names `what`."""
    if isinstance(error, Fatal):
        return error
    if any(
        isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT)
        for link in _chain(error)
    ):
        return DiskFull(f"the disk became full while {what}; give the model cache more room")
    status = _status(error)
    text = _short(error)
    if status in (401, 403):
        return RegistryDenied(f"MLflow refused {what} (HTTP {status}): {text}; {_hint(text)}")
    if status in (400, 404):
        return ModelNotFound(f"MLflow knows nothing of {what} (HTTP {status}): {text}")
    return RegistryUnreachable(
        f"{what} failed: {text}; check that the MLflow server answers from here"
    )


def _hint(text: str) -> str:
    if "host header" in text.lower():
        return "start the MLflow server with --allowed-hosts that include the name this pod uses"
    return (
        "check the credentials (in a cluster: the connection's Secret) and the user's permissions"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _status(error: Exception) -> int | None:
    """The HTTP status behind an error of requests, MLflow or boto3;
    None if there was no response."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) or None
    if response is not None:
        return int(response.status_code)
    status = getattr(error, "get_http_status_code", None)
    return int(status()) if status else None


def _short(error: Exception, most: int = 300) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}…"
