"""Steps that fail: find the request at fault, spare the others, and get by with less memory.

All requests of a batch share one forward pass, so an exception does not say whose fault it is. The
failed batch is bisected, as `git bisect` or group testing do: it runs again in halves until the
span at fault is alone, and only that request fails. Running a span twice is safe because a forward
pass is idempotent: it only writes keys and values at its own positions, the same ones again.

When memory runs out, the number of tokens per pass is halved at once and doubled after a while
without trouble, as TCP does with its congestion window.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from llm_runtime.engine.scheduler import Batch, Span
from llm_runtime.engine.sequence import Sampled, Sequence
from llm_runtime.machine.memory import StepOutOfMemory

log = logging.getLogger(__name__)

CALM_STEPS = 64
"""Number of steps without trouble after which the token limit is doubled."""

Spans = tuple[Span, ...]


class Runner(Protocol):
    """What computes a batch: torch in production, a script in tests.
    Called from one thread only."""

    def forward(self, batch: Batch) -> list[Sampled]:
        """Compute the spans, and return one entry for each that answers, in order.

        After an exception it is called again for the same spans or a part of them, so it must not
        change the sequences before it returns. Raises StepOutOfMemory when fewer tokens may fit.
        """
        ...

    def read_adapter(self, folder: Path) -> Any:
        """Read and check a LoRA adapter, beside the steps. Raises errors.Fatal subclasses."""
        ...

    def install_adapter(self, key: str, adapter: Any) -> None:
        """Use what `read_adapter` returned for sequences whose `adapter` is `key`."""
        ...

    def drop_adapter(self, key: str) -> None:
        """Drop an adapter that no sequence of a later batch names."""
        ...


@dataclass(frozen=True, slots=True)
class FailedSpan:
    """Why a span could not be computed: the exception's name.
    The exception itself would keep its frames' memory."""

    name: str


Answer = Sampled | FailedSpan | None
"""Result of one span; None when it answers nothing."""


@dataclass(slots=True)
class BatchResult:
    """Result of a batch: the part that was computed, what its spans answer,
    and the sequences that failed."""

    batch: Batch
    sampled: list[Sampled] = field(default_factory=list)
    failed: list[tuple[Sequence, FailedSpan]] = field(default_factory=list)


class CarefulRunner:
    """Runs batches: whole as long as all goes well, in parts after a failure."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.token_limit: int | None = None
        """Largest number of tokens in one forward pass, after memory ran out; None: no limit."""
        self._calm_steps = 0

    def run(self, batch: Batch) -> BatchResult:
        """Compute as much of `batch` as can be."""
        self._calm_steps += 1
        answers = [answer for part in self._parts(batch.spans) for answer in self._compute(part)]
        self._grow(batch.tokens)
        return _outcome(batch.spans, answers)

    def _compute(self, spans: Spans) -> list[Answer]:
        """One answer for each span."""
        try:
            sampled = self.runner.forward(Batch(spans))
        except (StepOutOfMemory, MemoryError) as error:
            self._shrink(spans, error)
            fault = FailedSpan(type(error).__name__)
            halves = _halves(spans) or _split(spans[0])
        except Exception as error:
            # One error for each request at fault, not for every half on the way to it.
            log.log(
                logging.ERROR if len(spans) == 1 else logging.DEBUG,
                "Forward pass failed",
                exc_info=True,
            )
            fault = FailedSpan(type(error).__name__)
            halves = _halves(spans)
        else:
            return _in_order(spans, sampled)
        if len(spans) == 1 and (guess := spans[0].guess):
            plain = replace(spans[0], count=spans[0].count - len(guess), guess=())
            return self._compute((plain,))
        if halves is None:
            return [fault]
        if len(spans) > 1:
            return [*self._compute(halves[0]), *self._compute(halves[1])]
        return self._compute_in_turn(halves)

    def _compute_in_turn(self, halves: tuple[Spans, Spans]) -> list[Answer]:
        """Compute two halves of one span: the second reads the keys and values of the first."""
        [first] = self._compute(halves[0])
        if isinstance(first, FailedSpan):
            return [first]
        [second] = self._compute(halves[1])
        return [_joined(first, second)]

    def _parts(self, spans: Spans) -> Iterable[Spans]:
        if self.token_limit is None:
            return [spans]
        parts: list[list[Span]] = []
        room = 0
        for span in spans:
            if not parts or span.count > room:
                parts.append([])
                room = self.token_limit
            parts[-1].append(span)
            room -= span.count
        return map(tuple, parts)

    def _shrink(self, spans: Spans, error: Exception) -> None:
        tokens = sum(span.count for span in spans)
        self.token_limit = max(tokens // 2, 1)
        self._calm_steps = 0
        log.warning(
            "Out of memory in a step of %d tokens; steps are smaller for a while: %s", tokens, error
        )

    def _grow(self, tokens: int) -> None:
        if self.token_limit is not None and self._calm_steps >= CALM_STEPS:
            self.token_limit = 2 * self.token_limit
            self._calm_steps = 0
            if self.token_limit >= tokens:
                self.token_limit = None


def _in_order(spans: Spans, sampled: list[Sampled]) -> list[Answer]:
    remaining = iter(sampled)
    return [next(remaining) if span.answers else None for span in spans]


def _joined(first: Sampled | None, second: Answer) -> Answer:
    """What both halves of a span found."""
    if not isinstance(second, Sampled) or first is None or first.prompt is None:
        return second
    if second.prompt is not None:
        first.prompt.extend(second.prompt)
    return replace(second, prompt=first.prompt)


def _halves(spans: Spans) -> tuple[Spans, Spans] | None:
    middle = len(spans) // 2
    return (spans[:middle], spans[middle:]) if middle else None


def _split(span: Span) -> tuple[Spans, Spans] | None:
    """The chunk of a prompt as two chunks, of which only the second samples."""
    first = span.count // 2
    if span.whole or not first:
        return None
    rest = replace(span, start=span.start + first, count=span.count - first)
    return (replace(span, count=first, samples=False),), (rest,)


def _outcome(spans: Spans, answers: list[Answer]) -> BatchResult:
    pairs = list(zip(spans, answers, strict=True))
    return BatchResult(
        batch=Batch(tuple(span for span, answer in pairs if not isinstance(answer, FailedSpan))),
        sampled=[answer for answer in answers if isinstance(answer, Sampled)],
        failed=[
            (span.sequence, answer) for span, answer in pairs if isinstance(answer, FailedSpan)
        ],
    )
