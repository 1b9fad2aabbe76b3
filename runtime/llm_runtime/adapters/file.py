"""The list of adapters as a mounted file says it now."""

import logging
from pathlib import Path

from pydantic import ValidationError

from llm_runtime.contract import AdapterFile

log = logging.getLogger(__name__)

NOTHING = AdapterFile()


class AdapterList:
    """The last good content of the file; one that is broken or gone changes nothing. Without a file there are none."""

    def __init__(self, path: Path) -> None:
        self.wanted = NOTHING
        self._path = path
        self._signature: tuple[int, ...] | None = None
        self.refresh()

    def refresh(self) -> bool:
        """Look at the file; cheap enough to do so all the time. True when `wanted` is another now."""
        try:
            found = self._path.stat()
        except OSError:
            return False
        # What changes when the kubelet swaps its `..data` link or somebody writes in place.
        signature = found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
        if signature == self._signature:
            return False
        self._signature = signature
        return self._read()

    def _read(self) -> bool:
        before = self.wanted
        try:
            self.wanted = AdapterFile.model_validate_json(self._path.read_bytes())
        except ValidationError as error:
            # Without the input: it holds credentials.
            faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
            log.error("The list of adapters %s is not valid (%s); the last good one stays in force", self._path, faults)
        except OSError as error:
            log.error("The list of adapters %s can't be read (%s); the last good one stays in force", self._path, error)
        return self.wanted != before
