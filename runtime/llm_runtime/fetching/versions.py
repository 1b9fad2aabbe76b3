"""The versions in a models folder: which are in use, when each was last used,
and LRU eviction to make room.

A server holds a shared lock on the manifest of the version that it serves. Other processes see it,
also on other nodes of a shared volume, and a version is removed only under an exclusive lock. On a
volume without locks, a version counts as in use for a day after its last use, and a server touches
the manifest of its version every hour.
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
from llm_runtime.fetching.disk import check_room, has_room
from llm_runtime.files.verify import MANIFEST, is_whole

log = logging.getLogger(__name__)

JUST_USED_SECONDS = 3600.0
"""Grace period after a version was fetched or served.
It covers the time between `fetch` and `serve`."""
UNLOCKED_SECONDS = 24 * 3600.0
"""Grace period on a volume without locks, where a version in use can't be recognised."""
STALE_SECONDS = 24 * 3600.0
"""Age of the last write after which a partial folder counts as abandoned."""
TOUCH_SECONDS = 3600.0
"""How often a server touches the manifest of the version that it serves."""


@dataclass(frozen=True, slots=True)
class Version:
    """A complete version in its folder."""

    folder: Path
    size_bytes: int
    used_at: float
    """Seconds since the epoch."""


def claim(folder: Path) -> bool:
    """Whether `folder` holds a complete version;
    if so, mark it as just used, except on a read-only volume."""
    try:
        manifest: BinaryIO = (folder / MANIFEST).open("rb")
    except OSError:
        return False
    with manifest:
        try:
            fcntl.flock(manifest, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:  # Another process is removing it.
            return False
        except OSError:
            pass  # A volume without locks.
        _touch(folder)
        return is_whole(folder)


class Holder:
    """Keeps versions locked until the process ends:
    during a swap, the previous model may still be serving."""

    def __init__(self) -> None:
        self._in_use: dict[Path, ExitStack] = {}

    def __call__(self, folder: Path) -> Path:
        """Lock the version in `folder`, and return `folder`."""
        if folder not in self._in_use:
            self._in_use[folder] = ExitStack()
            self._in_use[folder].enter_context(in_use(folder))
        return folder


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Protect the version in `folder` from eviction during the block.
    No effect on a folder without a manifest."""
    over = threading.Event()

    def touch() -> None:
        _touch(folder)
        while not over.wait(TOUCH_SECONDS):
            _touch(folder)

    try:
        manifest: BinaryIO = (folder / MANIFEST).open("rb")
    except OSError:  # A folder of the user's own, which is never evicted.
        yield
        return
    with manifest:
        try:
            fcntl.flock(manifest, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            log.info(
                "the model's folder can't be locked",
                extra={"folder": str(folder), "error": str(error)},
            )
        toucher = threading.Thread(target=touch, name="model-in-use", daemon=True)
        toucher.start()
        try:
            yield
        finally:
            over.set()


def versions_in(models: Path) -> list[Version]:
    """All complete versions, least recently used first."""
    versions = []
    for manifest in models.glob(f"*/{MANIFEST}"):
        with suppress(OSError):  # Being removed by another process.
            if not manifest.parent.is_symlink() and not manifest.parent.name.startswith("."):
                size = sum(file.stat().st_size for file in manifest.parent.iterdir())
                versions.append(Version(manifest.parent, size, manifest.stat().st_mtime))
    return sorted(versions, key=lambda version: version.used_at)


def evict(models: Path, keep_bytes: int, room_bytes: int, now: float | None = None) -> None:
    """Remove the least recently used versions until they total at most `keep_bytes` and the disk
    has `room_bytes` free.

    Versions in use or just used stay.
    Raises DiskFull, and removes nothing, if that would not make enough room.
    """
    moment = time.time() if now is None else now
    versions = versions_in(models)
    total_bytes = sum(version.size_bytes for version in versions)
    unused = [version for version in versions if _free(models, version, moment, remove=False)]
    check_room(models, room_bytes, sum(version.size_bytes for version in unused))
    for version in unused:
        if total_bytes <= keep_bytes and has_room(models, room_bytes):
            return
        if _free(models, version, moment, remove=True):
            total_bytes -= version.size_bytes
    if total_bytes > keep_bytes:
        more = {"in_use_mib": total_bytes >> 20, "allowed_mib": keep_bytes >> 20}
        log.warning(
            "versions in use exceed what modelCacheBytes leaves beside the new model", extra=more
        )


def remove_stale(models: Path, now: float | None = None) -> None:
    """Remove the partial folders of abandoned downloads."""
    moment = time.time() if now is None else now
    for partial in models.glob(".partial-*"):
        name = re.sub(r"^\.partial-(.*-[0-9a-f]{12})(-.*)?$", r"\1", partial.name)
        with suppress(OSError), (models / f".lock-{name}").open("a") as lock:
            if (
                moment - max(path.stat().st_mtime for path in (partial, *partial.iterdir()))
                < STALE_SECONDS
            ):
                continue
            if _alone(lock) is not False:
                log.info("removing an abandoned download", extra={"folder": str(partial)})
                shutil.rmtree(partial, ignore_errors=True)


def _free(models: Path, version: Version, now: float, *, remove: bool) -> bool:
    """Whether `version` is unused; with `remove`, also remove it.

    The manifest goes first: without it, the folder no longer counts as a version,
    whatever happens to the rest.
    """
    manifest = version.folder / MANIFEST
    if (models / MODEL_FOLDER).resolve() == version.folder.resolve():
        return False
    try:
        with manifest.open("r+b") as opened:
            alone = _alone(opened)
            # Read under the lock: the version may have been claimed just before.
            unused_seconds = now - manifest.stat().st_mtime
            if alone is False or unused_seconds < (
                JUST_USED_SECONDS if alone else UNLOCKED_SECONDS
            ):
                return False
            if remove:
                manifest.unlink()
                shutil.rmtree(version.folder)
                more = {"folder": str(version.folder), "freed_mib": version.size_bytes >> 20}
                log.info("removed the least recently used version", extra=more)
            return True
    except OSError as error:
        log.warning(
            "a version can't be removed", extra={"folder": str(version.folder), "error": str(error)}
        )
        return False


def _touch(folder: Path) -> None:
    with suppress(OSError):
        os.utime(folder / MANIFEST)


def _alone(file: IO[Any]) -> bool | None:
    """Try to lock `file` exclusively.
    False if another process holds a lock, None if the volume has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
