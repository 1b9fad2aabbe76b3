"""The engine as the HTTP process sees it.
Knows neither torch nor on which thread or in which process the loop runs.

One `EngineLink` stands for the engine, one `EngineClient` for each model that it has loaded: during
a swap the old one still has its requests, whose tokens mean nothing to the new model.
"""

import asyncio
import itertools
import logging
import threading
import time
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from llm_runtime.contract import FatalReport, RuntimeConfig
from llm_runtime.engine.messages import (
    Cancel,
    CodecRead,
    Command,
    Done,
    DropAdapter,
    EngineFigures,
    Failed,
    Load,
    LoadAdapter,
    Ready,
    Report,
    Retire,
    StepReport,
    Submit,
    unpacked,
)
from llm_runtime.errors import EngineFailed, NotFound, QueueFull, ServiceUnavailable
from llm_runtime.request import (
    EmbeddingModel,
    EngineStats,
    FinishReason,
    GenerationRequest,
    TextCodec,
    TokenEvent,
)

log = logging.getLogger(__name__)

RETIRE_SECONDS = 5.0
"""Seconds after a swap in which requests that were given to the old model may still reach the
engine."""
STALL_SECONDS = 300.0
"""Seconds without any event after which an engine with requests counts as dead."""


class Channel(Protocol):
    """The way to the engine."""

    def send(self, command: Command) -> None:
        """Send a command. May be called on any thread, never blocks, and does nothing when the
        engine has gone."""
        ...

    def alive(self) -> bool: ...

    def close(self) -> None:
        """End the engine, and wait until it has gone."""
        ...


class EngineLink:
    """The engine's open streams, the calls that wait for an answer, and its last figures."""

    def __init__(self, stall_seconds: float = STALL_SECONDS) -> None:
        self.draining = False
        self._channel: Channel | None = None
        self._stall_seconds = stall_seconds
        self._mailboxes: dict[int, _Mailbox] = {}
        self._calls: dict[int, asyncio.Future[Ready | Done]] = {}
        self._codecs: dict[int, TextCodec] = {}
        """Codecs of models that are being loaded, by their calls."""
        self._numbers: Iterator[int] = itertools.count(1)
        self._figures = EngineFigures()
        self._heard_at = 0.0
        self._closing = self._lost = False
        self._death: FatalReport | None = None
        self._mourners: list[Callable[[FatalReport], None]] = []

    def connect(self, channel: Channel) -> None:
        """Before anything else."""
        self._channel = channel

    def send(self, command: Command) -> None:
        if self._channel:
            self._channel.send(command)

    def submit(self, client: "EngineClient", request: GenerationRequest) -> "ClientStream":
        """Raises ServiceUnavailable when no more requests are taken."""
        if self.draining or self._closing:
            raise ServiceUnavailable("this replica is shutting down; send the request again")
        if not self.alive:
            raise ServiceUnavailable("the engine has stopped; this replica is being restarted")
        if not self._mailboxes:
            self._heard_at = time.monotonic()
        number = next(self._numbers)
        mailbox = self._mailboxes[number] = _Mailbox(asyncio.get_running_loop(), client)
        client.outstanding += 1
        self.send(Submit(number, client.model, request))
        return ClientStream(self, number, mailbox)

    async def call(self, make: Callable[[int], Command]) -> Ready | Done:
        """Send what `make` makes of the call's number and wait for the answer.
        Raises EngineFailed."""
        number = next(self._numbers)
        answer = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        if self._lost:
            self._answer(number, EngineFailed(GONE))
        self.send(make(number))
        try:
            result: Ready | Done = await answer
        finally:
            self._calls.pop(number, None)
            self._codecs.pop(number, None)
        return result

    def receive(self, report: Report) -> None:
        """Take a report of the engine. Called on the event loop's thread or on the engine's."""
        self._heard_at = time.monotonic()
        match report:
            case StepReport(events, figures):
                self._figures = figures
                if events:
                    self._deliver(events)
            case CodecRead(call, codec):
                if call in self._calls:
                    self._codecs[call] = codec
                    # The engine has the weights to see to; this process has nothing else to do.
                    threading.Thread(target=codec.prepare, name="codec", daemon=True).start()
            case Ready(call, codec=None):
                self._answer(call, replace(report, codec=self._codecs.get(call)))
            case Ready() | Done():
                self._answer(report.call, report)
            case Failed(call, fatal, adapters):
                self._answer(call, EngineFailed(fatal, adapters))

    def lost(self, report: FatalReport | None = None) -> None:
        """Note that the engine has gone, and tell everyone who waits for it. `report` says why,
        unless it was asked to go."""
        self._lost = True
        reason = FinishReason.CANCELLED if self._closing else FinishReason.ERROR
        for number in list(self._mailboxes):
            self._deliver([(number, None, "", None, (), reason.value, "the engine has stopped", 0)])
        for number in list(self._calls):
            self._answer(number, EngineFailed(report or GONE))
        if report is not None and not self._closing:
            self._death = report
            for tell in self._mourners:
                tell(report)

    def on_death(self, tell: Callable[[FatalReport], None]) -> None:
        """Have `tell` called once when the engine goes and nobody wanted it to;
        now where that is past."""
        if self._death is not None:
            tell(self._death)
        else:
            self._mourners.append(tell)

    @property
    def alive(self) -> bool:
        """False when it has gone, or has requests and stands still."""
        stalled = self._quiet_seconds > self._stall_seconds
        return (
            not self._lost and not stalled and self._channel is not None and self._channel.alive()
        )

    @property
    def _quiet_seconds(self) -> float:
        """Every step is reported, also one that only reads prompts."""
        return time.monotonic() - self._heard_at if self._mailboxes else 0.0

    def stats(self) -> EngineStats:
        figures = self._figures
        open_ = len(self._mailboxes)
        running = min(figures.running, open_)
        return EngineStats(
            running,
            open_ - running,
            figures.kv_cache_usage_ratio,
            figures.steps,
            self.alive,
            figures.batch_size if open_ else 0,
            figures.prompt_tokens,
            figures.cached_prompt_tokens,
            figures.gpu_memory_bytes,
            guessed_tokens=figures.guessed_tokens,
            right_tokens=figures.right_tokens,
            quiet_seconds=self._quiet_seconds,
        )

    async def drain(self, timeout_seconds: float) -> None:
        """Admit nothing more and wait;
        what still runs after the time-out is cancelled and gets its final event."""
        self.draining = True
        deadline = time.monotonic() + timeout_seconds
        await self._empty(lambda: time.monotonic() < deadline)
        for number in list(self._mailboxes):
            self.send(Cancel(number))
        await self._empty(lambda: self.alive)

    def close(self) -> None:
        """End the engine after the step it is in; whatever was left ends as cancelled."""
        self._closing = True
        if self._channel:
            self._channel.close()

    async def _empty(self, patient: Callable[[], bool]) -> None:
        # Polled, because it happens only once in a process's life.
        while self._mailboxes and not self._lost and patient():  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    def _deliver(self, events: list[tuple[Any, ...]]) -> None:
        """Hand events to their streams, with one hop for each event loop, however many requests a
        step advanced; none for the loop that reads."""
        by_loop: dict[AbstractEventLoop, list[tuple[_Mailbox, TokenEvent]]] = {}
        for fields in events:
            mailbox = self._mailboxes.get(fields[0])
            if mailbox is None:
                continue
            event = unpacked(fields)
            if event.finish_reason is not None:
                del self._mailboxes[fields[0]]
                mailbox.over = True
                mailbox.client.outstanding -= 1
            by_loop.setdefault(mailbox.loop, []).append((mailbox, event))
        for loop, letters in by_loop.items():
            if not _hop(loop, partial(_hand_out, letters)):
                self._cancel_readers_of(loop)

    def _answer(self, call: int, answer: Ready | Done | EngineFailed) -> None:
        if (future := self._calls.pop(call, None)) is not None:
            _hop(future.get_loop(), partial(_settle, future, answer))
        elif isinstance(answer, Ready):  # Whoever wanted this model has stopped waiting for it.
            self.send(Retire(answer.model))

    def _cancel_readers_of(self, loop: AbstractEventLoop) -> None:
        """The event loop is closed, and its readers have gone with it."""
        for number, mailbox in list(self._mailboxes.items()):
            if mailbox.loop is loop:
                self.send(Cancel(number))


class EngineClient:
    """`request.Engine` for one model."""

    def __init__(self, link: EngineLink, ready: Ready) -> None:
        self._link = link
        self._capacity = ready.capacity
        self.model = ready.model
        self.limits = ready.limits
        assert ready.codec is not None
        self.codec = ready.codec
        self.device = ready.device
        self.adapters: tuple[str, ...] = ready.adapters
        """Names that a request may use."""
        self._own: dict[str, Any] = {
            "kind": ready.kind, "load_seconds": ready.load_seconds, "load_peak_bytes": ready.load_peak_bytes,
        }  # fmt: skip
        self.outstanding = 0
        """Requests that have not had their final event."""
        self._retired = False

    @property
    def max_model_length(self) -> int:
        """Tokens that prompt and answer may have together:
        the configured length, or the model's if that is less."""
        return self.limits.max_model_length

    @property
    def embedding(self) -> EmbeddingModel | None:
        """What the model's embeddings are like; None for a model that generates."""
        return self.limits.embedding

    def generate(self, request: GenerationRequest) -> "ClientStream":
        """Admit now. Raises InvalidRequest, NotFound, QueueFull, ServiceUnavailable."""
        self.limits.check(request)
        if request.adapter and request.adapter not in self.adapters:
            raise NotFound(
                f"there is no adapter {request.adapter}", param="model", code="model_not_found"
            )
        if self._retired:
            raise ServiceUnavailable("the model has just been replaced; send the request again")
        if self.outstanding >= self._capacity:
            raise QueueFull("as many requests are waiting as may; try again shortly")
        return self._link.submit(self, request)

    def stats(self) -> EngineStats:
        return replace(self._link.stats(), **self._own)

    def on_death(self, tell: Callable[[FatalReport], None]) -> None:
        """Have `tell` called once when the engine dies by itself;
        at once where it has died already."""
        self._link.on_death(tell)

    async def drain(self, timeout_seconds: float) -> None:
        """Admit nothing more and wait;
        what still runs after the time-out is cancelled and gets its final event."""
        await self._link.drain(timeout_seconds)

    def close(self) -> None:
        """End the engine; whatever was left ends as cancelled. Blocks until it has gone."""
        self._link.close()

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Load or replace a LoRA adapter while serving.
        Raises EngineFailed; without memory for it, others may be gone.

        Requests that run with the old one keep it.
        Over the limit, the adapter not used for longest leaves.
        """
        try:
            done = await self._link.call(lambda call: LoadAdapter(call, self.model, name, folder))
        except EngineFailed as failure:
            self.adapters = self.adapters if failure.adapters is None else failure.adapters
            raise
        assert isinstance(done, Done)
        self.adapters = done.adapters

    async def drop_adapter(self, name: str) -> None:
        """Refuse the adapter from now on, and return when its last request has ended and its memory
        is free."""
        if name not in self.adapters:
            raise NotFound(f"there is no adapter {name}", param="model", code="model_not_found")
        self.adapters = tuple(known for known in self.adapters if known != name)
        await self._link.call(lambda call: DropAdapter(call, self.model, name))

    async def swap(self, config: RuntimeConfig, folder: Path) -> "EngineClient":
        """Load another model while this one serves, and return its client.
        Raises EngineFailed: nothing has changed.

        From then on this client's requests run to their end on the old weights, which are freed
        after the last one. It still takes requests that were on their way for `RETIRE_SECONDS`.
        """
        client = await load(self._link, config, folder)
        asyncio.get_running_loop().call_later(RETIRE_SECONDS, self.retire)
        return client

    def retire(self) -> None:
        """Take no more requests; the weights are freed when the last one has ended."""
        self._retired = True
        self._link.send(Retire(self.model))


async def load(link: EngineLink, config: RuntimeConfig, folder: Path) -> EngineClient:
    """Have the engine load a model. Raises EngineFailed."""
    ready = await link.call(lambda call: Load(call, config, folder))
    assert isinstance(ready, Ready)
    return EngineClient(link, ready)


class ClientStream:
    """The events of one request.
    Leaving it early, by `aclose` or by forgetting it, cancels the request."""

    __slots__ = ("_link", "_mailbox", "_number", "_over")

    def __init__(self, link: EngineLink, number: int, mailbox: "_Mailbox") -> None:
        self._link = link
        self._number = number
        self._mailbox = mailbox
        self._over = False

    def __aiter__(self) -> "ClientStream":
        return self

    async def __anext__(self) -> TokenEvent:
        if self._over:
            raise StopAsyncIteration
        events = self._mailbox.events
        if not events:
            await self._mailbox.arrival()
        event = events.popleft()
        self._over = event.finish_reason is not None
        return event

    async def take(self) -> list[TokenEvent]:
        """All events that have come since, at least one; empty after the final one."""
        if self._over:
            return []
        events = self._mailbox.events
        if not events:
            await self._mailbox.arrival()
        taken = list(events)
        events.clear()
        self._over = taken[-1].finish_reason is not None
        return taken

    async def aclose(self) -> None:
        self._over = True
        self._cancel()

    def __del__(self) -> None:
        self._cancel()

    def _cancel(self) -> None:
        if not self._mailbox.over:
            self._link.send(Cancel(self._number))


class _Mailbox:
    """The events of one request, until they are read.

    The link holds the mailbox, not the stream,
    so that a stream that nobody holds any more is garbage-collected.
    """

    __slots__ = ("_waiter", "client", "events", "loop", "over")

    def __init__(self, loop: AbstractEventLoop, client: EngineClient) -> None:
        self.loop = loop
        self.client = client
        self.events: deque[TokenEvent] = deque()
        self.over = False
        """Whether the engine has sent the final event."""
        self._waiter: asyncio.Future[None] | None = None

    def put(self, event: TokenEvent) -> None:
        self.events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def arrival(self) -> None:
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


GONE = FatalReport(reason="EngineDied", message="the engine's process has ended; the log says more")


def _hand_out(letters: list[tuple[_Mailbox, TokenEvent]]) -> None:
    for mailbox, event in letters:
        mailbox.put(event)


def _settle(future: "asyncio.Future[Ready | Done]", answer: Ready | Done | EngineFailed) -> None:
    if future.done():
        return
    if isinstance(answer, EngineFailed):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _hop(loop: AbstractEventLoop, work: Callable[[], None]) -> bool:
    """Do `work` on the thread of `loop`, at once if that is this one.
    False when the loop is closed."""
    if asyncio._get_running_loop() is loop:
        work()
        return True
    try:
        loop.call_soon_threadsafe(work)
    except RuntimeError:
        return False
    return True
