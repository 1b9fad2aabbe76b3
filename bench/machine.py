"""The machine and commit of a run: processor, memory, commit. No names or paths of the machine."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ("runtime", "bench")
"""Folders that decide the figures. A change elsewhere does not mark the commit as modified."""


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, memory in GiB, load before the run."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _processor(),
        "cores": cores,
        "memory_gib": round(memory_gib),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def commit() -> str:
    """The commit, with a mark when the measured code differs from it."""
    name = _git("rev-parse", "--short=12", "HEAD")
    return (
        f"{name} with changes"
        if name and _git("status", "--porcelain", "--", *MEASURED)
        else name or "unknown"
    )


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if not done.returncode else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
