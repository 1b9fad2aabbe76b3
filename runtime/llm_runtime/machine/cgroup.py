"""The memory cgroups of this process, versions 1 and 2:
limits, usage, and processes killed for lack of memory.

Inside a container, the container's own cgroup is mounted as the root. Outside of one, the process's
cgroup lies below the root, and each folder on the way may have a limit.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
_UNLIMITED_BYTES = 1 << 60
"""Limits from this on mean no limit: version 1 writes a number near 2⁶³."""


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """The figures of one memory cgroup at one moment."""

    limit_bytes: int | None
    """None without a limit of its own."""
    used_bytes: int
    peak_bytes: int
    """Peak usage, including cached files; 0 if the kernel does not report it."""
    cached_bytes: int
    """Page cache of files, which the kernel can reclaim."""
    oom_kills: int
    """Processes that the kernel has killed here for lack of memory."""

    @property
    def left_bytes(self) -> int | None:
        """What the limit leaves, counting cached files as free; None without a limit."""
        if self.limit_bytes is None:
            return None
        return max(self.limit_bytes - self.used_bytes + self.cached_bytes, 0)


def memory_groups(root: Path = ROOT, membership: Path = MEMBERSHIP) -> list[MemoryGroup]:
    """The memory cgroups of this process: its own first, then its parents."""
    return [
        group
        for folder, version in _folders(root, membership)
        if (group := _read(folder, version)) is not None
    ]


def _folders(root: Path, membership: Path) -> Iterator[tuple[Path, int]]:
    own = _own_paths(membership)
    for base, version, path in (
        (root, 2, own.get("", "")),
        (root / "memory", 1, own.get("memory", "")),
    ):
        inside = [base / path.strip("/"), *(base / path.strip("/")).parents]
        # In a container that sees the host's paths, these do not exist below its mount.
        yield from (
            (folder, version)
            for folder in inside
            if folder.is_relative_to(base) and folder.is_dir()
        )


def _own_paths(membership: Path) -> dict[str, str]:
    """The cgroup's path below the mount, by controller; "" is the key of version 2."""
    paths: dict[str, str] = {}
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            paths |= dict.fromkeys(controllers.split(","), path)
    return paths


def _read(folder: Path, version: int) -> MemoryGroup | None:
    limit, used, peak, events = (
        ("memory.max", "memory.current", "memory.peak", "memory.events")
        if version == 2
        else (
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "memory.max_usage_in_bytes",
            "memory.oom_control",
        )
    )
    try:
        text = (folder / limit).read_text().strip()
        allowed = _UNLIMITED_BYTES if text == "max" else int(text)
        taken = int((folder / used).read_text())
        stat = _fields(folder / "memory.stat")
    except (OSError, ValueError):
        return None
    return MemoryGroup(
        limit_bytes=allowed if allowed < _UNLIMITED_BYTES else None,
        used_bytes=taken,
        peak_bytes=_number(folder / peak),
        cached_bytes=_cached(stat),
        oom_kills=_fields_or_none(folder / events).get("oom_kill", 0),
    )


def _cached(stat: dict[str, int]) -> int:
    """Cached files. In version 1 only the total_ fields include child cgroups,
    as the usage does."""
    return sum(
        stat.get(f"total_{name}", stat.get(name, 0)) for name in ("inactive_file", "active_file")
    )


def _fields(file: Path) -> dict[str, int]:
    return {
        words[0]: int(words[1])
        for line in file.read_text().splitlines()
        if len(words := line.split()) == 2
    }


def _fields_or_none(file: Path) -> dict[str, int]:
    try:
        return _fields(file)
    except (OSError, ValueError):
        return {}


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0
