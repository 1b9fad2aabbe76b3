"""How far a download or an upload is, told to whoever watches: a bar, or a log line at most every two seconds."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in total), from another thread, twice a second and once at the end."""

MIB = 1 << 20


class LogProgress:
    """A line at every tenth of the way, but none within two seconds of the last, and one every ten seconds anyway."""

    def __init__(self, what: str = "model download") -> None:
        self._what = what
        self._logged_at, self._tenth = time.monotonic(), -1

    def __call__(self, done: int, total: int) -> None:
        tenth, silent_seconds = 10 * done // max(total, 1), time.monotonic() - self._logged_at
        if (
            (tenth > self._tenth and silent_seconds >= 2)
            or silent_seconds >= 10
            or (done >= total and self._tenth < 10)
        ):
            self._logged_at, self._tenth = time.monotonic(), tenth
            log.info(self._what, extra={"done_mib": done // MIB, "total_mib": total // MIB, "percent": 10 * tenth})


@contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """A bar on standard error, for a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bar(what, *columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def watched(folder: Path, total: int, progress: Progress) -> Iterator[None]:
    """Report the growth of `folder` during the block. Looking at the disk works for every artifact store."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            progress(min(_bytes_in(folder), total), total)

    watcher = threading.Thread(target=watch, name="download-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    progress(total, total)


def _bytes_in(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    except OSError:  # The folder is being renamed or removed.
        return 0
