"""A real memory limit for a process, where this machine lets root make one."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest

ROOT = Path("/sys/fs/cgroup")


@contextmanager
def limited(mib: int) -> Iterator[list[str]]:
    """The beginning of a command line that runs the rest of it in a memory cgroup of `mib` MiB,
    without swap.

    Skips the test where there is no such cgroup to be had.
    """
    folder, limit, swap, no_swap = _place(mib)
    try:
        folder.mkdir()
        (folder / limit).write_text(str(mib << 20))
    except OSError as error:
        with suppress(OSError):
            folder.rmdir()
        pytest.skip(f"no memory cgroup can be made here: {error}")
    with suppress(OSError):  # No swap accounting: no swap either, in a test that is worth its time.
        (folder / swap).write_text(no_swap)
    try:
        yield ["sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "limited"]
    finally:
        _remove(folder)


def _place(mib: int) -> tuple[Path, str, str, str]:
    name = f"llm-operator-test-{os.getpid()}-{uuid4().hex[:8]}"
    if (ROOT / "memory").is_dir():
        return (
            ROOT / "memory" / name,
            "memory.limit_in_bytes",
            "memory.memsw.limit_in_bytes",
            str(mib << 20),
        )
    if "memory" not in _text(ROOT / "cgroup.subtree_control").split():
        pytest.skip(
            "the memory controller of cgroup version 2 is not given to groups below the root here"
        )
    return ROOT / name, "memory.max", "memory.swap.max", "0"


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _remove(folder: Path) -> None:
    """Its processes may take a moment to be gone altogether."""
    for _ in range(100):
        try:
            folder.rmdir()
        except OSError:
            time.sleep(0.05)
        else:
            return
