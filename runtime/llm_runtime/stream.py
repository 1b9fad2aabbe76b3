"""Streaming to clients: merges several generations, sends server-sent events, and notices
clients that left."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from typing import Any, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llm_runtime import errors

T = TypeVar("T")

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 15.0
"""Proxies commonly cut a connection after 30 or 60 s without a byte."""
WATCH_AFTER_SECONDS = 0.02
"""Age of a request from which its client is watched for a disconnect."""
HEARTBEAT = b": still working\n\n"
DONE = b"data: [DONE]\n\n"

# One encoder for all calls: `json.dumps` with options builds one for each.
compact_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class ClientGone(Exception):
    """The client closed its connection before the answer was complete."""


def sse(data: Mapping[str, object]) -> bytes:
    """One server-sent event."""
    return f"data: {compact_json(data)}\n\n".encode()


def named_sse(data: Mapping[str, object]) -> bytes:
    """One server-sent event that is named after its `type`."""
    return f"event: {data['type']}\ndata: {compact_json(data)}\n\n".encode()


class EventSource(Protocol[T]):
    """Where events come from."""

    async def take(self) -> list[T]:
        """Wait for at least one event and return all available ones; empty at the end."""
        ...


async def merge(sources: Sequence[EventSource[T]]) -> AsyncGenerator[tuple[int, list[T]]]:
    """Yield events of all sources as they come, each with its source's index. Close it to stop."""
    if len(sources) == 1:  # By far the most common case needs no task and no queue.
        while events := await sources[0].take():
            yield 0, events
        return
    queue: asyncio.Queue[tuple[int, list[T]] | BaseException | None] = asyncio.Queue()
    pumps = [
        asyncio.create_task(_pump(index, source, queue)) for index, source in enumerate(sources)
    ]
    try:
        running = len(pumps)
        while running:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        await _stop(*pumps)


async def _pump(index: int, source: EventSource[T], queue: asyncio.Queue[Any]) -> None:
    try:
        while events := await source.take():
            queue.put_nowait((index, events))
        queue.put_nowait(None)
    except Exception as error:
        queue.put_nowait(error)


async def _stop(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def while_connected(
    receive: Receive, work: Coroutine[Any, Any, T], timeout_seconds: float
) -> T:
    """Await `work`. Raises `ClientGone` if the client disconnects first,
    `errors.RequestTimeout` after the timeout."""
    watch = None
    try:
        async with asyncio.timeout(timeout_seconds) as deadline, _Watch(receive, deadline) as watch:
            return await work
    except TimeoutError:
        if watch and watch.gone:
            raise ClientGone from None
        if not deadline.expired():
            raise
        message = (
            f"The answer was not complete after {timeout_seconds:g} s; ask for fewer tokens or"
            " stream."
        )
        raise errors.RequestTimeout(message, code="request_timeout") from None


class _Watch:
    """Expires `deadline` when the client disconnects.

    It starts its task only after a while, because most requests end before.
    """

    def __init__(self, receive: Receive, deadline: asyncio.Timeout) -> None:
        self._receive = receive
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self.gone = False

    async def __aenter__(self) -> "_Watch":
        self._timer = self._loop.call_later(WATCH_AFTER_SECONDS, self._start)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._task:
            await _stop(self._task)

    def _start(self) -> None:
        self._task = asyncio.create_task(self._until_disconnect())

    async def _until_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self._deadline.reschedule(self._loop.time())


class EventStream(Response):
    """A response that sends server-sent events as they are generated.

    `owner` is entered around the whole stream. Its exit sees `ClientGone`, `errors.RequestTimeout`
    or another error, and releases what the stream held. After the first byte, an error can't change
    the status any more, so it is sent as an event.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        owner: AbstractAsyncContextManager[object],
        events: AsyncGenerator[bytes],
        *,
        fault: Callable[[errors.Refusal], bytes],
        timeout_seconds: float,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        heartbeat: bytes = HEARTBEAT,
        done: bytes = DONE,
    ) -> None:
        """`heartbeat` is sent while nothing else is, and `done` behind the last event."""
        # Without X-Accel-Buffering, nginx would buffer the events of the whole answer.
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._owner = owner
        self._events = events
        self._fault = fault
        self._timeout_seconds = timeout_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._heartbeat = heartbeat
        self._done = done
        self._silent = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientGone):
            last = await self._run(receive, send)
            await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _run(self, receive: Receive, send: Send) -> bytes:
        """Send everything but the last bytes. Returns those: the end marker, or an error."""
        try:
            async with self._owner:
                await send(
                    {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                )
                await while_connected(receive, self._send_all(send), self._timeout_seconds)
        except errors.Refusal as refusal:
            return self._fault(refusal)
        except ClientGone:
            raise
        except Exception:
            log.exception("A stream failed")
            return self._fault(errors.GenerationFailed("The server failed to answer; see its log."))
        return self._done

    async def _send_all(self, send: Send) -> None:
        heart = asyncio.create_task(self._beat(send))
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    self._silent = False
                    await send({"type": "http.response.body", "body": event, "more_body": True})
        finally:
            await _stop(heart)

    async def _beat(self, send: Send) -> None:
        while True:
            self._silent = True
            await asyncio.sleep(self._heartbeat_seconds)
            if self._silent:
                await send(
                    {"type": "http.response.body", "body": self._heartbeat, "more_body": True}
                )
