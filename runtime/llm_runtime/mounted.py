"""A file that the kubelet changes below a running process: a key or file of a mounted Secret or ConfigMap."""

import logging
from pathlib import Path

log = logging.getLogger(__name__)


class MountedFile:
    """Gives each version of the file once. While it can't be read nothing is new, and the next look tries again."""

    def __init__(self, path: Path, *, optional: bool = False) -> None:
        """`optional`: a file that is not there is no fault, and is not logged."""
        self.path = path
        self._optional = optional
        self._signature: tuple[int, ...] | None = None
        self._readable = True

    def news(self) -> bytes | None:
        """The content, where it may be another than the last that was given. One stat where it is not."""
        try:
            found = self.path.stat()
            # What changes when the kubelet swaps its `..data` link or somebody writes in place.
            signature = found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
            # Before the signature is kept: a read that fails (no more file handles, say) must not hide this version.
            content = None if signature == self._signature else self.path.read_bytes()
        except OSError as error:
            if self._readable and not (self._optional and isinstance(error, FileNotFoundError)):
                log.error("%s can't be read; its last good content stays in force: %s", self.path, error)
                self._readable = False
            return None
        self._signature = signature
        self._readable = True
        return content
