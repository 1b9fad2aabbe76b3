"""A partially downloaded file, and how much of it is safe on the disk,
so that a later attempt or process can resume.

Every 32 MiB the data is synced in the background, and then a mark with the safe length is written
beside it. Only marked data counts: after a power loss, or when pieces arrived out of order, a file
may be longer than its valid data.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from llm_runtime.errors import ModelCorrupt
from llm_runtime.fetching.promises import Hash, hash_of, is_kept

MARK_BYTES = 32 << 20
PIECE_BYTES = 16 << 20
READ_BYTES = 1 << 20

Piece = Callable[[int, int], Iterable[bytes]]
"""Returns the bytes from one position up to, but not including, another."""


class BadDownload(ModelCorrupt):
    """The received bytes are not those of the listed size or promised checksum. Worth a retry."""


class Part:
    """`<folder>/.part-<name>` until `finish` gives it its final name.

    `size` is the listed one, or the one in the first response if the listing has none. Up to
    `connections` may download pieces at the same time.
    """

    def __init__(
        self, folder: Path, name: str, size: int | None = None, connections: int = 1
    ) -> None:
        self.path = folder / f".part-{name}"
        self._mark = folder / f".mark-{name}"
        self._final = folder / name
        self.name = name
        self._listed = size
        self.connections = connections
        mark = self._marked()
        self.size: int | None = mark.get("size") if size is None else size
        self.safe_bytes: int = mark.get("bytes", 0)
        self.etag: str = mark.get("etag", "")
        """Identifies this edition of the file: its ETag or Last-Modified; "" without either."""
        self.promise: str = mark.get("promise", "")
        """Checksum of the whole file that the registry or store promised (see `promises`);
        "" without one."""
        self.sha256: str | None = None
        """Digest of the whole file;
        None until it is complete, or if a registry's own client wrote it."""

    @property
    def is_there(self) -> bool:
        """Whether the finished file exists with its full size."""
        return self._final.is_file() and self._final.stat().st_size == self.size

    @property
    def is_worth_pieces(self) -> bool:
        """Whether several connections would download the rest faster than one."""
        return (
            self.connections > 1
            and self.size is not None
            and self.size - self.safe_bytes >= 2 * PIECE_BYTES
        )

    def take(self, chunks: Iterable[bytes], start: int, etag: str) -> None:
        """Write `chunks` from byte `start` on, which is at most `safe_bytes`.
        Data received before an error is kept."""
        with self._writing(start, etag) as writing:
            for chunk in chunks:
                _put(writing.file.fileno(), chunk, writing.position)
                writing.took(chunk)

    def take_pieces(self, first: Iterable[bytes], piece: Piece, etag: str) -> None:
        """Write the rest of the file from `safe_bytes` on, in pieces over several connections.

        `first` is the first piece; `piece` opens the others. Pieces are written to their place as
        they arrive, and hashed in order: when the oldest is complete, it is read back (from the
        page cache) and hashed.
        """
        assert self.size is not None
        with (
            self._writing(self.safe_bytes, etag) as writing,
            ThreadPoolExecutor(self.connections) as pool,
        ):
            descriptor = writing.file.fileno()
            coming = deque[tuple[int, Future[None]]]()
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
        """Give the file its final name, after its data is on the disk."""
        if self.sha256 is None:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        self.path.chmod(0o644)
        self.path.replace(self._final)
        self._mark.unlink(missing_ok=True)

    def discard(self) -> None:
        """Delete all progress, so that the next attempt starts from the beginning."""
        self._mark.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self.safe_bytes = 0
        self.etag = ""
        self.promise = ""
        self.sha256 = None
        self.size = self._listed

    def mark(self, file: BinaryIO, position: int) -> None:
        """Sync `file` to the disk and record that its first `position` bytes are safe."""
        os.fsync(file.fileno())
        self.safe_bytes = position
        fresh = self._mark.with_name(f"{self._mark.name}.new")
        mark = {"bytes": position, "etag": self.etag, "size": self.size, "promise": self.promise}
        fresh.write_text(json.dumps(mark), encoding="utf-8")
        fresh.replace(self._mark)

    def _marked(self) -> dict[str, Any]:
        try:
            mark = json.loads(self._mark.read_text(encoding="utf-8"))
            return mark if self.path.stat().st_size >= mark["bytes"] else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    @contextmanager
    def _writing(self, start: int, etag: str) -> Iterator["_Writing"]:
        self.safe_bytes = start
        self.etag = etag
        with (
            self.path.open("r+b" if start else "w+b", buffering=0) as file,
            ThreadPoolExecutor(1) as disk,
        ):
            file.truncate(start)
            writing = _Writing(self, file, disk)
            for chunk in _read_back(file.fileno(), 0, start):
                writing.hashed(chunk)
            writing.position = start
            try:
                yield writing
            except BaseException:
                with suppress(
                    OSError
                ):  # Report the first error, not a second one of the same disk.
                    writing.settle()
                raise
            writing.settle()
        self.sha256 = writing.digest.hexdigest()
        if self.size in (None, self.safe_bytes):
            self._check_promise(writing.promised)

    def _check_promise(self, computed: Hash | None) -> None:
        promise = self.promise
        if computed is None or is_kept(promise, computed):
            return
        self.discard()
        raise BadDownload(
            f"{self.name} has {promise.partition(':')[0]}:{computed.hexdigest()}, but its registry"
            f" or store promised {promise}; upload it to the registry again"
        )


class _Writing:
    """A part's open file: hashes the data in order,
    and syncs it to the disk in the background from time to time."""

    def __init__(self, part: Part, file: BinaryIO, disk: ThreadPoolExecutor) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.position = 0
        self.promised = hash_of(part.promise) if part.promise else None
        self._part = part
        self._disk = disk
        self._marking: Future[None] | None = None

    def hashed(self, chunk: bytes) -> None:
        """Add `chunk` to the digests of the whole file."""
        self.digest.update(chunk)
        if self.promised:
            self.promised.update(chunk)

    def took(self, chunk: bytes) -> None:
        """Count `chunk`, which has been written right after the data before it."""
        self.hashed(chunk)
        self.position += len(chunk)
        if self.position - self._part.safe_bytes < MARK_BYTES or (
            self._marking and not self._marking.done()
        ):
            return
        if self._marking:
            self._marking.result()
        self._marking = self._disk.submit(self._part.mark, self.file, self.position)

    def settle(self) -> None:
        """Sync and mark everything that was received in order."""
        if self._marking:
            self._marking.result()
        self._part.mark(self.file, self.position)


def _bring(descriptor: int, begin: int, end: int, piece: Piece) -> None:
    _place(descriptor, begin, end, piece(begin, end))


def _place(descriptor: int, begin: int, end: int, chunks: Iterable[bytes]) -> None:
    position = begin
    for chunk in chunks:
        if position + len(chunk) > end:  # It would overwrite the next piece.
            raise ConnectionError(
                f"more bytes came than the {end - begin} asked for from byte {begin} on"
            )
        _put(descriptor, chunk, position)
        position += len(chunk)
    if position != end:
        raise ConnectionError(
            f"{position - begin} bytes came of {end - begin} from byte {begin} on"
        )


def _put(descriptor: int, chunk: bytes, position: int) -> None:
    left = memoryview(chunk)
    while left:
        written = os.pwrite(descriptor, left, position)
        left = left[written:]
        position = position + written


def _read_back(descriptor: int, begin: int, end: int) -> Iterator[bytes]:
    """Chunks of the file from `begin` to `end`. Recently written ones come from the page cache."""
    while begin < end:
        chunk = os.pread(descriptor, min(READ_BYTES, end - begin), begin)
        if not chunk:
            raise OSError(f"the file ends at byte {begin}, not at {end}")
        yield chunk
        begin += len(chunk)
