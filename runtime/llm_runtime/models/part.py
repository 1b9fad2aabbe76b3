"""A file that is still coming: what of it is safe on the disk, from where a later attempt or process may go on.

Every 32 MiB the data is forced to the disk and a mark written beside it. Only what is marked counts: a file may be
longer than its data after the machine lost power.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

MARK_BYTES = 32 << 20
READ_BYTES = 1 << 20


class Part:
    """`<folder>/.part-<name>` until `finish` gives it its name."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path, self._mark, self._final = folder / f".part-{name}", folder / f".mark-{name}", folder / name
        self.safe_bytes, self.etag = self._marked()
        self.sha256: str | None = None
        """Of the whole file; None where a registry's own client has written it."""

    def take(self, chunks: Iterable[bytes], start: int, etag: str) -> None:
        """Write `chunks` from byte `start` on, at most `safe_bytes`. What arrives before an error is kept."""
        self.safe_bytes, self.etag = start, etag
        with self.path.open("r+b" if start else "w+b") as file:
            file.truncate(start)
            digest = hashlib.sha256()
            while chunk := file.read(READ_BYTES):
                digest.update(chunk)
            try:
                for chunk in chunks:
                    file.write(chunk)
                    digest.update(chunk)
                    if file.tell() - self.safe_bytes >= MARK_BYTES:
                        self._save(file)
            except BaseException:
                with suppress(OSError):  # The first error is the one to tell.
                    self._save(file)
                raise
            self._save(file)
        self.sha256 = digest.hexdigest()

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

    def _save(self, file: BinaryIO) -> None:
        file.flush()
        os.fsync(file.fileno())
        self.safe_bytes = file.tell()
        fresh = self._mark.with_name(f"{self._mark.name}.new")
        fresh.write_text(json.dumps({"bytes": self.safe_bytes, "etag": self.etag}), encoding="utf-8")
        fresh.replace(self._mark)

    def _marked(self) -> tuple[int, str]:
        try:
            mark = json.loads(self._mark.read_text(encoding="utf-8"))
            found, etag = int(mark["bytes"]), str(mark["etag"])
            return (found, etag) if self.path.stat().st_size >= found else (0, "")
        except (OSError, ValueError, KeyError, TypeError):
            return 0, ""
