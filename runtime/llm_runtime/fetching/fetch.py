"""Download a pinned version to a verified local folder;
concurrent requests for one version share a download.

list → locate → make room → download to `.partial-…` → verify → manifest → fsync → rename → link
`current`.
A folder with the final name is complete. After a loss of the registry or a kill, the partial folder
stays and the next start resumes it; after any other error it is removed.
"""

import json
import logging
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlparse

from llm_runtime.contract import ENV_MLFLOW_TRACKING_URI, MODEL_FOLDER, MlflowVersion, ModelConfig
from llm_runtime.errors import ConfigInvalid, ModelNotFound, RegistryUnreachable
from llm_runtime.fetching.disk import check_room, disk_errors, lock, point_to, sync_folder_entry
from llm_runtime.fetching.local import local_model
from llm_runtime.fetching.part import PIECE_BYTES, BadDownload, Part
from llm_runtime.fetching.pins import Pins
from llm_runtime.fetching.progress import MIB, LogProgress, Progress, bytes_in, watched
from llm_runtime.fetching.registry import Files, MlflowRegistry, Registry
from llm_runtime.fetching.retry import Patience
from llm_runtime.fetching.sources import Pinned, Reference, files_of, find, folder_name, numbered
from llm_runtime.fetching.versions import claim, evict, remove_stale
from llm_runtime.files.locate import Artifacts, Located, locate
from llm_runtime.files.verify import sync_folder, verify_weights, write_manifest

log = logging.getLogger(__name__)

CONNECTIONS = 8
"""Connections to the store that one download uses at the same time."""


class Fetcher:
    """Downloads versions into the folder `models`.

    When all versions together exceed `cache_bytes`, the least recently used are removed. `sleep`
    and `chance` (0 to 1) are arguments so that retries can be tested.
    """

    def __init__(
        self,
        registry: Files,
        models: Path,
        progress: Progress | None = None,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
        cache_bytes: int | None = None,
    ) -> None:
        self.registry = registry
        self.models = models
        self.progress = progress or LogProgress()
        self._patience = Patience(sleep, chance)
        self._cache_bytes = cache_bytes

    def fetch(self, version: MlflowVersion | Pinned) -> Path:
        """The verified folder of `version`.
        Sends no request to the registry if it is already there."""
        folder = self.models / folder_name(version)
        if claim(folder):
            log.info("model is already in the cache", extra={"folder": str(folder)})
            return folder
        with disk_errors(f"preparing {self.models}"):
            self.models.mkdir(parents=True, exist_ok=True)
            with lock(self.models / f".lock-{folder.name}") as locked:
                if not claim(folder):  # The previous holder of the lock may have downloaded it.
                    self._bring(version, folder, locked)
        return folder

    def _bring(self, version: MlflowVersion | Pinned, folder: Path, locked: bool) -> None:
        remove_stale(self.models)
        partial = self._partial(folder.name, locked)
        try:
            self._fill(version, partial)
            partial.chmod(0o755)
            if folder.exists():  # It is incomplete: otherwise `claim` would have taken it.
                shutil.rmtree(folder)
            partial.rename(folder)
            sync_folder_entry(self.models)
        except BaseException as error:
            if not locked or (
                isinstance(error, Exception) and not isinstance(error, RegistryUnreachable)
            ):
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def _partial(self, name: str, locked: bool) -> Path:
        if not locked:  # Another process may be downloading the same version.
            return Path(tempfile.mkdtemp(prefix=f".partial-{name}-", dir=self.models))
        for leftover in self.models.glob(f".partial-{name}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        partial = self.models / f".partial-{name}"
        partial.mkdir(mode=0o700, exist_ok=True)
        return partial

    def _fill(self, version: MlflowVersion | Pinned, partial: Path) -> None:
        started = time.monotonic()
        if isinstance(version, Pinned):
            name = f"model {version.location}"
            location = version.location
            source = version.location
        else:
            name = f"model {version.name} version {version.version}"
            location = self._patience(f"resolving {name}", lambda: self._resolve(version))
            source = f"{numbered(version)} {location}"
        sizes = self._patience(f"listing {name}", lambda: self.registry.sizes(location))
        if not sizes:
            raise ModelNotFound(
                f"{name} has no artifacts at {location}; register a version that has"
            )
        artifacts = Artifacts(sizes, lambda path: self._read(location, path, partial))
        located = self._locate(artifacts, version.sub_path)
        digests = self._download(location, located, artifacts, partial)
        self._verify(partial)
        write_manifest(partial, source, digests, version.sub_path)
        sync_folder(partial)
        log.info(
            "model fetched", extra={"model": name, "seconds": round(time.monotonic() - started, 1)}
        )

    def _resolve(self, version: MlflowVersion) -> str:
        if not isinstance(self.registry, Registry):
            raise ConfigInvalid(f"{version.tracking_uri} is not a registry of model versions")
        return self.registry.resolve(version)

    def _locate(self, artifacts: Artifacts, sub_path: str) -> Located:
        return locate(artifacts, sub_path)

    def _verify(self, folder: Path) -> None:
        verify_weights(folder)

    def _download(
        self, location: str, located: Located, artifacts: Artifacts, partial: Path
    ) -> dict[str, str]:
        """Download all missing files.
        Returns the SHA-256, by name, of those that were downloaded now."""
        wanted = {name: artifacts.sizes[path] for name, path in located.files.items()}
        total = sum(size or 0 for size in wanted.values())
        plan = partial / ".plan"
        go_on(plan, json.dumps([location, dict(located.files), wanted], sort_keys=True))
        self._make_room(total, max(0, total - bytes_in(partial)))
        large = sum(
            (size or 0) >= 2 * PIECE_BYTES
            for name, size in wanted.items()
            if not (partial / name).is_file()
        )
        connections = max(1, CONNECTIONS // max(1, large))
        digests: dict[str, str] = {}
        with watched(partial, total, self.progress), ThreadPoolExecutor(CONNECTIONS) as pool:
            jobs = {
                name: pool.submit(
                    self._download_file,
                    location,
                    path,
                    Part(partial, name, wanted[name], connections),
                )
                for name, path in located.files.items()
            }
            try:
                for name, job in jobs.items():
                    if digest := job.result():
                        digests[name] = digest
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        for file in partial.glob(".*"):
            file.unlink()
        return digests

    def _make_room(self, total_bytes: int, missing_bytes: int) -> None:
        if self._cache_bytes is None:
            check_room(self.models, missing_bytes)
        else:
            evict(self.models, max(0, self._cache_bytes - total_bytes), missing_bytes)

    def _download_file(self, location: str, path: str, part: Part) -> str | None:
        size = part.size
        if part.is_there:
            return None  # An earlier process downloaded it.

        def attempt() -> str | None:
            self.registry.download(location, path, part)
            received = part.path.stat().st_size
            # MLflow's client does not notice a body that ends early.
            if size is not None and received != size:
                if received > size:
                    part.discard()
                raise BadDownload(
                    f"{path} has {received} bytes, its listing says {size}; upload it to the"
                    " registry again"
                )
            part.finish()
            return part.sha256

        return self._patience(f"downloading {path}", attempt)

    def _read(self, location: str, path: str, partial: Path) -> bytes:
        part = Part(partial, f"read-{os.path.basename(path)}")  # noqa: PTH119 - a URL path, not a local one
        part.discard()
        try:
            self._patience(f"reading {path}", lambda: self.registry.download(location, path, part))
            return part.path.read_bytes()
        finally:
            part.discard()


def fetch(
    config: ModelConfig,
    models: Path,
    progress: Progress | None = None,
    cache_bytes: int | None = None,
    hub_token: str = "",
) -> Path:
    """Download the configured model to a verified folder, let `<models>/current` point to it,
    and return it.

    Without `progress`, log lines report it. Above `cache_bytes`, unused versions are removed.
    `hub_token` is for `hf://` and overrides the environment's. Raises errors.Fatal subclasses.
    """
    sub_path = config.sub_path or ""
    if config.mlflow is not None and sub_path:
        raise ConfigInvalid(
            "model.subPath is for model.uri and model.path; with model.mlflow set"
            " model.mlflow.subPath"
        )
    if config.mlflow is not None:
        registry = MlflowRegistry(config.mlflow.tracking_uri)
        folder = Fetcher(registry, models, progress, cache_bytes=cache_bytes).fetch(config.mlflow)
    elif config.path is not None:
        folder = local_model(Path(config.path), models, sub_path)
    elif config.uri is not None and config.uri.startswith("file://"):
        folder = local_model(Path(unquote(urlparse(config.uri).path)), models, sub_path)
    elif config.uri is not None:
        server = config.tracking_uri or os.environ.get(ENV_MLFLOW_TRACKING_URI, "")
        folder = _fetch_uri(
            Reference(config.uri, server, sub_path, hub_token), models, progress, cache_bytes
        )
    else:
        raise ConfigInvalid(
            "the configuration names no model: set model.mlflow, model.path or model.uri"
        )
    with disk_errors(f"linking {models / MODEL_FOLDER}"):
        models.mkdir(parents=True, exist_ok=True)
        point_to(models / MODEL_FOLDER, folder)
    return folder


def _fetch_uri(
    reference: Reference, models: Path, progress: Progress | None, cache_bytes: int | None
) -> Path:
    files = files_of(reference)
    pins = Pins(models)
    try:
        version = find(reference, Patience())
    except RegistryUnreachable as error:
        last = pins.last(reference)
        if last is None or not claim(models / folder_name(last)):
            raise
        folder = models / folder_name(last)
        more = {"uri": reference.uri, "folder": str(folder), "error": str(error)}
        log.warning(
            "the registry can't be reached: serving the version that the uri last resolved to",
            extra=more,
        )
        return folder
    folder = Fetcher(files, models, progress, cache_bytes=cache_bytes).fetch(version)
    try:
        pins.remember(reference, version)
    except (
        OSError
    ) as error:  # The volume is read-only. This start works; the next one needs the registry, too.
        log.warning(
            "can't record what the uri resolved to",
            extra={"uri": reference.uri, "error": str(error)},
        )
    return folder


def go_on(plan: Path, wanted: str) -> None:
    """Keep a partial folder if its `plan` lists the same files and sizes as `wanted`;
    otherwise empty it."""
    folder = plan.parent
    if plan.is_file() and plan.read_text(encoding="utf-8") == wanted:
        log.info(
            "resuming a download",
            extra={"folder": str(folder), "done_mib": bytes_in(folder) // MIB},
        )
        return
    for file in folder.iterdir():
        file.unlink()
    plan.write_text(wanted, encoding="utf-8")
