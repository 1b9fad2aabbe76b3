"""A line of JSON for each step, for whoever wants to see where the time goes.
Off unless a file is named."""

import json
import logging
from pathlib import Path
from typing import NamedTuple, TextIO

from llm_runtime.engine.loop import StepLoop
from llm_runtime.engine.model import Build, Send, Served
from llm_runtime.engine.recovery import BatchResult
from llm_runtime.engine.scheduler import Batch, Delivery

log = logging.getLogger(__name__)

MAX_BYTES = 64 << 20
"""A full file is kept as `<name>.1` in place of the one before: two files, at most."""
BUFFER_BYTES = 1 << 16


class StepRecord(NamedTuple):
    """One step. Times are in seconds; `started` is on the monotonic clock."""

    step: int
    started: float
    schedule: float
    forward: float
    advance: float
    send: float
    spans: int
    prefill_tokens: int
    decode_tokens: int
    running: int
    waiting: int


class StepTrace:
    """Writes records to a file, buffered. A disk that is full ends the trace, not the engine."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._bytes = 0
        self._file: TextIO | None = None
        self._open()

    def write(self, record: StepRecord) -> None:
        if self._file is None:
            return
        fields = {
            name: round(value, 7) if isinstance(value, float) else value
            for name, value in record._asdict().items()
        }
        line = json.dumps(fields, separators=(",", ":")) + "\n"
        try:
            self._file.write(line)
            self._bytes += len(line)
            if self._bytes > self._max_bytes:
                self._rotate()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def flush(self) -> None:
        """Called when there is nothing to do, so that the file is whole when somebody looks."""
        try:
            if self._file:
                self._file.flush()
        except OSError as error:
            self._give_up(error)

    def _open(self) -> None:
        try:
            self._file = self._path.open("w", buffering=BUFFER_BYTES)
        except OSError as error:
            self._give_up(error)

    def _rotate(self) -> None:
        self.close()
        self._path.replace(self._path.with_name(self._path.name + ".1"))
        self._bytes = 0
        self._open()

    def _give_up(self, error: OSError) -> None:
        self._file = None
        log.warning("No more step trace in %s: %s", self._path, error)


class TracedLoop(StepLoop):
    """A loop that reads the clock between the parts of a step, and writes them down."""

    _started = _scheduled = _computed = _advanced = 0.0
    """When the last step began, and when its parts ended."""
    _batch = Batch(())

    def __init__(self, build: Build, send: Send, trace: StepTrace) -> None:
        super().__init__(build, send)
        self._trace = trace

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._trace.close()

    def _obey(self, *, wait: bool) -> None:
        if wait:
            self._trace.flush()
        super()._obey(wait=wait)

    def _step(self, served: Served) -> bool:
        self._started = self._clock()
        worked = super()._step(served)
        if worked:
            self._trace.write(self._record(served))
        return worked

    def _compute(self, served: Served, batch: Batch) -> BatchResult:
        self._batch = batch
        self._scheduled = self._clock()
        outcome = super()._compute(served, batch)
        self._computed = self._clock()
        return outcome

    def _advance(self, served: Served, batch: Batch, outcome: BatchResult) -> list[Delivery]:
        deliveries = super()._advance(served, batch, outcome)
        self._advanced = self._clock()
        return deliveries

    def _record(self, served: Served) -> StepRecord:
        return StepRecord(
            step=self._steps,
            started=self._started,
            schedule=self._scheduled - self._started,
            forward=self._computed - self._scheduled,
            advance=self._advanced - self._computed,
            send=self._clock() - self._advanced,
            spans=len(self._batch.spans),
            prefill_tokens=self._batch.tokens - self._batch.decode_tokens,
            decode_tokens=self._batch.decode_tokens,
            running=len(served.model.scheduler.running),
            waiting=len(served.model.scheduler.waiting),
        )
