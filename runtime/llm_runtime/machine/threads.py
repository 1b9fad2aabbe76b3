"""Threads and caches of the native libraries on a CPU.

Call `configure_threads` before anything imports torch:
libgomp and oneDNN read their settings only once.
"""

import math
import os
from collections.abc import MutableMapping
from pathlib import Path

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
SPIN_COUNT = "1000"
"""How long idle threads of libgomp spin. Measured on contended cores, its default makes a step up
to 15 times slower, this value 2 times. On an idle machine, this value costs about a tenth."""

KERNELS_KEPT = "24"
"""Size of oneDNN's cache of kernels. It keeps one for each number of rows and shape of weights, by
default 1,024, which is hundreds of MiB after an hour of varied prompts. Building one again takes
0.4 to 1 ms."""


def configure_threads(
    environment: MutableMapping[str, str] | None = None, cpu_max: Path = CPU_MAX
) -> int:
    """Set what the user has not set;
    threads are limited to the container's CPU quota. Returns their number."""
    environment = os.environ if environment is None else environment
    environment.setdefault("OMP_NUM_THREADS", str(usable_cores(cpu_max)))
    environment.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    environment.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS_KEPT)
    # The tokenizer's own threads would compete for the same cores, and warn about forks.
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    return int(environment["OMP_NUM_THREADS"].split(",")[0])


def usable_cores(cpu_max: Path = CPU_MAX) -> int:
    """Cores this process may use: its affinity,
    or the cgroup's quota rounded up, whichever is smaller; at least 1."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = cpu_max.read_text().split()
        cores = cores if quota == "max" else min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass
    return max(cores, 1)
