"""The engine's thread, and its bridge to asyncio.

The thread runs `schedule → forward → advance` and hands the events of a step to each event loop in one call. Event
loops only queue, cancel and read. The lock covers the scheduler's bookkeeping, never a forward.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from llm_runtime.engine.limits import RequestLimits
from llm_runtime.engine.scheduler import Batch, Delivery, Scheduler
from llm_runtime.engine.sequence import Sampled, Sequence, Vocabulary
from llm_runtime.errors import ServiceUnavailable
from llm_runtime.request import EngineStats, FinishReason, GenerationRequest, TokenEvent

log = logging.getLogger(__name__)

MAX_FAILURES = 3
"""So many failed steps in a row mean that the device or the model is broken, not a request."""


class Runner(Protocol):
    """The computing half: the real one needs torch, the tests' one a script."""

    def forward(self, batch: Batch) -> list[Sampled]: ...


class ContinuousEngine:
    """`request.Engine` over a scheduler and a runner. Start it before use; close it at the end."""

    adapters: tuple[str, ...] = ()

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        vocabulary: Vocabulary,
        limits: RequestLimits,
        stall_seconds: float = 300.0,
    ) -> None:
        """`stall_seconds`: a step that takes longer counts as a dead engine."""
        self._scheduler, self._runner, self._vocabulary = scheduler, runner, vocabulary
        self._limits, self._stall_seconds = limits, stall_seconds
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._mailboxes: dict[Sequence, _Mailbox] = {}
        self._draining = self._closing = self._dead = False
        self._steps = self._failures = 0
        self._step_started: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def max_model_length(self) -> int:
        """Tokens that prompt and answer may have together: the configured length, or the model's if that is less."""
        return self._limits.max_model_length

    def start(self) -> "ContinuousEngine":
        self._thread.start()
        return self

    def generate(self, request: GenerationRequest) -> "TokenStream":
        """Admit now (raises QueueFull, InvalidRequest, ServiceUnavailable); the iterator has `aclose` to cancel."""
        self._limits.check(request)
        sequence = Sequence(request, self._vocabulary)
        mailbox = _Mailbox(asyncio.get_running_loop(), asyncio.Queue())
        with self._lock:
            self._refuse_when_closed()
            self._scheduler.add(sequence)
            self._mailboxes[sequence] = mailbox
        self._wake.set()
        return TokenStream(self, sequence, mailbox)

    def stats(self) -> EngineStats:
        with self._lock:
            running, waiting = self._scheduler.running, len(self._scheduler.waiting)
            cached = sum(sequence.computed for sequence in running)
            room = self._scheduler.slots * self._limits.max_model_length
            return EngineStats(len(running), waiting, cached / room, self._steps, self._alive())

    async def drain(self, timeout_seconds: float) -> None:
        """Admit nothing more and wait; what still runs after the time-out is cancelled and gets its final event."""
        self._draining = True
        deadline = time.monotonic() + timeout_seconds
        await self._empty(lambda: time.monotonic() < deadline)
        for sequence in list(self._mailboxes):
            self.cancel(sequence)
        await self._empty(self._alive)

    def close(self) -> None:
        """End the thread after the step it is in; whatever was left ends as cancelled."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=10.0)

    def cancel(self, sequence: Sequence) -> None:
        """Give the sequence's place away at the next step."""
        sequence.cancelled = True
        self._wake.set()

    async def _empty(self, patient: Callable[[], bool]) -> None:
        # Polled, because what is waited for happens on another thread, and only once in a process's life.
        while self._mailboxes and self._thread.is_alive() and patient():  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    def _alive(self) -> bool:
        started = self._step_started
        stalled = started is not None and time.monotonic() - started > self._stall_seconds
        return self._thread.is_alive() and not self._dead and not stalled

    def _refuse_when_closed(self) -> None:
        if self._draining or self._closing:
            raise ServiceUnavailable("this replica is shutting down; send the request again")
        if self._dead or not self._thread.is_alive():
            raise ServiceUnavailable("the engine has stopped after repeated failures; this replica is being restarted")

    def _run(self) -> None:
        try:
            while not self._closing and not self._dead:
                self._wake.clear()
                if not self._try_step():
                    self._wake.wait()
        finally:
            self._end_all()

    def _try_step(self) -> bool:
        self._step_started = time.monotonic()
        try:
            worked = self._step()
            self._failures = 0 if worked else self._failures
            return worked
        except Exception as error:
            self._fail(error)
            return True
        finally:
            self._step_started = None

    def _step(self) -> bool:
        with self._lock:
            dropped = self._scheduler.drop_cancelled()
            batch = self._scheduler.next_batch()
        self._deliver(dropped)
        if batch is None:
            return False
        tokens = self._runner.forward(batch)
        with self._lock:
            events = self._scheduler.advance(batch, tokens)
        self._steps += 1
        self._deliver(events)
        return True

    def _fail(self, error: Exception) -> None:
        self._failures += 1
        log.exception("engine step failed", extra={"failures_in_a_row": self._failures})
        with self._lock:
            failed = self._scheduler.fail_running(f"the engine failed while generating: {type(error).__name__}")
        self._deliver(failed)
        self._dead = self._failures >= MAX_FAILURES

    def _end_all(self) -> None:
        reason = FinishReason.ERROR if self._dead else FinishReason.CANCELLED
        message = "the engine has stopped after repeated failures" if self._dead else None
        self._closing = True
        with self._lock:
            ended = self._scheduler.end_all(reason, message)
        self._deliver(ended)

    def _deliver(self, deliveries: list[Delivery]) -> None:
        """One hop for each event loop, however many sequences a step advanced."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Mailbox, TokenEvent]]] = {}
        for delivery in deliveries:
            mailbox = self._mailboxes[delivery.sequence]
            if delivery.event.finish_reason is not None:
                del self._mailboxes[delivery.sequence]
            by_loop.setdefault(mailbox.loop, []).append((mailbox, delivery.event))
        for loop, letters in by_loop.items():
            try:
                loop.call_soon_threadsafe(_hand_out, letters)
            except RuntimeError:  # The event loop is closed, and its readers have gone with it.
                self._cancel_readers_of(loop)

    def _cancel_readers_of(self, loop: asyncio.AbstractEventLoop) -> None:
        for sequence, mailbox in list(self._mailboxes.items()):
            if mailbox.loop is loop:
                self.cancel(sequence)


@dataclass(frozen=True, slots=True)
class _Mailbox:
    """Where the engine's thread leaves the events of one request, by way of its event loop."""

    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[TokenEvent]


def _hand_out(letters: list[tuple[_Mailbox, TokenEvent]]) -> None:
    for mailbox, event in letters:
        mailbox.events.put_nowait(event)


class TokenStream:
    """The events of one request. Leaving it early, by `aclose` or by forgetting it, cancels the request."""

    def __init__(self, engine: ContinuousEngine, sequence: Sequence, mailbox: _Mailbox) -> None:
        self._engine, self._sequence, self._mailbox = engine, sequence, mailbox
        self._over = False

    def __aiter__(self) -> "TokenStream":
        return self

    async def __anext__(self) -> TokenEvent:
        if self._over:
            raise StopAsyncIteration
        event = await self._mailbox.events.get()
        self._over = event.finish_reason is not None
        return event

    async def aclose(self) -> None:
        self._over = True
        if self._sequence.finish_reason is None:
            self._engine.cancel(self._sequence)

    def __del__(self) -> None:
        if self._sequence.finish_reason is None:
            self._engine.cancel(self._sequence)
