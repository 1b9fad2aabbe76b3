"""How much memory is left, and how many cache blocks fit into it. No torch: a GPU's figure is passed in."""

import os
from pathlib import Path

from llm_runtime.engine import cgroup
from llm_runtime.errors import OutOfMemory

MIB = 1 << 20
KV_CACHE_FIELD = "engine.kvCacheMemory (stand-alone: engine.kvCacheBytes)"
"""What bounds the cache has one name in an LLMDeployment and another in the runtime's own configuration."""


class StepOutOfMemory(Exception):
    """A runner had no memory for a step; with fewer tokens it might do."""


def resident_bytes(statm: Path = Path("/proc/self/statm")) -> int:
    """Memory of this process that is not swapped out; 0 where the system does not tell."""
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def available_bytes(
    root: Path = cgroup.ROOT, meminfo: Path = Path("/proc/meminfo"), membership: Path = cgroup.MEMBERSHIP
) -> int:
    """Memory that this process may still take: the smallest of what the host and the limits around it leave."""
    left = [group.left_bytes for group in cgroup.memory_groups(root, membership)]
    return min([_host_available(meminfo), *(size for size in left if size is not None)])


def limit_bytes(root: Path = cgroup.ROOT, membership: Path = cgroup.MEMBERSHIP) -> int | None:
    """The smallest memory limit around this process; None without any."""
    limits = [group.limit_bytes for group in cgroup.memory_groups(root, membership)]
    return min((limit for limit in limits if limit is not None), default=None)


def blocks_that_fit(wanted: int, one_sequence: int, block_bytes: int, free_bytes: int) -> int:
    """How many of `wanted` blocks fit into `free_bytes`. Raises OutOfMemory when not even `one_sequence` blocks do."""
    blocks = min(wanted, free_bytes // block_bytes)
    if blocks < one_sequence:
        raise OutOfMemory(
            f"one sequence of full length needs {one_sequence * block_bytes / MIB:.0f} MiB for keys and values, but "
            f"only {max(free_bytes, 0) / MIB:.0f} MiB may be used for them after loading the model; "
            "lower engine.maxModelLength, use a smaller dtype, or raise the memory limit"
        )
    return int(blocks)


def check_room(folder: Path, free_bytes: int) -> None:
    """Raise OutOfMemory when the weights in `folder` can't fit into `free_bytes`.

    The kernel would find out too late: by killing the process, and with it a model that serves.
    """
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if size > free_bytes:
        raise OutOfMemory(
            f"the weights in {folder} need at least {size / MIB:.0f} MiB, but only {max(free_bytes, 0) / MIB:.0f} MiB "
            "are free; raise the memory limit"
        )


def _host_available(meminfo: Path) -> int:
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
