"""The engine's one thread: commands in, `schedule → compute → advance`,
and one report for each step out.

It knows neither asyncio nor the wire: `post` may be called from any thread, and reports go to a
function. `local` puts it on a thread of this process, `worker` makes a process of it. Models that
come and go are `swap`'s business, adapters `adapter_changes`'; both act between two steps. `trace`
measures the parts of a step.
"""

import logging
import time
from collections.abc import Callable
from queue import SimpleQueue

from llm_runtime.engine.adapter_changes import AdapterChanges
from llm_runtime.engine.messages import (
    Cancel,
    Close,
    Command,
    DropAdapter,
    EngineFigures,
    Load,
    LoadAdapter,
    Ready,
    Retire,
    StepReport,
    Submit,
    packed,
)
from llm_runtime.engine.model import Build, Model, Send, Served
from llm_runtime.engine.recovery import BatchResult
from llm_runtime.engine.scheduler import Batch, Delivery
from llm_runtime.engine.sequence import Sequence
from llm_runtime.engine.swap import Models
from llm_runtime.request import FinishReason, TokenEvent

log = logging.getLogger(__name__)

MAX_FAILURES = 3
"""After so many steps in a row without any result, the device or the model counts as broken, not a
single request."""
MEMORY_SECONDS = 1.0
"""How often the device is asked for its memory, which costs more than the rest of a report."""


class StepLoop:
    """Serves one model; during a swap two, one after the other in each round."""

    def __init__(
        self, build: Build, send: Send, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._send = send
        self._clock = clock
        self._inbox: SimpleQueue[Command | Callable[[], None]] = SimpleQueue()
        self._models = Models(build, send, self.post)
        self._adapters = AdapterChanges(self._models, send, self.post)
        self._sequences: dict[int, Sequence] = {}
        self._homes: dict[Sequence, tuple[int, Served]] = {}
        """Each sequence's number at the client, and its model."""
        self._steps = 0
        self._failures = 0
        self._batch_size = 0
        self._reported_running = 0
        self._memory: tuple[float, int | None] = (float("-inf"), None)
        self._closing = False

    @property
    def broken(self) -> bool:
        """Whether it ended because nothing could be computed any more."""
        return self._failures >= MAX_FAILURES

    def post(self, command: Command | Callable[[], None]) -> None:
        """Have a command carried out, or something called, between two steps.
        May be called on any thread."""
        self._inbox.put(command)

    def adopt(self, model: Model) -> Ready:
        """Serve `model` from now on. Not from another thread while `run` is running."""
        return self._models.adopt(model)

    def run(self) -> None:
        """Run until `Close`, or until the device is found broken. Every request has then had its
        final event."""
        try:
            worked = False
            while not self._closing and not self.broken:
                self._obey(wait=not worked)
                worked = self._round()
                self._models.free_retired()
        finally:
            self._end_all()

    def _obey(self, *, wait: bool) -> None:
        if wait and self._inbox.empty():
            self._carry_out(self._inbox.get())
        while not self._inbox.empty():
            self._carry_out(self._inbox.get())

    def _carry_out(self, command: Command | Callable[[], None]) -> None:
        match command:
            case Submit():
                self._submit(command)
            case Cancel(number):
                if sequence := self._sequences.get(number):
                    sequence.cancelled = True
            case Load():
                self._models.load(command)
            case Retire(number):
                self._models.retire(number)
            case LoadAdapter():
                self._adapters.load(command)
            case DropAdapter():
                self._adapters.drop(command)
            case Close():
                self._closing = True
            case _:
                command()

    def _round(self) -> bool:
        """One step of every model that has something to do."""
        worked = False
        for served in self._models:
            worked |= self._try_step(served)
        return worked

    def _try_step(self, served: Served) -> bool:
        try:
            return self._step(served)
        except Exception as error:
            # Not one request's fault: a runner or this program violated its contract,
            # and the step's outcome is unknown.
            log.exception("A step failed")
            self._count(failed=True)
            scheduler = served.model.scheduler
            self._report(scheduler.fail(list(scheduler.running), _message(type(error).__name__)))
            return True

    def _step(self, served: Served) -> bool:
        batch = self._schedule(served)
        if batch is None:
            return False
        outcome = self._compute(served, batch)
        deliveries = self._advance(served, batch, outcome)
        self._report(deliveries)
        return True

    def _schedule(self, served: Served) -> Batch | None:
        """The next batch. Cancelled requests, and how many run now, are reported before it is
        computed, which takes long."""
        scheduler = served.model.scheduler
        cancelled = scheduler.drop_cancelled()
        batch = scheduler.next_batch()
        if cancelled or (batch and len(scheduler.running) != self._reported_running):
            self._report(cancelled)
        return batch

    def _compute(self, served: Served, batch: Batch) -> BatchResult:
        began = self._clock()
        outcome = served.runner.run(batch)
        if not outcome.failed:
            served.model.scheduler.observe(batch, self._clock() - began)
        return outcome

    def _advance(self, served: Served, batch: Batch, outcome: BatchResult) -> list[Delivery]:
        self._steps += 1
        self._batch_size = len(batch.spans)
        self._count(failed=not outcome.batch.spans)
        scheduler = served.model.scheduler
        deliveries = scheduler.advance(outcome.batch, outcome.sampled)
        if outcome.failed:
            names = ", ".join(sorted({fault.name for _, fault in outcome.failed}))
            deliveries += scheduler.fail(
                [sequence for sequence, _ in outcome.failed], _message(names)
            )
        return deliveries

    def _count(self, *, failed: bool) -> None:
        self._failures = self._failures + 1 if failed else 0
        if failed:
            log.error("A step failed completely (%d in a row)", self._failures)

    def _submit(self, command: Submit) -> None:
        try:
            served = self._models[command.model]
            sequence = Sequence(command.request, served.model.codec)
            sequence.adapter = served.model.adapters.acquire(command.request.adapter)
            self._add(served, sequence)
        except (
            Exception
        ) as error:  # The client has checked all this; a slip of ours must not end the engine.
            log.exception("A request can't be admitted")
            message = f"the engine did not take the request: {error}"
            event = TokenEvent(None, "", finish_reason=FinishReason.ERROR, error=message)
            self._send(StepReport([packed(command.number, event)], self._figures()))
            return
        self._sequences[command.number] = sequence
        self._homes[sequence] = (command.number, served)

    def _add(self, served: Served, sequence: Sequence) -> None:
        try:
            served.model.scheduler.add(sequence)
        except Exception:
            self._adapters.release(served, sequence.adapter)
            raise

    def _end_all(self) -> None:
        reason = FinishReason.ERROR if self.broken else FinishReason.CANCELLED
        message = "the engine has stopped after repeated failures" if self.broken else None
        ended: list[Delivery] = []
        for served in self._models:
            ended += served.model.scheduler.end_all(reason, message)
        self._report(ended)

    def _report(self, deliveries: list[Delivery]) -> None:
        """Everything that a step brought, in one message."""
        events = [
            packed(self._homes[delivery.sequence][0], delivery.event) for delivery in deliveries
        ]
        for delivery in deliveries:
            if delivery.event.finish_reason is not None:
                number, served = self._homes.pop(delivery.sequence)
                del self._sequences[number]
                self._adapters.release(served, delivery.sequence.adapter)
        figures = self._figures()
        self._reported_running = figures.running
        self._send(StepReport(events, figures))

    def _figures(self) -> EngineFigures:
        schedulers = [served.model.scheduler for served in self._models]
        return EngineFigures(
            sum(len(scheduler.running) for scheduler in schedulers),
            max((scheduler.usage_ratio for scheduler in schedulers), default=0.0),
            self._steps,
            self._batch_size,
            self._models.freed_prompt_tokens
            + sum(scheduler.prompt_tokens for scheduler in schedulers),
            self._models.freed_cached_tokens
            + sum(scheduler.cached_prompt_tokens for scheduler in schedulers),
            self._models.freed_guessed_tokens
            + sum(scheduler.guessed_tokens for scheduler in schedulers),
            self._models.freed_right_tokens
            + sum(scheduler.right_tokens for scheduler in schedulers),
            self._memory_bytes(),
        )

    def _memory_bytes(self) -> int | None:
        asked_at, value = self._memory
        if self._clock() - asked_at >= MEMORY_SECONDS:
            asks = [
                served.model.memory_bytes for served in self._models if served.model.memory_bytes
            ]
            value = asks[0]() if asks else None
            self._memory = (self._clock(), value)
        return value


def _message(name: str) -> str:
    return f"the engine failed while generating: {name}"
