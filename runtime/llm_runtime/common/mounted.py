"""Follows a file of a mounted Secret or ConfigMap, which the kubelet may change while the
process runs. How often is said where it is used."""

import logging
from pathlib import Path

log = logging.getLogger(__name__)


class MountedFile:
    """Returns each version of the file once.
    An unreadable file has no new version; the next call tries again."""

    def __init__(self, path: Path, *, optional: bool = False) -> None:
        """With `optional`, a missing file is not logged as an error."""
        self.path = path
        self._optional = optional
        self._signature: tuple[int, ...] | None = None
        self._readable = True

    def news(self) -> bytes | None:
        """The content, if the file may have changed since the last call.
        Costs one stat if it has not."""
        try:
            stat = self.path.stat()
            # Changes when the kubelet swaps its `..data` link,
            # and when the file is written in place.
            signature = stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size
            # Read before the signature is stored:
            # after a failed read, the next call must try this version again.
            content = None if signature == self._signature else self.path.read_bytes()
        except OSError as error:
            if self._readable and not (self._optional and isinstance(error, FileNotFoundError)):
                log.error(
                    "%s can't be read; its last good content stays in force: %s", self.path, error
                )
                self._readable = False
            return None
        self._signature = signature
        self._readable = True
        return content
