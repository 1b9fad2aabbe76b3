"""Which sequences advance by how many tokens in the next step. Pure: no torch, no clock, no chance, no threads.

Policy: every sequence that waits for one token gets it; what is left of the token budget goes to prompts, oldest first,
in chunks; free slots go to the queue in order of arrival.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from llm_runtime.engine.sequence import Sampled, Sequence
from llm_runtime.errors import QueueFull
from llm_runtime.request import FinishReason, TokenEvent

MIN_PREFILL_TOKENS = 16
"""Prompts advance by at least so much even when decoding takes the whole budget: nobody starves."""


@dataclass(frozen=True, slots=True)
class Span:
    """`count` tokens of one sequence, from position `start` on, whose keys and values go to `slot`."""

    sequence: Sequence
    slot: int
    start: int
    count: int
    samples: bool
    """Whether the span ends the known tokens, so that the next one is to be chosen."""


@dataclass(frozen=True, slots=True)
class Move:
    """Copy the first `length` positions of cache slot `source` to slot `target`."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: `moves` first, in order, then one forward over all `spans` (single tokens first, by slot)."""

    spans: tuple[Span, ...]
    moves: tuple[Move, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(span.count for span in self.spans)


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event and whom it belongs to."""

    sequence: Sequence
    event: TokenEvent


class Scheduler:
    """The queue and the running set. A running sequence's slot is its place in `running`.

    So slots are always compact, and the cache can be read as one slice instead of gathered: who leaves is replaced by
    the last one, which costs one copy of its keys and values.
    """

    def __init__(
        self, slots: int, max_batch_tokens: int, max_queue_length: int, prefill_tokens_beside_decode: int | None = None
    ) -> None:
        """`prefill_tokens_beside_decode` bounds how long running streams pause for a new prompt (None: no bound)."""
        self.slots = slots
        self.max_batch_tokens = max_batch_tokens
        self.max_queue_length = max_queue_length
        self.prefill_tokens_beside_decode = prefill_tokens_beside_decode or max_batch_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._moves: list[Move] = []
        self._arrivals = 0

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises QueueFull: free slots count as room, so a queue of one still fills the batch."""
        free_slots = self.slots - len(self.running)
        if len(self.waiting) >= self.max_queue_length + free_slots:
            raise QueueFull(f"{len(self.waiting)} requests are waiting, which is as many as may; try again shortly")
        self._arrivals += 1
        sequence.arrival = self._arrivals
        self.waiting.append(sequence)

    def drop_cancelled(self) -> list[Delivery]:
        """Free the places of cancelled sequences."""
        return self._drop([s for s in (*self.running, *self.waiting) if s.cancelled], FinishReason.CANCELLED, None)

    def fail(self, sequences: Iterable[Sequence], message: str) -> list[Delivery]:
        """End sequences that a step could not compute; the others are untouched."""
        deliveries = self._drop(list(sequences), FinishReason.ERROR, message)
        if not self.running:
            self._moves.clear()
        return deliveries

    def end_all(self, reason: FinishReason, message: str | None = None) -> list[Delivery]:
        """End everything, queued or running."""
        return self._drop([*self.running, *self.waiting], reason, message)

    def next_batch(self) -> Batch | None:
        """The next step, or None when there is nothing to do."""
        self._admit()
        decoding = [self._span(slot, 1) for slot, sequence in enumerate(self.running) if sequence.pending == 1]
        spans = (*decoding, *self._prefill(len(decoding)))
        moves, self._moves = tuple(self._moves), []
        return Batch(spans, moves) if spans else None

    def advance(self, batch: Batch, sampled: list[Sampled]) -> list[Delivery]:
        """Book what a step computed; `sampled` has one entry for each span that samples, in order."""
        chosen = iter(sampled)
        deliveries = []
        for span in batch.spans:
            span.sequence.computed += span.count
            if span.samples:
                deliveries.append(Delivery(span.sequence, span.sequence.append(next(chosen))))
        for slot in reversed(range(len(self.running))):
            if self.running[slot].finish_reason is not None:
                self._leave(slot)
        return deliveries

    def observe(self, batch: Batch, seconds: float) -> None:
        """Hear how long a step took, to size the next ones."""

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.slots:
            self.running.append(self.waiting.popleft())

    def _prefill(self, decoding: int) -> list[Span]:
        budget = self.max_batch_tokens - decoding
        if decoding:
            budget = max(min(budget, self.prefill_tokens_beside_decode), MIN_PREFILL_TOKENS)
        spans = []
        behind = [(sequence.arrival, slot) for slot, sequence in enumerate(self.running) if sequence.pending > 1]
        for _, slot in sorted(behind):
            if budget <= 0:
                break
            spans.append(self._span(slot, budget))
            budget -= spans[-1].count
        return spans

    def _span(self, slot: int, budget: int) -> Span:
        sequence = self.running[slot]
        count = min(sequence.pending, budget)
        return Span(sequence, slot, sequence.computed, count, samples=count == sequence.pending)

    def _drop(self, sequences: list[Sequence], reason: FinishReason, message: str | None) -> list[Delivery]:
        if not sequences:
            return []
        gone = set(map(id, sequences))
        for slot in reversed(range(len(self.running))):
            if id(self.running[slot]) in gone:
                self._leave(slot)
        self.waiting = deque(s for s in self.waiting if id(s) not in gone)
        return [Delivery(sequence, sequence.finish(reason, message)) for sequence in sequences]

    def _leave(self, slot: int) -> None:
        last = self.running.pop()
        if slot < len(self.running):
            self.running[slot] = last
            self._moves.append(Move(len(self.running), slot, last.computed))
