"""Peak private memory of this process during a block."""

import threading
from pathlib import Path
from types import TracebackType

STATUS = Path("/proc/self/status")
INTERVAL_SECONDS = 0.01


def own_bytes(status: Path = STATUS) -> int:
    """Memory of this process that is not backed by files, in bytes;
    0 if the system does not report it.

    Pages of mapped weight files do not count: the kernel may reclaim them at any time, and
    processes that map the same file share them. The kernel's own peak, VmHWM, includes them, so it
    is of no use here.
    """
    try:
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) * 1024
    except (OSError, KeyError, ValueError):
        return 0


class PeakMemory:
    """Samples memory in a thread while the `with` block runs.
    It may miss a peak shorter than the interval."""

    def __init__(self) -> None:
        self.before_bytes = self.peak_bytes = own_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL_SECONDS):
            self._look()

    def _look(self) -> None:
        self.peak_bytes = max(self.peak_bytes, own_bytes())
