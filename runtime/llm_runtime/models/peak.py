"""The most memory that this process had at once for itself while something ran."""

import threading
from pathlib import Path
from types import TracebackType

STATUS = Path("/proc/self/status")
INTERVAL_SECONDS = 0.01


def own_bytes(status: Path = STATUS) -> int:
    """Memory of this process that no file backs; 0 where the system does not tell.

    Pages of mapped weight files are left out: the kernel takes them back when it wants to, and they are shared by all
    that map the same file. VmHWM, the kernel's own peak, counts them.
    """
    try:
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) * 1024
    except (OSError, KeyError, ValueError):
        return 0


class PeakMemory:
    """Looks on from a thread of its own between `with` and its end; a peak shorter than the interval may be missed."""

    def __init__(self) -> None:
        self.before_bytes = self.peak_bytes = own_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL_SECONDS):
            self._look()

    def _look(self) -> None:
        self.peak_bytes = max(self.peak_bytes, own_bytes())
