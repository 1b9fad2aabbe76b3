"""The volume of the model cache: free space, locks, links, and errors that say what to do."""

import errno
import fcntl
import logging
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_runtime.errors import ConfigInvalid, DiskFull
from llm_runtime.fetching.progress import MIB
from llm_runtime.fetching.registry import fatal_of

log = logging.getLogger(__name__)

SPARE_BYTES = 64 * MIB
"""Free space that must remain beside the model,
for the manifest and the file system's own needs."""


def check_room(folder: Path, needed_bytes: int, removable_bytes: int = 0) -> None:
    """Raise DiskFull unless the file system of `folder` has room for `needed_bytes` and a little
    more.

    `removable_bytes` of unused versions count as free: the caller may remove them.
    """
    if has_room(folder, needed_bytes - removable_bytes):
        return
    free = shutil.disk_usage(folder).free
    unused = (
        f" and {removable_bytes / MIB:.0f} MiB of versions not in use" if removable_bytes else ""
    )
    raise DiskFull(
        f"the model needs {needed_bytes / MIB:.0f} MiB and {SPARE_BYTES // MIB} to spare, but"
        f" {folder} has {free / MIB:.0f} MiB free{unused}; give the model cache more room"
    )


def has_room(folder: Path, needed_bytes: int) -> bool:
    """Whether the file system of `folder` has room for `needed_bytes` and a little more."""
    return shutil.disk_usage(folder).free >= needed_bytes + SPARE_BYTES


def point_to(link: Path, target: Path) -> None:
    """Let `link` point to `target`, atomically. Writes nothing if it already does."""
    wanted = (
        os.path.relpath(target, link.parent)
        if target.is_relative_to(link.parent)
        else str(target.absolute())
    )
    if link.is_symlink() and str(link.readlink()) == wanted:
        return
    fresh = link.parent / f".{link.name}-{os.getpid()}-{random.getrandbits(32):08x}"
    fresh.symlink_to(wanted)
    fresh.replace(link)


def sync_folder_entry(folder: Path) -> None:
    """Force a rename in `folder` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock(file: Path) -> Iterator[bool]:
    """Hold an exclusive lock between processes, also on other nodes of a shared volume.
    It ends with its holder.

    Yields False if the volume has no locks.
    """
    locked = True
    with file.open("w") as lock_file:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another download of this model", extra={"lock": str(file)})
            fcntl.flock(lock_file, fcntl.LOCK_EX)
        except OSError as error:  # Some network file systems have no locks. Two downloads at once are still correct.
            log.warning("the volume has no locks; downloading without", extra={"error": str(error)})
            locked = False
        yield locked


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Raise an OSError of the block as a Fatal: DiskFull, or ConfigInvalid with advice."""
    try:
        yield
    except OSError as error:
        fatal = fatal_of(error, what)
        if isinstance(fatal, DiskFull):
            raise fatal from error
        raise ConfigInvalid(f"{what} failed: {error}; {remedy(error)}") from error


def remedy(error: OSError) -> str:
    """Advice about a folder that can't be written:
    its owner and mode, and the user and groups of this process."""
    if error.errno == errno.EROFS:
        return "the volume is mounted read-only: the model cache must be writable"
    if isinstance(error, PermissionError) and isinstance(error.filename, str):
        folder = next(
            (parent for parent in Path(error.filename).parents if parent.is_dir()), Path("/")
        )
        owner = folder.stat()
        groups = sorted({os.getegid(), *os.getgroups()})
        return (
            f"{folder} belongs to user {owner.st_uid} and group {owner.st_gid} with mode"
            f" {owner.st_mode & 0o7777:o}, and this is user {os.geteuid()} with groups"
            f" {', '.join(map(str, groups))}: let it write there (chown or chgrp), or take a volume"
            " that Kubernetes gives to the pod's group (fsGroup; hostPath and most NFS volumes"
            " stay as they are)"
        )
    return "check the volume of the model cache"
