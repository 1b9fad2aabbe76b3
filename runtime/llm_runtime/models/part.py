"""A file that is still coming: what of it is safe on the disk, from where a later attempt or process may go on.

Every 32 MiB the data is forced to the disk, while more of it comes, and a mark written beside it. Only what is marked
counts: a file may be longer than its data after the machine lost power, or where its pieces came out of order.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

MARK_BYTES = 32 << 20
PIECE_BYTES = 16 << 20
READ_BYTES = 1 << 20

Piece = Callable[[int, int], Iterable[bytes]]
"""The bytes from one position up to, not including, another."""


class Part:
    """`<folder>/.part-<name>` until `finish` gives it its name.

    `size` is what its listing says, None where that is silent; up to `connections` may bring it at the same time.
    """

    def __init__(self, folder: Path, name: str, size: int | None = None, connections: int = 1) -> None:
        self.path, self._mark, self._final = folder / f".part-{name}", folder / f".mark-{name}", folder / name
        self.size, self.connections = size, connections
        self.safe_bytes, self.etag = self._marked()
        self.sha256: str | None = None
        """Of the whole file; None where a registry's own client has written it."""

    @property
    def is_there(self) -> bool:
        """Whether the file has its name, and its size."""
        return self._final.is_file() and self._final.stat().st_size == self.size

    @property
    def is_worth_pieces(self) -> bool:
        """Whether several connections would bring what is missing sooner than one."""
        return self.connections > 1 and self.size is not None and self.size - self.safe_bytes >= 2 * PIECE_BYTES

    def take(self, chunks: Iterable[bytes], start: int, etag: str) -> None:
        """Write `chunks` from byte `start` on, at most `safe_bytes`. What arrives before an error is kept."""
        with self._writing(start, etag) as writing:
            for chunk in chunks:
                _put(writing.file.fileno(), chunk, writing.position)
                writing.took(chunk)

    def take_pieces(self, first: Iterable[bytes], piece: Piece, etag: str) -> None:
        """Write the rest of the file from `safe_bytes` on: the `first` piece, and meanwhile what follows from `piece`.

        Pieces go to their places as they come, and are hashed in their order.
        """
        assert self.size is not None
        with self._writing(self.safe_bytes, etag) as writing, ThreadPoolExecutor(self.connections) as pool:
            descriptor, coming = writing.file.fileno(), deque[tuple[int, Future[None]]]()
            starts = iter(range(writing.position, self.size, PIECE_BYTES))
            try:
                begin = next(starts)
                end = min(begin + PIECE_BYTES, self.size)
                coming.append((end, pool.submit(_place, descriptor, begin, end, first)))
                while coming:
                    while len(coming) <= self.connections and (begin := next(starts, -1)) >= 0:
                        end = min(begin + PIECE_BYTES, self.size)
                        coming.append((end, pool.submit(_bring, descriptor, begin, end, piece)))
                    end, future = coming.popleft()
                    future.result()
                    for chunk in _read_back(descriptor, writing.position, end):
                        writing.took(chunk)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def finish(self) -> None:
        """Give the file its name, when its data is on the disk."""
        if self.sha256 is None:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        self.path.chmod(0o644)
        self.path.replace(self._final)
        self._mark.unlink(missing_ok=True)

    def discard(self) -> None:
        """Begin anew."""
        self._mark.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self.safe_bytes, self.etag, self.sha256 = 0, "", None

    def mark(self, file: BinaryIO, position: int) -> None:
        """Force `file` to the disk and note that its first `position` bytes are safe."""
        os.fsync(file.fileno())
        self.safe_bytes = position
        fresh = self._mark.with_name(f"{self._mark.name}.new")
        fresh.write_text(json.dumps({"bytes": position, "etag": self.etag}), encoding="utf-8")
        fresh.replace(self._mark)

    def _marked(self) -> tuple[int, str]:
        try:
            mark = json.loads(self._mark.read_text(encoding="utf-8"))
            found, etag = int(mark["bytes"]), str(mark["etag"])
            return (found, etag) if self.path.stat().st_size >= found else (0, "")
        except (OSError, ValueError, KeyError, TypeError):
            return 0, ""

    @contextmanager
    def _writing(self, start: int, etag: str) -> Iterator["_Writing"]:
        self.safe_bytes, self.etag = start, etag
        with self.path.open("r+b" if start else "w+b", buffering=0) as file, ThreadPoolExecutor(1) as disk:
            file.truncate(start)
            writing = _Writing(self, file, disk)
            for chunk in _read_back(file.fileno(), 0, start):
                writing.digest.update(chunk)
            writing.position = start
            try:
                yield writing
            except BaseException:
                with suppress(OSError):  # The first error is the one to tell.
                    writing.settle()
                raise
            writing.settle()
        self.sha256 = writing.digest.hexdigest()


class _Writing:
    """A part's open file: what of it has come in order, hashed, and now and then forced to the disk meanwhile."""

    def __init__(self, part: Part, file: BinaryIO, disk: ThreadPoolExecutor) -> None:
        self.file, self.digest, self.position = file, hashlib.sha256(), 0
        self._part, self._disk = part, disk
        self._marking: Future[None] | None = None

    def took(self, chunk: bytes) -> None:
        """`chunk` is in the file, right after what was there."""
        self.digest.update(chunk)
        self.position += len(chunk)
        if self.position - self._part.safe_bytes < MARK_BYTES or (self._marking and not self._marking.done()):
            return
        if self._marking:
            self._marking.result()
        self._marking = self._disk.submit(self._part.mark, self.file, self.position)

    def settle(self) -> None:
        """Everything that came in order is safe."""
        if self._marking:
            self._marking.result()
        self._part.mark(self.file, self.position)


def _bring(descriptor: int, begin: int, end: int, piece: Piece) -> None:
    _place(descriptor, begin, end, piece(begin, end))


def _place(descriptor: int, begin: int, end: int, chunks: Iterable[bytes]) -> None:
    position = begin
    for chunk in chunks:
        if position + len(chunk) > end:  # Not over the next piece.
            raise ConnectionError(f"more bytes came than the {end - begin} asked for from byte {begin} on")
        _put(descriptor, chunk, position)
        position += len(chunk)
    if position != end:
        raise ConnectionError(f"{position - begin} bytes came of {end - begin} from byte {begin} on")


def _put(descriptor: int, chunk: bytes, position: int) -> None:
    left = memoryview(chunk)
    while left:
        written = os.pwrite(descriptor, left, position)
        left, position = left[written:], position + written


def _read_back(descriptor: int, begin: int, end: int) -> Iterator[bytes]:
    """What was just written comes from memory."""
    while begin < end:
        chunk = os.pread(descriptor, min(READ_BYTES, end - begin), begin)
        if not chunk:
            raise OSError(f"the file ends at byte {begin}, not at {end}")
        yield chunk
        begin += len(chunk)
