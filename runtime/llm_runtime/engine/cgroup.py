"""The memory cgroups that hold this process: what they allow, what they hold, and whether the kernel killed in them.

Both versions. Inside a container the mount shows the container's own cgroup as the root; outside of one the process's
own folder lies below it, and each folder on the way may have a limit.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
_UNLIMITED_BYTES = 1 << 60
"""From here on a limit is none: version 1 writes a number near 2⁶³."""


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """One cgroup, as its files said."""

    limit_bytes: int | None
    """None: no limit of its own."""
    used_bytes: int
    peak_bytes: int
    """The most that was used at once, cached files included; 0 where the kernel does not tell."""
    cached_bytes: int
    """Pages of files, which the kernel gives back when it needs them."""
    oom_kills: int
    """Processes that the kernel has killed here for lack of memory."""

    @property
    def left_bytes(self) -> int | None:
        """What the limit leaves, cached files counted as free; None without a limit."""
        if self.limit_bytes is None:
            return None
        return max(self.limit_bytes - self.used_bytes + self.cached_bytes, 0)


def memory_groups(root: Path = ROOT, membership: Path = MEMBERSHIP) -> list[MemoryGroup]:
    """The cgroups of this process that tell their memory, its own first, then those around it."""
    return [group for folder, version in _folders(root, membership) if (group := _read(folder, version)) is not None]


def _folders(root: Path, membership: Path) -> Iterator[tuple[Path, int]]:
    own = _own_paths(membership)
    for base, version, path in ((root, 2, own.get("", "")), (root / "memory", 1, own.get("memory", ""))):
        inside = [base / path.strip("/"), *(base / path.strip("/")).parents]
        # A container that sees the host's paths has them not below its mount.
        yield from ((folder, version) for folder in inside if folder.is_relative_to(base) and folder.is_dir())


def _own_paths(membership: Path) -> dict[str, str]:
    """The path below the mount, by controller; "" is version 2's."""
    found: dict[str, str] = {}
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            found |= dict.fromkeys(controllers.split(","), path)
    return found


def _read(folder: Path, version: int) -> MemoryGroup | None:
    limit, used, peak, events = (
        ("memory.max", "memory.current", "memory.peak", "memory.events")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control")
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
    """Version 1 counts cgroups below only in the total_ fields, as its usage does."""
    return sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in ("inactive_file", "active_file"))


def _fields(file: Path) -> dict[str, int]:
    return {words[0]: int(words[1]) for line in file.read_text().splitlines() if len(words := line.split()) == 2}


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
