"""One connection, bounded in every direction: uvicorn's protocol trusts its clients with its memory and its patience.

- A head (request line and headers) has a size and a time; what is larger gets 431, what is slower is closed.
- A body that nobody wants any more, because the request is answered, has a moment to end. Closed at once, its client
  would often see a reset instead of the answer.
- A client that takes nothing of its answer is cut off.
- There are so many connections. One more, and the address with the most of them loses its own oldest that waits for
  something to come from there: a request, or the rest of one.

And HTTP/1.0 knows no chunks: an answer without a length ends with its connection.
"""

import asyncio
from collections import Counter
from itertools import count

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEAD_BYTES = 64 << 10
HEAD_SECONDS = 15.0
LEFTOVER_BYTES = 1 << 20
LEFTOVER_SECONDS = 1.0
STALLED_SECONDS = 60.0
"""Nothing of what waits to be sent was taken for so long."""

CONNECTIONS = 2048
"""Of all clients together."""

_numbers = count()
"""In the order in which connections were accepted: many are within one tick of the loop's clock."""

TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 27\r\n\r\nThe headers are too large.\n"
)


class Connection(HttpToolsProtocol):
    """A client's connection."""

    head_seconds = HEAD_SECONDS
    leftover_seconds = LEFTOVER_SECONDS
    stalled_seconds = STALLED_SECONDS
    most_connections = CONNECTIONS

    _head_bytes = 0
    """Of the head that is coming in; without those that came together with its end."""
    _leftover_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _leftover_timer: asyncio.TimerHandle | None = None
    _stalled_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._number = next(_numbers)
        if len(self.connections) > self.most_connections:
            self._make_room()
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._leftover_timer, self._stalled_timer):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._leftover_timer:
            self._leftover_bytes += len(data)
            if self._leftover_bytes > LEFTOVER_BYTES:
                self.transport.close()
                return
        super().data_received(data)
        if self._head_timer and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.transport.write(TOO_LARGE)
                self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
        self._head_timer = None
        self._head_bytes = 0
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":
            _end_with_connection(self.cycle)

    def on_message_complete(self) -> None:
        if self._leftover_timer:
            self._leftover_timer.cancel()
            self._leftover_timer = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        unfinished = self.cycle.more_body and not self.pipeline
        super().on_response_complete()
        if unfinished and not self.transport.is_closing():
            self._leftover_bytes = 0
            self._leftover_timer = self.loop.call_later(self.leftover_seconds, self.transport.close)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled_timer = self.loop.call_later(self.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stalled_timer:
            self._stalled_timer.cancel()
            self._stalled_timer = None
        super().resume_writing()

    @property
    def host(self) -> str:
        """Who is at the other end of it, be it a proxy."""
        return self.client[0] if self.client else ""

    @property
    def awaits_client(self) -> bool:
        """Whether what comes next must come from there; not while an answer is on its way."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def _make_room(self) -> None:
        others = [each for each in self.connections if isinstance(each, Connection) and not each.transport.is_closing()]
        [(crowd, _)] = Counter(each.host for each in others).most_common(1)
        waiting = [each for each in others if each.host == crowd and each.awaits_client and each is not self]
        if waiting:
            min(waiting, key=lambda each: each._number).transport.close()
        elif self.host == crowd:
            self.transport.close()

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(self.head_seconds, self.transport.close)


def _end_with_connection(cycle: RequestResponseCycle) -> None:
    """Let an answer without a length go out as it is; uvicorn would send it in chunks, and counts what it sends."""
    send = cycle.send
    unframed = False

    async def plainly(message: ASGISendEvent) -> None:
        nonlocal unframed
        if message["type"] == "http.response.start":
            unframed = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
            cycle.chunked_encoding = False if unframed else None
        elif message["type"] == "http.response.body" and unframed:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    cycle.send = plainly  # type: ignore[method-assign]
