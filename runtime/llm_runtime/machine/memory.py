"""How much memory is free, and how many cache blocks fit into it.
Needs no torch: callers pass the GPU's figures."""

import os
from pathlib import Path

from llm_runtime.errors import OutOfMemory
from llm_runtime.machine import cgroup

MIB = 1 << 20
KV_CACHE_FIELD = "engine.kvCacheMemory (stand-alone: engine.kvCacheBytes)"
"""The setting that bounds the cache.
It has one name in an LLMDeployment and another in the runtime's configuration."""


class StepOutOfMemory(Exception):
    """A runner ran out of memory in a step. It may succeed with fewer tokens."""


def resident_bytes(statm: Path = Path("/proc/self/statm")) -> int:
    """Resident memory of this process in bytes; 0 if the system does not report it."""
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def server_bytes(proc: Path = Path("/proc")) -> int:
    """Resident memory of this process and its children, the engine among them, in bytes."""
    children = [pid for each in proc.glob("self/task/*/children") for pid in _words(each)]
    return sum(resident_bytes(proc / pid / "statm") for pid in ("self", *children))


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []  # The thread has ended.


def available_bytes(
    root: Path = cgroup.ROOT,
    meminfo: Path = Path("/proc/meminfo"),
    membership: Path = cgroup.MEMBERSHIP,
) -> int:
    """Memory in bytes that this process may still take:
    the least that the host and each cgroup leave."""
    left = [group.left_bytes for group in cgroup.memory_groups(root, membership)]
    return min([_host_available(meminfo), *(size for size in left if size is not None)])


def limit_bytes(root: Path = cgroup.ROOT, membership: Path = cgroup.MEMBERSHIP) -> int | None:
    """The smallest memory limit of this process's cgroups, in bytes; None without any."""
    limits = [group.limit_bytes for group in cgroup.memory_groups(root, membership)]
    return min((limit for limit in limits if limit is not None), default=None)


def blocks_that_fit(wanted: int, one_sequence: int, block_bytes: int, free_bytes: int) -> int:
    """How many of `wanted` blocks fit into `free_bytes`.
    Raises OutOfMemory if not even `one_sequence` blocks fit."""
    blocks = min(wanted, free_bytes // block_bytes)
    if blocks < one_sequence:
        raise OutOfMemory(
            f"one sequence of full length needs {one_sequence * block_bytes / MIB:.0f} MiB for keys"
            f" and values, but only {max(free_bytes, 0) / MIB:.0f} MiB may be used for them after"
            " loading the model; lower engine.maxModelLength, use a smaller dtype, or raise the"
            " memory limit"
        )
    return int(blocks)


def check_room(folder: Path, free_bytes: int) -> None:
    """Raise OutOfMemory if the weights in `folder` can't fit into `free_bytes`.

    Otherwise the kernel would kill the process, and with it a model that is being served.
    """
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if size > free_bytes:
        raise OutOfMemory(
            f"the weights in {folder} need at least {size / MIB:.0f} MiB, but only"
            f" {max(free_bytes, 0) / MIB:.0f} MiB are free; raise the memory limit"
        )


def _host_available(meminfo: Path) -> int:
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
