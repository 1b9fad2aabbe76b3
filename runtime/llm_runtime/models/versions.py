"""The versions in a models folder: which are in use, when each was used last, which go to make room.

Who serves a version holds a shared lock on its manifest, which others see from other processes and other nodes of a
shared volume; only who gets that lock alone removes the version. Where a volume has no locks, a version counts as in
use for a day after its last use, and a server says hourly that it uses it.
"""

import fcntl
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from llm_runtime.contract import MODEL_FOLDER
from llm_runtime.models.disk import check_room, has_room
from llm_runtime.models.verify import MANIFEST, is_whole

log = logging.getLogger(__name__)

JUST_USED_SECONDS = 3600.0
"""For so long nobody removes what was fetched or served: `serve` follows `fetch` after a while."""
UNLOCKED_SECONDS = 24 * 3600.0
"""The same, where nobody can say that it is in use."""
STALE_SECONDS = 24 * 3600.0
"""A partial folder that nobody has written to for so long is of a download that nobody goes on with."""
TOUCH_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Version:
    """A whole version in its folder."""

    folder: Path
    size_bytes: int
    used_at: float
    """Seconds since the epoch."""


def claim(folder: Path) -> bool:
    """Whether a whole version is in `folder`; if so, it counts as just used. Writes nothing on a read-only volume."""
    try:
        manifest: BinaryIO = (folder / MANIFEST).open("rb")
    except OSError:
        return False
    with manifest:
        try:
            fcntl.flock(manifest, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:  # Somebody is removing it.
            return False
        except OSError:
            pass  # A volume without locks.
        _touch(folder)
        return is_whole(folder)


class Holder:
    """Keeps versions in use until the process ends: of two models in turn, the former may be the one that serves."""

    def __init__(self) -> None:
        self._held: dict[Path, ExitStack] = {}

    def __call__(self, folder: Path) -> Path:
        """`folder`, from now on in use."""
        if folder not in self._held:
            self._held[folder] = ExitStack()
            self._held[folder].enter_context(in_use(folder))
        return folder


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Nobody removes the version in `folder` during the block. Of no effect for a folder without a manifest."""
    over = threading.Event()

    def touch() -> None:
        _touch(folder)
        while not over.wait(TOUCH_SECONDS):
            _touch(folder)

    try:
        held: BinaryIO = (folder / MANIFEST).open("rb")
    except OSError:  # A folder of somebody's own.
        yield
        return
    with held:
        try:
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            log.info("the model's folder can't be locked", extra={"folder": str(folder), "error": str(error)})
        toucher = threading.Thread(target=touch, name="model-in-use", daemon=True)
        toucher.start()
        try:
            yield
        finally:
            over.set()


def versions_in(models: Path) -> list[Version]:
    """All whole versions, the one not used for longest first."""
    found = []
    for manifest in models.glob(f"*/{MANIFEST}"):
        with suppress(OSError):  # Being removed by another process.
            if not manifest.parent.is_symlink() and not manifest.parent.name.startswith("."):
                size = sum(file.stat().st_size for file in manifest.parent.iterdir())
                found.append(Version(manifest.parent, size, manifest.stat().st_mtime))
    return sorted(found, key=lambda version: version.used_at)


def evict(models: Path, keep_bytes: int, room_bytes: int, now: float | None = None) -> None:
    """Remove versions until all together take at most `keep_bytes` and the disk has `room_bytes` free.

    The least recently used version goes first; versions that are in use, or were until just now, stay. When that would
    not make enough room, none is removed and DiskFull is raised.
    """
    moment = time.time() if now is None else now
    there = versions_in(models)
    together = sum(version.size_bytes for version in there)
    unused = [version for version in there if _free(models, version, moment, remove=False)]
    check_room(models, room_bytes, sum(version.size_bytes for version in unused))
    for version in unused:
        if together <= keep_bytes and has_room(models, room_bytes):
            return
        if _free(models, version, moment, remove=True):
            together -= version.size_bytes
    if together > keep_bytes:
        more = {"in_use_mib": together >> 20, "allowed_mib": keep_bytes >> 20}
        log.warning("what is in use takes more than modelCacheBytes leaves beside the model to come", extra=more)


def remove_stale(models: Path, now: float | None = None) -> None:
    """Remove the partial folders of downloads that nobody goes on with."""
    moment = time.time() if now is None else now
    for partial in models.glob(".partial-*"):
        name = re.sub(r"^\.partial-(.*-[0-9a-f]{12})(-.*)?$", r"\1", partial.name)
        with suppress(OSError), (models / f".lock-{name}").open("a") as lock:
            if moment - max(path.stat().st_mtime for path in (partial, *partial.iterdir())) < STALE_SECONDS:
                continue
            if _alone(lock) is not False:
                log.info("removing a download that nobody goes on with", extra={"folder": str(partial)})
                shutil.rmtree(partial, ignore_errors=True)


def _free(models: Path, version: Version, now: float, *, remove: bool) -> bool:
    """Whether nobody uses `version`; then remove it if asked to, its manifest first: without it, it is not there."""
    manifest = version.folder / MANIFEST
    if (models / MODEL_FOLDER).resolve() == version.folder.resolve():
        return False
    try:
        with manifest.open("r+b") as held:
            alone = _alone(held)
            unused_seconds = now - manifest.stat().st_mtime  # Not before: it may have been claimed meanwhile.
            if alone is False or unused_seconds < (JUST_USED_SECONDS if alone else UNLOCKED_SECONDS):
                return False
            if remove:
                manifest.unlink()
                shutil.rmtree(version.folder)
                more = {"folder": str(version.folder), "freed_mib": version.size_bytes >> 20}
                log.info("removed the version not used for longest", extra=more)
            return True
    except OSError as error:
        log.warning("a version can't be removed", extra={"folder": str(version.folder), "error": str(error)})
        return False


def _touch(folder: Path) -> None:
    with suppress(OSError):
        os.utime(folder / MANIFEST)


def _alone(file: IO[Any]) -> bool | None:
    """Whether nobody else holds a lock on `file`; None where the volume has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
