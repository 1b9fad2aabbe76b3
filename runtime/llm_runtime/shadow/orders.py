"""Orders for shadow traffic, from mounted files: who copies to whom, and this pod's part in it."""

import hmac
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from llm_runtime import errors
from llm_runtime.common.mounted import MountedFile
from llm_runtime.contract import ShadowedAdapter, ShadowFile

log = logging.getLogger(__name__)

CHECK_SECONDS = 0.05
"""A stat of the file takes two microseconds, and is made for a request only."""


@dataclass(frozen=True, slots=True)
class Order:
    """One candidate that this pod sends copies to."""

    candidate: str
    percent: float
    max_in_flight: int
    token: str = field(repr=False)
    url: str = ""
    """Empty: to this very server."""
    adapter: str = ""
    """The candidate is a version of this adapter, and is sent its requests alone."""


class Orders:
    """What the files say. Without one, or with one that can't be read,
    nothing is copied to another revision and no copy of one is taken."""

    def __init__(
        self,
        path: Path,
        pod: str,
        adapters: Callable[[], Iterable[ShadowedAdapter]] = tuple,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`pod`: this pod's name. `adapters`: their candidates that are to be sent copies here."""
        self._file = MountedFile(path, optional=True)
        self._path = path
        self._pod = pod
        self._adapters = adapters
        self._own = secrets.token_urlsafe(32)
        """What this process' copies to itself carry. It never leaves it."""
        self._clock = clock
        self._checked_at = -CHECK_SECONDS
        self._now: ShadowFile | None = None

    @property
    def copying(self) -> tuple[Order, ...]:
        """To whom this pod is to copy."""
        now = self._current()
        found = [self._to_itself(each) for each in self._adapters() if self._is(each.pods)]
        if now and self._is(now.stable):
            order = Order(now.candidate, now.percent, now.max_in_flight, now.token, now.url)
            found.append(order)
        return tuple(found)

    def _to_itself(self, each: ShadowedAdapter) -> Order:
        return Order(
            each.candidate, each.percent, each.max_in_flight, self._own, adapter=each.adapter
        )

    def check(self, token: str) -> bool:
        """Let a copy in; True: this very pod sends it to a candidate of an adapter.
        Raises `errors.Unauthorized` for one that this pod must not take."""
        if hmac.compare_digest(token.encode(), self._own.encode()):
            return True
        now = self._current()
        taken = now and self._is(now.candidate)
        if not now or not hmac.compare_digest(token.encode(), now.token.encode()) or not taken:
            message = (
                "This is no copy that this server takes; a client sends its request without that"
                " header."
            )
            raise errors.Unauthorized(message, code="invalid_api_key")
        return False

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
