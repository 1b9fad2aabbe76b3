"""Orders for shadow traffic, from a mounted file: who copies to whom, and this pod's part in it."""

import hmac
import logging
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from llm_runtime import errors
from llm_runtime.common.mounted import MountedFile
from llm_runtime.contract import ShadowFile

log = logging.getLogger(__name__)

CHECK_SECONDS = 0.05
"""A stat of the file takes two microseconds, and is made for a request only."""


class Orders:
    """What the file says. Without one, or with one that can't be read,
    nothing is copied and no copy is taken."""

    def __init__(
        self, path: Path, pod: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`pod`: this pod's name."""
        self._file = MountedFile(path, optional=True)
        self._path = path
        self._pod = pod
        self._clock = clock
        self._checked_at = -CHECK_SECONDS
        self._now: ShadowFile | None = None

    @property
    def copying(self) -> ShadowFile | None:
        """How this pod is to copy; None where it is not."""
        now = self._current()
        return now if now and self._is(now.stable) else None

    def check(self, token: str) -> None:
        """Let a copy in. Raises `errors.Unauthorized` for one that this pod must not take."""
        now = self._current()
        taken = now and self._is(now.candidate)
        if not now or not hmac.compare_digest(token.encode(), now.token.encode()) or not taken:
            message = (
                "This is no copy that this server takes; a client sends its request without that"
                " header."
            )
            raise errors.Unauthorized(message, code="invalid_api_key")

    def _is(self, owner: str) -> bool:
        return self._pod.startswith(f"{owner}-")

    def _current(self) -> ShadowFile | None:
        now = self._clock()
        if now - self._checked_at >= CHECK_SECONDS:
            self._checked_at = now
            if (content := self._file.news()) is not None:
                self._now = self._read(content)
            elif self._now and not self._path.exists():
                self._now = None
        return self._now

    def _read(self, content: bytes) -> ShadowFile | None:
        try:
            return ShadowFile.model_validate_json(content)
        except ValidationError as error:
            # Without the input: it holds the token.
            faults = "; ".join(
                f"{'.'.join(map(str, e['loc']))}: {e['msg']}"
                for e in error.errors(include_input=False)
            )
            log.error("The file %s is not valid (%s); nothing is copied", self._path, faults)
            return None
