"""Progress of a download or an upload: shown as a bar, or logged every few seconds."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in total),
from another thread, twice a second and once at the end."""

MIB = 1 << 20
LOG_SECONDS = 5.0
WINDOW_SECONDS = 10.0
"""Window over which the rate is averaged."""


class Rate:
    """Bytes per second over the last ten seconds. Call it with the bytes done so far."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def __call__(self, done: int) -> float:
        now = self._clock()
        self._seen.append((now, done))
        while now - self._seen[0][0] > WINDOW_SECONDS:
            self._seen.popleft()
        since, then = self._seen[0]
        return (done - then) / max(now - since, 0.001)


class LogProgress:
    """Logs a line every five seconds and at the end:
    bytes done, rate over the last ten seconds, time left."""

    def __init__(
        self, what: str = "model download", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what = what
        self._clock = clock
        self._rate = Rate(clock)
        self._began: tuple[float, int] | None = None
        self._logged_at = clock()
        self._ended = False

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        since, then = self._began = self._began or (now, done)
        rate = self._rate(done)
        if done >= total and not self._ended:
            self._ended = True
            self._log(done, total, (done - then) / max(now - since, 0.001))
        elif now - self._logged_at >= LOG_SECONDS and done < total:
            self._log(done, total, rate)

    def _log(self, done: int, total: int, rate: float) -> None:
        self._logged_at = self._clock()
        line = {
            "percent": 100 * done // max(total, 1),
            "done_mib": done // MIB,
            "total_mib": total // MIB,
            "megabytes_per_second": round(rate / 1e6, 1),
            "seconds_left": round((total - done) / rate) if rate > 0 else None,
        }
        log.info(self._what, extra=line)


@contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """Show a progress bar on standard error, for a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(what, *columns, console=Console(stderr=True), transient=True) as bar:
        # Shown with the first bytes: a local model has nothing to fetch.
        task = bar.add_task(what, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


@contextmanager
def watched(folder: Path, total: int, progress: Progress) -> Iterator[None]:
    """Report the growth of `folder` during the block.
    It is measured on the disk, so it works for every store."""
    over = threading.Event()

    def watch() -> None:
        progress(min(bytes_in(folder), total), total)
        while not over.wait(0.5):
            progress(min(bytes_in(folder), total), total)

    watcher = threading.Thread(target=watch, name="download-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    progress(total, total)


def bytes_in(folder: Path) -> int:
    """Bytes of the files directly in `folder`,
    without the holes of sparse files, whose pieces are still missing."""
    try:
        stats = [file.stat() for file in folder.iterdir() if file.is_file()]
        return sum(min(stat.st_size, stat.st_blocks * 512) for stat in stats)
    except OSError:  # The folder is being renamed or removed.
        return 0
