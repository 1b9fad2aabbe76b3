"""Steps that go wrong: find the request at fault, spare the others, and get by with less memory.

A step that raises is run again in halves until the span at fault is alone. That is safe because a forward only writes
keys and values at the positions of its own spans: to write them twice changes nothing.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from llm_runtime.engine.memory import StepOutOfMemory
from llm_runtime.engine.scheduler import Batch, Span
from llm_runtime.engine.sequence import Sampled, Sequence

log = logging.getLogger(__name__)

CALM_STEPS = 64
"""After so many steps without trouble, twice as much is tried again."""

Spans = tuple[Span, ...]


class Runner(Protocol):
    """The computing half: the real one needs torch, the tests' one a script. Called from one thread only."""

    def forward(self, batch: Batch) -> list[Sampled]:
        """Compute the spans and choose a token for each that samples, in order.

        May be called again for the same spans, or for a part of them, after it raised: until it returns it must leave
        the sequences alone. Raises StepOutOfMemory when fewer tokens might do.
        """
        ...

    def read_adapter(self, folder: Path) -> Any:
        """Read and check a LoRA adapter, beside the steps. Raises errors.Fatal subclasses."""
        ...

    def install_adapter(self, key: str, adapter: Any) -> None:
        """Serve what `read_adapter` gave to sequences whose `adapter` is `key`."""
        ...

    def drop_adapter(self, key: str) -> None:
        """Forget an adapter; no sequence of a later batch names it."""
        ...


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a span could not be computed: the exception's name. Not the exception: its frames hold the memory."""

    name: str


Answer = Sampled | Fault | None
"""Of one span; None where it has nothing to sample."""


@dataclass(slots=True)
class Outcome:
    """What became of a batch: the part of it that was computed, what was sampled for that, and who failed."""

    batch: Batch
    sampled: list[Sampled] = field(default_factory=list)
    failed: list[tuple[Sequence, Fault]] = field(default_factory=list)


class CarefulRunner:
    """Runs batches, whole while all goes well."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.token_limit: int | None = None
        """Tokens of one forward, after memory ran out; None: no limit."""
        self._calm_steps = 0

    def run(self, batch: Batch) -> Outcome:
        """Compute `batch`, as much of it as can be."""
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
            fault, halves = Fault(type(error).__name__), _halves(spans) or _split(spans[0])
        except Exception as error:
            # Once for each request at fault, and not for every half on the way to it.
            log.log(logging.ERROR if len(spans) == 1 else logging.DEBUG, "A forward failed", exc_info=True)
            fault, halves = Fault(type(error).__name__), _halves(spans)
        else:
            return _in_order(spans, sampled)
        if halves is None:
            return [fault]
        if len(spans) > 1:
            return [*self._compute(halves[0]), *self._compute(halves[1])]
        return self._compute_in_turn(halves)

    def _compute_in_turn(self, halves: tuple[Spans, Spans]) -> list[Answer]:
        """Two halves of one span: the second needs what the first has written."""
        [first] = self._compute(halves[0])
        return [first] if isinstance(first, Fault) else self._compute(halves[1])

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
        self.token_limit, self._calm_steps = max(tokens // 2, 1), 0
        log.warning("No memory for a step of %d tokens; smaller steps for a while: %s", tokens, error)

    def _grow(self, tokens: int) -> None:
        if self.token_limit is not None and self._calm_steps >= CALM_STEPS:
            self.token_limit, self._calm_steps = 2 * self.token_limit, 0
            if self.token_limit >= tokens:
                self.token_limit = None


def _in_order(spans: Spans, sampled: list[Sampled]) -> list[Answer]:
    remaining = iter(sampled)
    return [next(remaining) if span.samples else None for span in spans]


def _halves(spans: Spans) -> tuple[Spans, Spans] | None:
    middle = len(spans) // 2
    return (spans[:middle], spans[middle:]) if middle else None


def _split(span: Span) -> tuple[Spans, Spans] | None:
    """A chunk of a prompt as two, the second of which samples."""
    first = span.count // 2
    if not first:
        return None
    rest = replace(span, start=span.start + first, count=span.count - first)
    return (replace(span, count=first, samples=False),), (rest,)


def _outcome(spans: Spans, answers: list[Answer]) -> Outcome:
    pairs = list(zip(spans, answers, strict=True))
    return Outcome(
        batch=Batch(tuple(span for span, answer in pairs if not isinstance(answer, Fault))),
        sampled=[answer for answer in answers if isinstance(answer, Sampled)],
        failed=[(span.sequence, answer) for span, answer in pairs if isinstance(answer, Fault)],
    )
