"""The engine's one thread: commands in, `schedule → forward → advance`, and one report for each step out.

It knows neither asyncio nor the wire: `post` may be called from any thread, and reports go to a function. `local` puts
it on a thread of this process, `worker` makes a process of it.
"""

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, Protocol

from llm_runtime.contract import FatalReport, RuntimeConfig
from llm_runtime.engine.adapters import AdapterTable
from llm_runtime.engine.limits import RequestLimits
from llm_runtime.engine.memory import MIB, resident_bytes
from llm_runtime.engine.messages import (
    Cancel,
    Close,
    Command,
    Done,
    DropAdapter,
    Failed,
    Figures,
    Load,
    LoadAdapter,
    Ready,
    Report,
    Retire,
    Step,
    Submit,
    packed,
)
from llm_runtime.engine.recovery import CarefulRunner, Outcome, Runner
from llm_runtime.engine.scheduler import Batch, Delivery, Scheduler
from llm_runtime.engine.sequence import Sequence, Vocabulary
from llm_runtime.engine.trace import StepRecord, StepTrace
from llm_runtime.errors import Fatal
from llm_runtime.request import FinishReason, TextCodec, TokenEvent

log = logging.getLogger(__name__)

MAX_FAILURES = 3
"""So many steps in a row in which nothing could be computed: the device or the model is broken, not a request."""
MEMORY_SECONDS = 1.0
"""How often the device is asked for its memory, which costs more than the rest of a report."""


class ModelCodec(TextCodec, Vocabulary, Protocol):
    """A tokenizer as both sides need it."""


@dataclass(slots=True, eq=False)
class Model:
    """A model that is loaded and has answered once: all that the loop needs of it."""

    scheduler: Scheduler
    runner: Runner
    codec: ModelCodec
    limits: RequestLimits
    adapters: AdapterTable
    device: str = "cpu"
    kind: Literal["batched", "sequential"] = "batched"
    load_seconds: float = 0.0
    load_peak_bytes: int = 0
    memory_bytes: Callable[[], int] | None = None
    """Of the device; None on a CPU."""
    free: Callable[[], object] = gc.collect
    """Give memory back to the system, once nothing refers to the model any more."""


Build = Callable[[RuntimeConfig, Path], Model]
"""Load and check a model. Raises errors.Fatal subclasses. Called on a thread of its own."""


@dataclass(frozen=True, slots=True)
class _Built:
    """What the loading thread tells the loop: a model, or why there is none."""

    command: Load
    model: Model | None
    report: FatalReport | None = None


@dataclass(frozen=True, slots=True)
class _Read:
    """What a reading thread tells the loop: an adapter, or why there is none."""

    command: LoadAdapter
    adapter: Any
    report: FatalReport | None = None


@dataclass(slots=True, eq=False)
class _Served:
    """A model in the loop, and what is to happen to it."""

    model: Model
    runner: CarefulRunner
    retired: bool = False
    drops: dict[str, DropAdapter] = field(default_factory=dict)
    """By the key of an adapter in use: whom to tell when its last request has ended."""

    @property
    def done(self) -> bool:
        return self.retired and self.model.scheduler.idle


@dataclass(slots=True)
class _Times:
    """When the parts of a step ended."""

    started: float
    scheduled: float = 0.0
    computed: float = 0.0
    advanced: float = 0.0


class StepLoop:
    """Serves one model; during a swap two, one after the other in each round."""

    def __init__(
        self,
        build: Build,
        send: Callable[[Report], None],
        trace: StepTrace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`send` is called on the loop's thread only."""
        self._build, self._send, self._trace, self._clock = build, send, trace, clock
        self._inbox: SimpleQueue[Command | _Built | _Read] = SimpleQueue()
        self._models: dict[int, _Served] = {}
        self._sequences: dict[int, Sequence] = {}
        self._homes: dict[Sequence, tuple[int, _Served]] = {}
        """Each sequence's number at the client, and its model."""
        self._models_seen = self._steps = self._failures = self._batch_size = 0
        self._reported_running = 0
        self._freed_prompt_tokens = (0, 0)
        """All, and those out of the prefix cache, of models that are gone: counters must not fall."""
        self._memory: tuple[float, int | None] = (float("-inf"), None)
        self._closing = False

    @property
    def broken(self) -> bool:
        """Whether it ended because nothing could be computed any more."""
        return self._failures >= MAX_FAILURES

    def post(self, command: Command | _Built | _Read) -> None:
        """Have a command carried out between two steps. May be called on any thread."""
        self._inbox.put(command)

    def adopt(self, model: Model, call: int = 0) -> Ready:
        """Serve `model` from now on. Not from another thread while `run` is running."""
        self._models_seen += 1
        number, scheduler = self._models_seen, model.scheduler
        self._models[number] = _Served(model, CarefulRunner(model.runner))
        capacity = scheduler.max_batch_size + scheduler.max_queue_length
        return Ready(
            call, number, model.limits, capacity, model.codec, model.device, model.kind, model.adapters.names,
            model.load_seconds, model.load_peak_bytes,
        )  # fmt: skip

    def run(self) -> None:
        """Until `Close`, or until the device is found broken. Every request has then had its final event."""
        try:
            worked = False
            while not self._closing and not self.broken:
                self._obey(wait=not worked)
                worked = self._round()
                self._free_retired()
        finally:
            self._end_all()

    def _obey(self, *, wait: bool) -> None:
        if wait and self._inbox.empty():
            if self._trace:
                self._trace.flush()
            self._carry_out(self._inbox.get())
        while not self._inbox.empty():
            self._carry_out(self._inbox.get())

    def _carry_out(self, command: Command | _Built | _Read) -> None:  # noqa: C901 (a case for each command)
        match command:
            case Submit():
                self._submit(command)
            case Cancel(number):
                if sequence := self._sequences.get(number):
                    sequence.cancelled = True
            case Load():
                # A thread of its own: what is loaded serves on, and has the processor while the other reads files.
                threading.Thread(target=self._load, args=(command,), name="load", daemon=True).start()
            case _Built():
                self._take(command)
            case Retire(number):
                if served := self._models.get(number):
                    served.retired = True
            case LoadAdapter():
                # On a thread of its own: what runs need not wait for a disk.
                threading.Thread(target=self._read_adapter, args=(command,), name="adapter", daemon=True).start()
            case _Read():
                self._install_adapter(command)
            case DropAdapter():
                self._drop_adapter(command)
            case Close():
                self._closing = True

    def _round(self) -> bool:
        """One step of every model that has something to do."""
        worked = False
        for served in list(self._models.values()):
            worked |= self._try_step(served)
        return worked

    def _free_retired(self) -> None:
        """Apart from the round, whose variables would keep the model in memory."""
        if len(self._models) > 1:
            for number in [number for number, served in self._models.items() if served.done]:
                self._free(number)

    def _try_step(self, served: _Served) -> bool:
        try:
            return self._step(served)
        except Exception as error:
            # Not one request's fault: a runner or this program broke its word, and the step's outcome is unknown.
            log.exception("A step failed")
            self._count(failed=True)
            scheduler = served.model.scheduler
            self._report(scheduler.fail(list(scheduler.running), _message(type(error).__name__)))
            return True

    def _step(self, served: _Served) -> bool:
        scheduler, times = served.model.scheduler, _Times(self._clock())
        deliveries = scheduler.drop_cancelled()
        batch = scheduler.next_batch()
        if batch is None:
            if deliveries:
                self._report(deliveries)
            return False
        if len(scheduler.running) != self._reported_running:
            self._report(deliveries)
            deliveries = []
        times.scheduled = self._clock()
        outcome = served.runner.run(batch)
        times.computed = self._clock()
        deliveries += self._advance(scheduler, batch, outcome, times)
        times.advanced = self._clock()
        self._report(deliveries)
        if self._trace:
            self._trace.write(self._record(scheduler, batch, times))
        return True

    def _advance(self, scheduler: Scheduler, batch: Batch, outcome: Outcome, times: _Times) -> list[Delivery]:
        self._steps += 1
        self._batch_size = len(batch.spans)
        self._count(failed=not outcome.batch.spans)
        if not outcome.failed:
            scheduler.observe(batch, times.computed - times.scheduled)
        deliveries = scheduler.advance(outcome.batch, outcome.sampled)
        if outcome.failed:
            names = ", ".join(sorted({fault.name for _, fault in outcome.failed}))
            deliveries += scheduler.fail([sequence for sequence, _ in outcome.failed], _message(names))
        return deliveries

    def _count(self, *, failed: bool) -> None:
        self._failures = self._failures + 1 if failed else 0
        if failed:
            log.error("Nothing of a step could be computed, %d in a row", self._failures)

    def _submit(self, command: Submit) -> None:
        try:
            served = self._models[command.model]
            sequence = Sequence(command.request, served.model.codec)
            sequence.adapter = served.model.adapters.acquire(command.request.adapter)
            self._add(served, sequence)
        except Exception as error:  # The client has checked all this; a slip of ours must not end the engine.
            log.exception("A request can't be admitted")
            message = f"the engine did not take the request: {error}"
            event = TokenEvent(None, "", finish_reason=FinishReason.ERROR, error=message)
            self._send(Step([packed(command.number, event)], self._figures()))
            return
        self._sequences[command.number], self._homes[sequence] = sequence, (command.number, served)

    def _add(self, served: _Served, sequence: Sequence) -> None:
        try:
            served.model.scheduler.add(sequence)
        except Exception:
            self._forget_adapters(served, served.model.adapters.release(sequence.adapter))
            raise

    def _load(self, command: Load) -> None:
        """On the loading thread."""
        try:
            built = _Built(command, self._build(command.config, command.folder))
        except Fatal as fatal:
            built = _Built(command, None, FatalReport(reason=fatal.reason, message=str(fatal)))
        except Exception as error:
            log.exception("Loading the model failed")
            report = FatalReport(reason="LoadFailed", message=f"{type(error).__name__}: {error}")
            built = _Built(command, None, report)
        self.post(built)

    def _take(self, built: _Built) -> None:
        if built.model is None:
            assert built.report
            self._send(Failed(built.command.call, built.report))
            return
        if self._trace is None and (path := built.command.config.engine.step_trace):
            self._trace = StepTrace(Path(path))
        log.info("A model is in memory", extra={"folder": str(built.command.folder), "resident_mib": _resident_mib()})
        self._send(self.adopt(built.model, built.command.call))

    def _free(self, number: int) -> None:
        model = self._models.pop(number).model
        all_tokens, cached_tokens = self._freed_prompt_tokens
        self._freed_prompt_tokens = (
            all_tokens + model.scheduler.prompt_tokens, cached_tokens + model.scheduler.cached_prompt_tokens,
        )  # fmt: skip
        free = model.free
        del model
        before = _resident_mib()
        free()
        log.info("The old model is gone", extra={"resident_mib_before": before, "resident_mib": _resident_mib()})

    def _read_adapter(self, command: LoadAdapter) -> None:
        """On the reading thread."""
        try:
            read = _Read(command, self._models[command.model].model.runner.read_adapter(command.folder))
        except Exception as error:
            read = _Read(command, None, _reported(error, f"adapter {command.name}"))
        self.post(read)

    def _install_adapter(self, read: _Read) -> None:
        command = read.command
        served = self._models.get(command.model)
        if read.report or served is None:
            self._send(Failed(command.call, read.report or _reported(KeyError("the model has gone"), command.name)))
            return
        table, runner = served.model.adapters, served.model.runner
        loading = None
        try:
            loading = table.load(command.name)
            self._forget_adapters(served, loading.leaving)
            runner.install_adapter(loading.key, read.adapter)
        except Exception as error:
            if loading:
                table.drop(command.name)
            self._send(Failed(command.call, _reported(error, f"adapter {command.name}")))
        else:
            self._send(Done(command.call, table.names))

    def _drop_adapter(self, command: DropAdapter) -> None:
        """The client admits no more requests for it; the last one may still be running."""
        served = self._models.get(command.model)
        if served is None or command.name not in served.model.adapters.names:
            self._send(Done(command.call, served.model.adapters.names if served else ()))
            return
        table = served.model.adapters
        key = table.key(command.name)
        served.drops[key] = command
        self._forget_adapters(served, table.drop(command.name))

    def _forget_adapters(self, served: _Served, keys: Iterable[str]) -> None:
        for key in keys:
            served.model.runner.drop_adapter(key)
            if drop := served.drops.pop(key, None):
                self._send(Done(drop.call, served.model.adapters.names))

    def _end_all(self) -> None:
        reason = FinishReason.ERROR if self.broken else FinishReason.CANCELLED
        message = "the engine has stopped after repeated failures" if self.broken else None
        ended: list[Delivery] = []
        for served in self._models.values():
            ended += served.model.scheduler.end_all(reason, message)
        self._report(ended)
        if self._trace:
            self._trace.close()

    def _report(self, deliveries: list[Delivery]) -> None:
        """Everything that a step brought, in one message."""
        events = [packed(self._homes[delivery.sequence][0], delivery.event) for delivery in deliveries]
        for delivery in deliveries:
            if delivery.event.finish_reason is not None:
                number, served = self._homes.pop(delivery.sequence)
                del self._sequences[number]
                self._forget_adapters(served, served.model.adapters.release(delivery.sequence.adapter))
        figures = self._figures()
        self._reported_running = figures.running
        self._send(Step(events, figures))

    def _figures(self) -> Figures:
        schedulers = [served.model.scheduler for served in self._models.values()]
        return Figures(
            sum(len(scheduler.running) for scheduler in schedulers),
            max((scheduler.usage_ratio for scheduler in schedulers), default=0.0),
            self._steps,
            self._batch_size,
            self._freed_prompt_tokens[0] + sum(scheduler.prompt_tokens for scheduler in schedulers),
            self._freed_prompt_tokens[1] + sum(scheduler.cached_prompt_tokens for scheduler in schedulers),
            self._memory_bytes(),
        )

    def _memory_bytes(self) -> int | None:
        asked_at, value = self._memory
        if self._clock() - asked_at >= MEMORY_SECONDS:
            asks = [served.model.memory_bytes for served in self._models.values() if served.model.memory_bytes]
            value = asks[0]() if asks else None
            self._memory = (self._clock(), value)
        return value

    def _record(self, scheduler: Scheduler, batch: Batch, times: _Times) -> StepRecord:
        return StepRecord(
            step=self._steps,
            started=times.started,
            schedule=times.scheduled - times.started,
            forward=times.computed - times.scheduled,
            advance=times.advanced - times.computed,
            send=self._clock() - times.advanced,
            spans=len(batch.spans),
            prefill_tokens=batch.tokens - batch.decode_tokens,
            decode_tokens=batch.decode_tokens,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
        )


def _message(name: str) -> str:
    return f"the engine failed while generating: {name}"


def _reported(error: Exception, what: str) -> FatalReport:
    if isinstance(error, Fatal):
        return FatalReport(reason=error.reason, message=str(error))
    log.error("%s failed", what, exc_info=error)
    return FatalReport(reason="EngineFailed", message=f"{what}: {type(error).__name__}: {error}")


def _resident_mib() -> int:
    return resident_bytes() // MIB
