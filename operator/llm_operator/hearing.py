"""Whether the watches still hear from the API server, as an aiohttp middleware sees it in the
answers to their requests."""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import aiohttp

from llm_operator.ports.cluster import path_of

NOT_ASKED = (
    "it has not been asked for yet; if this lasts, the API server does not know the kind: install"
    " its CRD"
)
GRACE_SECONDS = 10.0
"""A stream that ended is opened again within moments;
one that stays closed for longer counts as lost."""
REFUSALS = (403, 404)


@dataclass
class _Stream:
    kind: str
    namespace: str
    lost_at: float | None
    """Since when it has not been open; None while it is."""
    opened: bool = False
    """Whether it ever was open: the watcher opens it once the first list has been read to its
    end."""
    why: str = ""
    """How its last request went; empty before the first."""
    refused: bool = False
    """Whether the rights or the namespace were missing,
    so that another process would be refused as well."""


class Hearing:
    """One stream for each kind and namespace ("" for all of them).

    A stream is heard once its first list has been answered and its watch is open. A silent stream
    is replaced by the watcher after its inactivity time-out, so a connection that has died without
    a word counts as open until then. Written by the watches' thread and read by others: each field
    is replaced whole.
    """

    def __init__(
        self,
        kinds: Iterable[str],
        namespaces: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        places = tuple(namespaces) or ("",)
        self._streams = {
            path_of(kind, place): _Stream(kind, place, None) for kind in kinds for place in places
        }
        self._begun = False
        self._trouble = ""
        """How the last request for anything else failed:
        without discovery no stream is asked for."""

    def begin(self) -> None:
        """From now on every stream is expected to be heard."""
        for stream in self._streams.values():
            stream.lost_at = self._clock()
        self._begun = True

    async def observe(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """The middleware: passes everything on and notes how it went."""
        stream = self._stream(request.url.path)
        watching = request.url.query.get("watch") == "true"
        if stream is not None:
            # It is asked for again, or listed again, so the stream before has ended.
            self._lost(stream, f"its {'watch' if watching else 'list'} is not answered yet")
        try:
            answer = await handler(request)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._lost(stream, f"{type(error).__name__}: {error}")
            raise
        if answer.status >= 400:
            self._lost(
                stream,
                f"{answer.status}: {_message(await answer.text())}",
                refused=answer.status in REFUSALS,
            )
        elif stream is None:
            self._trouble = ""
        elif watching:
            stream.lost_at = None
            stream.opened = True
            stream.refused = False
        elif not stream.opened:
            stream.why = "its first list is being read"
        return answer

    def _lost(self, stream: _Stream | None, why: str, *, refused: bool = False) -> None:
        if stream is None:
            self._trouble = why
            return
        if stream.lost_at is None:
            stream.lost_at = self._clock()
        stream.why = why
        stream.refused = refused

    def missing(self) -> list[str]:
        """One sentence for each stream that is not heard; empty: all are."""
        if not self._begun:
            return ["the watches have not begun yet"]
        now = self._clock()
        return [
            self._describe(stream)
            for stream in self._streams.values()
            if not self._heard(stream, now)
        ]

    def _describe(self, stream: _Stream) -> str:
        where = f" in namespace {stream.namespace}" if stream.namespace else ""
        return (
            f"the watch of {stream.kind}{where} hears nothing:"
            f" {stream.why or self._trouble or NOT_ASKED}"
        )

    def kinds(self) -> dict[str, bool]:
        """By kind: whether all of its streams are heard; empty before the watches begin."""
        if not self._begun:
            return {}
        now = self._clock()
        found = dict[str, bool]()
        for stream in self._streams.values():
            found[stream.kind] = found.get(stream.kind, True) and self._heard(stream, now)
        return found

    def open(self, kind: str, namespace: str) -> bool:
        """Whether the stream of a kind in a namespace ("" for all) is open now."""
        stream = self._streams.get(path_of(kind, namespace))
        return self._begun and stream is not None and stream.opened and stream.lost_at is None

    def place(self, path: str) -> tuple[str, str] | None:
        """Kind and namespace of the stream whose collection has this path."""
        stream = self._stream(path)
        return (stream.kind, stream.namespace) if stream else None

    def _stream(self, path: str) -> _Stream | None:
        # By its end: an API server may lie behind a path of its own.
        found = (each for known, each in self._streams.items() if path.endswith(known))
        return next(found, None)

    def silence(self) -> float:
        """Seconds for which the stream that has been missed longest has not been open; 0: all are
        open.

        Refused streams do not count: a namespace that is gone must not end the operator of all the
        others.
        """
        now = self._clock()
        missed = [s for s in self._streams.values() if not s.refused]
        return max((now - s.lost_at for s in missed if s.lost_at is not None), default=0.0)

    @staticmethod
    def _heard(stream: _Stream, now: float) -> bool:
        lost_at = stream.lost_at
        return lost_at is None or (stream.opened and now - lost_at < GRACE_SECONDS)


def _message(body: str) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200]
