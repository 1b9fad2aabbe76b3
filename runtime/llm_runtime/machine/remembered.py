"""What was measured on this machine once, and need not be measured at each start.

One small JSON file for each kind of measurement and all that its figures depend on. A file that is
damaged, or a folder that can't be written to, only costs the time of measuring again.
"""

import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

log = logging.getLogger(__name__)

LARGEST_BYTES = 1 << 20
"""A file beyond this is not ours."""


def cache_folder(name: str) -> Path | None:
    """A writable folder for what can be made again, kept between starts; None where there is none.

    In a container the file system may be read-only, and the user may have no home.
    """
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "llm-operator" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder if os.access(folder, os.W_OK) else None
    except (OSError, RuntimeError):
        return None


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The instruction sets of this processor, by the kernel's names."""
    line = _line(cpuinfo, ("flags", "Features"))
    return frozenset(line.split())


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's own name; empty where the system does not tell."""
    return _line(cpuinfo, ("model name",)).strip()


class Remembered:
    """Positive figures by name, in a file that belongs to `depends_on` and to nothing else."""

    def __init__(self, kind: str, depends_on: Iterable[str], folder: Path | None) -> None:
        key = hashlib.sha256("\0".join(depends_on).encode()).hexdigest()[:16]
        self._file = folder / f"{kind}-{key}.json" if folder else None

    def read(self) -> dict[str, float]:
        """All figures; none where nothing can be read, or what is there is not ours."""
        if self._file is None:
            return {}
        try:
            with self._file.open("rb") as file:
                found = json.loads(file.read(LARGEST_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {name: float(value) for name, value in found.items() if _is_figure(value)}

    def add(self, figures: Mapping[str, float]) -> None:
        """Keep these beside what is there. Readers see the old file or the new one."""
        if self._file is None or not figures:
            return
        partial = ""
        try:
            descriptor, partial = tempfile.mkstemp(dir=self._file.parent, prefix=".partial-")
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(self.read() | dict(figures), file)
            Path(partial).replace(self._file)
        except OSError as error:
            log.info("measurements can't be kept", extra={"reason": str(error)})
            if partial:
                Path(partial).unlink(missing_ok=True)


def _is_figure(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and value > 0


def _line(cpuinfo: Path, names: tuple[str, ...]) -> str:
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(names)), "").partition(":")[2]
