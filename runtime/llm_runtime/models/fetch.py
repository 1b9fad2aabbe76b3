"""Bring a pinned version to a verified local folder, once, however many ask at the same time.

list → locate → room on the disk → download to `.partial-…` → verify → manifest → fsync → rename → link `current`.
What has the final name is whole. A partial folder stays while the registry can't be reached or when the process is
killed, and the next start goes on there; everything else is removed.
"""

import hashlib
import json
import logging
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlparse

from llm_runtime.contract import ENV_MLFLOW_TRACKING_URI, ENV_MLFLOW_WORKSPACE, MODEL_FOLDER, MlflowVersion, ModelConfig
from llm_runtime.errors import ConfigInvalid, Fatal, ModelCorrupt, ModelNotFound, RegistryUnreachable
from llm_runtime.models.disk import check_room, disk_errors, lock, point_to, sync_folder_entry
from llm_runtime.models.locate import Artifacts, Located, local_artifacts, locate
from llm_runtime.models.part import Part
from llm_runtime.models.progress import MIB, LogProgress, Progress, bytes_in, watched
from llm_runtime.models.registry import MlflowRegistry, Registry, fatal_of
from llm_runtime.models.sources import Pinned, find
from llm_runtime.models.verify import is_whole, sync_folder, verify_weights, write_manifest

log = logging.getLogger(__name__)

PARALLEL_FILES = 4
ATTEMPTS = 5

Result = TypeVar("Result")


class Fetcher:
    """Brings one version into `models`. `sleep` and `chance` (0 to 1) are arguments so that retries can be tested."""

    def __init__(
        self,
        registry: Registry,
        models: Path,
        progress: Progress | None = None,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.registry, self.models, self.progress = registry, models, progress or LogProgress()
        self.sleep, self.chance = sleep, chance

    def fetch(self, version: MlflowVersion | Pinned) -> Path:
        """The verified folder of `version`; without any request to the registry when it is there already."""
        folder = self.models / folder_name(version)
        if is_whole(folder):
            log.info("model is already there", extra={"folder": str(folder)})
            return folder
        with disk_errors(f"preparing {self.models}"):
            self.models.mkdir(parents=True, exist_ok=True)
            with lock(self.models / f".lock-{folder.name}") as locked:
                if not is_whole(folder):  # Whoever had the lock before may have brought it.
                    self._bring(version, folder, locked)
        return folder

    def _bring(self, version: MlflowVersion | Pinned, folder: Path, locked: bool) -> None:
        partial = self._partial(folder.name, locked)
        try:
            self._fill(version, partial)
            partial.chmod(0o755)
            if folder.exists():  # Not whole, or we would not be here.
                shutil.rmtree(folder)
            partial.rename(folder)
            sync_folder_entry(self.models)
        except BaseException as error:
            if not locked or (isinstance(error, Exception) and not isinstance(error, RegistryUnreachable)):
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def _partial(self, name: str, locked: bool) -> Path:
        if not locked:  # Somebody else may be at the same version.
            return Path(tempfile.mkdtemp(prefix=f".partial-{name}-", dir=self.models))
        for leftover in self.models.glob(f".partial-{name}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        partial = self.models / f".partial-{name}"
        partial.mkdir(mode=0o700, exist_ok=True)
        return partial

    def _fill(self, version: MlflowVersion | Pinned, partial: Path) -> None:
        started = time.monotonic()
        if isinstance(version, Pinned):
            name, location, sub_path, source = f"model {version.location}", version.location, "", version.location
        else:
            name, sub_path = f"model {version.name} version {version.version}", version.sub_path
            location = self._patiently(f"resolving {name}", lambda: self.registry.resolve(version))
            source = f"{version.tracking_uri} models:/{version.name}/{version.version} {location}"
        sizes = self._patiently(f"listing {name}", lambda: self.registry.sizes(location))
        if not sizes:
            raise ModelNotFound(f"{name} has no artifacts at {location}; register a version that has")
        artifacts = Artifacts(sizes, lambda path: self._read(location, path, partial))
        located = self._locate(artifacts, sub_path)
        digests = self._download(location, located, artifacts, partial)
        self._verify(partial)
        write_manifest(partial, source, digests)
        sync_folder(partial)
        log.info("model fetched", extra={"model": name, "seconds": round(time.monotonic() - started, 1)})

    def _locate(self, artifacts: Artifacts, sub_path: str) -> Located:
        return locate(artifacts, sub_path)

    def _verify(self, folder: Path) -> None:
        verify_weights(folder)

    def _download(self, location: str, located: Located, artifacts: Artifacts, partial: Path) -> dict[str, str]:
        """Bring all files; SHA-256 by name of those that came now."""
        wanted = {name: artifacts.sizes[path] for name, path in located.files.items()}
        total = sum(size or 0 for size in wanted.values())
        plan = partial / ".plan"
        go_on(plan, json.dumps([location, dict(located.files), wanted], sort_keys=True))
        check_room(partial, max(0, total - bytes_in(partial)))
        digests: dict[str, str] = {}
        with watched(partial, total, self.progress), ThreadPoolExecutor(PARALLEL_FILES) as pool:
            jobs = {
                name: pool.submit(self._download_file, location, path, partial, name, wanted[name])
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

    def _download_file(self, location: str, path: str, partial: Path, name: str, size: int | None) -> str | None:
        if (partial / name).is_file() and (partial / name).stat().st_size == size:
            return None  # By a process before this one.

        def attempt() -> str | None:
            part = Part(partial, name)
            self.registry.download(location, path, part)
            found = part.path.stat().st_size
            # MLflow takes a body that ends early for the whole file.
            if size is not None and found != size:
                if found > size:
                    part.discard()
                raise ShortFile(f"{path} has {found} bytes, its listing says {size}; upload it to the registry again")
            part.finish()
            return part.sha256

        return self._patiently(f"downloading {path}", attempt)

    def _read(self, location: str, path: str, partial: Path) -> bytes:
        part = Part(partial, f"read-{os.path.basename(path)}")  # noqa: PTH119 - a URL path, not a local one
        part.discard()
        try:
            self._patiently(f"reading {path}", lambda: self.registry.download(location, path, part))
            return part.path.read_bytes()
        finally:
            part.discard()

    def _patiently(self, what: str, attempt: Callable[[], Result]) -> Result:
        """Try again after transient faults, with growing, jittered pauses. Raises a Fatal."""
        for failures in range(1, ATTEMPTS + 1):
            try:
                return attempt()
            except Exception as error:
                fatal = fatal_of(error, what)
                if failures == ATTEMPTS or not isinstance(fatal, (RegistryUnreachable, ShortFile)):
                    raise _public(fatal) from error
                pause_seconds = 2 ** (failures - 1) * (0.5 + self.chance())
                log.warning(
                    "trying again", extra={"what": what, "error": str(fatal), "in_seconds": round(pause_seconds, 1)}
                )
                self.sleep(pause_seconds)
        raise AssertionError("the last attempt returns or raises")


class ShortFile(ModelCorrupt):
    """A download that ended early; worth another attempt."""


def fetch(config: ModelConfig, models: Path, progress: Progress | None = None) -> Path:
    """Bring the configured model to a verified folder, let `<models>/current` point to it, and return it.

    `progress` None writes log lines. Raises errors.Fatal subclasses.
    """
    if config.mlflow is not None:
        folder = Fetcher(MlflowRegistry(config.mlflow.tracking_uri), models, progress).fetch(config.mlflow)
    elif config.path is not None:
        folder = local_model(Path(config.path), models)
    elif config.uri is not None and config.uri.startswith("file://"):
        folder = local_model(Path(unquote(urlparse(config.uri).path)), models)
    elif config.uri is not None:
        registry, found = find(config.uri, config.tracking_uri or os.environ.get(ENV_MLFLOW_TRACKING_URI, ""))
        folder = Fetcher(registry, models, progress).fetch(found)
    else:
        raise ConfigInvalid("the configuration names no model: set model.mlflow, model.path or model.uri")
    with disk_errors(f"linking {models / MODEL_FOLDER}"):
        models.mkdir(parents=True, exist_ok=True)
        point_to(models / MODEL_FOLDER, folder)
    return folder


def local_model(path: Path, models: Path) -> Path:
    """Verify a local folder; a model and a tokenizer that lie apart are brought together by links under `models`."""
    if not path.is_dir():
        raise ModelNotFound(f"model.path {path} is not a folder")
    located = locate(local_artifacts(path))
    home = path / located.folder
    verify_weights(home)
    if all((home / name).is_file() for name in located.files):
        return home
    with disk_errors(f"linking the files of {path}"):
        overlay = models / f"local-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
        overlay.mkdir(parents=True, exist_ok=True)
        for name, source in located.files.items():
            point_to(overlay / name, (path / source).resolve())
    return overlay


def folder_name(version: MlflowVersion | Pinned) -> str:
    """One folder for each version of each server: readable, and unambiguous through a digest."""
    workspace = os.environ.get(ENV_MLFLOW_WORKSPACE, "")
    if isinstance(version, Pinned):
        identity: tuple[str, ...] = (version.server, workspace, version.location)
    else:
        identity = (version.tracking_uri, workspace, version.name, version.version, version.sub_path)
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", version.name)[:60].strip(".-") or "model"
    if isinstance(version, MlflowVersion):
        readable = f"{readable}-{version.version}"
    digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()
    return f"{readable}-{digest[:12]}"


def go_on(plan: Path, wanted: str) -> None:
    """Empty the folder of the file `plan` unless it was begun with the same files in mind: their sizes count, too."""
    folder = plan.parent
    if plan.is_file() and plan.read_text(encoding="utf-8") == wanted:
        log.info("going on with a download", extra={"folder": str(folder), "done_mib": bytes_in(folder) // MIB})
        return
    for file in folder.iterdir():
        file.unlink()
    plan.write_text(wanted, encoding="utf-8")


def _public(fatal: Fatal) -> Fatal:
    # Its class name becomes a condition's reason.
    return ModelCorrupt(str(fatal)) if isinstance(fatal, ShortFile) else fatal
