"""The list of adapters as a mounted file says it now."""

import logging
from pathlib import Path

from pydantic import ValidationError

from llm_runtime.common.mounted import MountedFile
from llm_runtime.contract import AdapterFile

log = logging.getLogger(__name__)

NOTHING = AdapterFile()


class AdapterList:
    """The last good content of the file;
    one that is broken or gone changes nothing. Without a file there are none."""

    def __init__(self, path: Path) -> None:
        self.wanted = NOTHING
        self._file = MountedFile(path, optional=True)
        self.refresh()

    def refresh(self) -> bool:
        """Look at the file; cheap enough to do so all the time.
        True when `wanted` is another now."""
        content = self._file.news()
        return content is not None and self._take(content)

    def _take(self, content: bytes) -> bool:
        before = self.wanted
        try:
            self.wanted = AdapterFile.model_validate_json(content)
        except ValidationError as error:
            # Without the input: it holds credentials.
            faults = "; ".join(
                f"{'.'.join(map(str, e['loc']))}: {e['msg']}"
                for e in error.errors(include_input=False)
            )
            log.error(
                "The list of adapters %s is not valid (%s); the last good one stays in force",
                self._file.path,
                faults,
            )
        return self.wanted != before
