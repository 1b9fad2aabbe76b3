"""Bounds on client connections that uvicorn lacks,
against clients that would exhaust memory or connections.

- A head (request line and headers) is bounded in size and time.
  A larger one gets status 431, a slower one is closed.
- A body has no transfer coding but chunks. The parser would hand on others as if they were none.
- If a request is answered before its body has ended, the body gets a short grace period.
  If the connection were closed
  at once, the client would often see a reset instead of the answer.
- A client that does not read its answer is disconnected.
- The number of connections is bounded.
  Beyond it, the address with the most connections loses its oldest one that is
  waiting for the client to send a request, or the rest of one.

HTTP/1.0 has no chunked encoding, so an answer without a length ends with its connection.
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
"""Time after which a client that reads nothing of its answer is disconnected."""

CONNECTIONS = 2048
"""Most connections of all clients together."""

_numbers = count()
"""Numbers connections in the order of acceptance.
The loop's clock is too coarse: many have the same time."""

TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-type:"
    b" text/plain; charset=utf-8\r\ncontent-length: 27\r\n\r\nThe headers are too large.\n"
)


class Connection(HttpToolsProtocol):
    """A client's connection, with the bounds above."""

    head_seconds = HEAD_SECONDS
    leftover_seconds = LEFTOVER_SECONDS
    stalled_seconds = STALLED_SECONDS
    most_connections = CONNECTIONS

    _head_bytes = 0
    """Bytes of the incoming head so far, without the data that contains its end."""
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
        if any(n == b"transfer-encoding" and v.lower() != b"chunked" for n, v in self.headers):
            raise ValueError("unknown transfer coding")  # 400, and the connection is closed.
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
        """Address of the peer, which may be a proxy."""
        return self.client[0] if self.client else ""

    @property
    def awaits_client(self) -> bool:
        """Whether the client must send next: no answer is being computed or sent."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def _make_room(self) -> None:
        active = [
            other
            for other in self.connections
            if isinstance(other, Connection) and not other.transport.is_closing()
        ]
        [(largest, _)] = Counter(other.host for other in active).most_common(1)
        waiting = [
            other
            for other in active
            if other.host == largest and other.awaits_client and other is not self
        ]
        if waiting:
            min(waiting, key=lambda other: other._number).transport.close()
        elif self.host == largest:
            self.transport.close()

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(self.head_seconds, self.transport.close)


def _end_with_connection(cycle: RequestResponseCycle) -> None:
    """Send an answer without a length unframed.
    uvicorn would use chunks, and would check the length of the body."""
    send = cycle.send
    unframed = False

    async def plainly(message: ASGISendEvent) -> None:
        nonlocal unframed
        if message["type"] == "http.response.start":
            unframed = all(
                name.lower() != b"content-length" for name, _ in message.get("headers", ())
            )
            cycle.chunked_encoding = False if unframed else None
        elif message["type"] == "http.response.body" and unframed:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    cycle.send = plainly  # type: ignore[method-assign]
