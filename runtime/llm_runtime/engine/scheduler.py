"""Which sequences advance by how many tokens in the next step.
Pure: no torch, no clock, no chance, no threads.

Policy: every sequence that waits for one token gets it. The rest of the token budget goes to
prompts, in chunks, the more important and older ones first. A waiting sequence is admitted once
there is room for its prompt and its longest answer, so a running one is never preempted for memory.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from llm_runtime.engine.blocks import BLOCK_TOKENS, BlockPool
from llm_runtime.engine.budget import LEAST_TOKENS, PrefillBudget
from llm_runtime.engine.drafts import Drafter
from llm_runtime.engine.sequence import Sampled, Sequence
from llm_runtime.engine.waiting import WaitingQueue
from llm_runtime.errors import QueueFull
from llm_runtime.request import FinishReason, TokenEvent


@dataclass(frozen=True, slots=True)
class Span:
    """`count` tokens of one sequence, from position `start` on."""

    sequence: Sequence
    start: int
    count: int
    samples: bool
    """Whether the span ends the known tokens, so that the next one is to be chosen."""
    guess: tuple[int, ...] = ()
    """Tokens that may follow the known ones; the last ones of `count`."""
    whole: bool = False
    """Whether it can't be computed in parts."""

    @property
    def scored(self) -> list[int]:
        """Tokens of the prompt whose log probabilities are wanted and follow from this span: that
        after each of its tokens."""
        sequence = self.sequence
        if sequence.prompt_logprobs is None:
            return []
        return sequence.token_ids[
            self.start + 1 : min(self.start + self.count + 1, sequence.prompt_length)
        ]

    @property
    def answers(self) -> bool:
        """Whether computing it yields anything but keys and values."""
        return self.samples or bool(self.scored)

    @property
    def token_ids(self) -> list[int]:
        """The tokens that the model reads."""
        known = self.sequence.token_ids[self.start : self.start + self.count - len(self.guess)]
        return [*known, *self.guess]


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward over all `spans`, single tokens first."""

    spans: tuple[Span, ...]

    @property
    def tokens(self) -> int:
        return sum(span.count for span in self.spans)

    @property
    def decode_tokens(self) -> int:
        """Number of tokens in spans of a single token, and guesses: all but the chunks of prompts."""
        return sum(span.count for span in self.spans if span.count == 1 or span.guess)


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event and whom it belongs to."""

    sequence: Sequence
    event: TokenEvent


class Scheduler:
    """The queue and the running set."""

    def __init__(
        self,
        pool: BlockPool,
        max_batch_size: int,
        max_batch_tokens: int,
        max_queue_length: int,
        budget: PrefillBudget | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        """`budget` bounds how long running streams pause for a new prompt.
        Without it only `max_batch_tokens` does. Without `drafter`, each step yields one token."""
        self.pool = pool
        self.max_batch_size = max_batch_size
        self.max_batch_tokens = max_batch_tokens
        self.max_queue_length = max_queue_length
        self.waiting = WaitingQueue()
        self.running: list[Sequence] = []
        self.prompt_tokens = self.cached_prompt_tokens = 0
        self._budget = budget
        self._drafter = drafter
        self._tenants: Counter[str] = Counter()
        self._roots: dict[str, int] = {}
        self._arrivals = 0

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting

    @property
    def usage_ratio(self) -> float:
        """Part of the key-value cache that running sequences have reserved, 0 to 1."""
        return 1 - self.pool.available / self.pool.size

    @property
    def guessed_tokens(self) -> int:
        """Tokens of the guesses that were checked so far."""
        return self._drafter.guessed if self._drafter else 0

    @property
    def right_tokens(self) -> int:
        """How many of them were right."""
        return self._drafter.right if self._drafter else 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises QueueFull: free places count as room,
        so a queue of one still fills the batch."""
        free_places = self.max_batch_size - len(self.running)
        if len(self.waiting) >= self.max_queue_length + free_places:
            raise QueueFull(
                f"{len(self.waiting)} requests are waiting, which is as many as may; try again"
                " shortly"
            )
        self._arrivals += 1
        sequence.arrival = self._arrivals
        self.waiting.add(sequence)

    def drop_cancelled(self) -> list[Delivery]:
        """Free the places of cancelled sequences."""
        return self._end(
            [s for s in (*self.running, *self.waiting) if s.cancelled], FinishReason.CANCELLED
        )

    def fail(self, sequences: Iterable[Sequence], message: str) -> list[Delivery]:
        """End the sequences that a step could not compute."""
        return self._end(list(sequences), FinishReason.ERROR, message)

    def end_all(self, reason: FinishReason, message: str | None = None) -> list[Delivery]:
        """End everything, queued or running."""
        return self._end([*self.running, *self.waiting], reason, message)

    def next_batch(self) -> Batch | None:
        """The next step, or None when there is nothing to do."""
        self._admit()
        decoding = [s for s in self.running if s.pending == 1]
        spans = [Span(s, s.computed, 1, samples=True) for s in decoding]
        prompts = self._prefill(len(decoding))
        if self._drafter and not prompts:
            spans = self._drafted(self._drafter, spans)
        return Batch((*spans, *prompts)) if spans or prompts else None

    def advance(self, batch: Batch, sampled: list[Sampled]) -> list[Delivery]:
        """Book what a step computed;
        `sampled` has one entry for each span that answers, in order."""
        found = iter(sampled)
        deliveries = []
        for span in batch.spans:
            sequence = span.sequence
            sequence.computed += span.count - len(span.guess)
            answer = next(found) if span.answers else None
            if answer and answer.prompt:
                sequence.note(answer.prompt)
            if answer and span.samples:
                events = self._append(sequence, answer)
                deliveries += [Delivery(sequence, event) for event in events]
                right = len(events) - 1
                sequence.computed += right
                if span.guess and self._drafter:
                    self._drafter.learn(sequence, len(span.guess), right)
            self.pool.remember(sequence.blocks, sequence.token_ids, sequence.computed)
        self._release([d.sequence for d in deliveries if d.sequence.finish_reason is not None])
        return deliveries

    def observe(self, batch: Batch, seconds: float) -> None:
        """Hear how long a step took, to size the next ones."""
        prompt_tokens = batch.tokens - batch.decode_tokens
        if self._budget:
            self._budget.observe(batch.decode_tokens, prompt_tokens, seconds)
        if self._drafter and not prompt_tokens:
            self._drafter.observe(batch.tokens, seconds)

    def _admit(self) -> None:
        while len(self.running) < self.max_batch_size and (
            sequence := self.waiting.first(self._tenants)
        ):
            # Log probabilities come of computing a token: of what is in the cache there are none.
            known = sequence.token_ids if sequence.prompt_logprobs is None else ()
            blocks = self.pool.take(sequence.longest, self._root(sequence.adapter), known)
            if blocks is None:
                break
            self.waiting.pop(sequence)
            sequence.blocks = blocks
            self.running.append(sequence)
            self._tenants[sequence.request.tenant] += 1
            self.prompt_tokens += sequence.prompt_length
            self._skip_to(sequence, len(blocks.known) * BLOCK_TOKENS)

    def _root(self, adapter: str) -> int:
        """Each version of an adapter computes other keys and values,
        which only its own sequences may find."""
        if adapter not in self._roots:
            self._roots[adapter] = self.pool.new_root()
        return self._roots[adapter]

    def _drafted(self, drafter: Drafter, spans: list[Span]) -> list[Span]:
        """The spans with what each may go on with."""
        guesses = drafter.guess((s.sequence for s in spans), self.max_batch_tokens - len(spans))
        return sorted(
            (
                replace(span, count=1 + len(guess), guess=guess)
                if (guess := guesses.get(span.sequence))
                else span
                for span in spans
            ),
            key=lambda span: span.count > 1,
        )

    @staticmethod
    def _append(sequence: Sequence, sampled: Sampled) -> list[TokenEvent]:
        """The events of the tokens of one step, up to the sequence's end."""
        events = list[TokenEvent]()
        for one in (sampled, *sampled.more):
            events.append(sequence.append(one))
            if sequence.finish_reason is not None:
                break
        return events

    def _prefill(self, decoding: int) -> list[Span]:
        room = self.max_batch_tokens - decoding
        if decoding:
            room = max(min(room, self._budget.tokens() if self._budget else room), LEAST_TOKENS)
        spans = []
        behind = [sequence for sequence in self.running if sequence.pending > 1]
        for sequence in sorted(behind, key=lambda s: (-s.request.priority, s.arrival)):
            if room <= 0:
                break
            if sequence.prompt_logprobs is None:
                # Asked again at each chunk, so that of many sequences with the same beginning only
                # one computes it.
                self._skip_to(
                    sequence, self.pool.skip(sequence.blocks, sequence.token_ids, sequence.computed)
                )
            count = _chunk(sequence, room)
            spans.append(
                Span(sequence, sequence.computed, count, samples=count == sequence.pending)
            )
            room -= count
        # A prompt's last bit may be one token too: attention wants single tokens first.
        return sorted(spans, key=lambda span: span.count > 1)

    def _skip_to(self, sequence: Sequence, known: int) -> None:
        self.cached_prompt_tokens += known - sequence.computed
        sequence.cached += known - sequence.computed
        sequence.computed = known

    def _end(
        self, sequences: list[Sequence], reason: FinishReason, message: str | None = None
    ) -> list[Delivery]:
        if not sequences:
            return []
        self._release(sequences)
        self.waiting.remove(set(sequences))
        return [Delivery(sequence, sequence.finish(reason, message)) for sequence in sequences]

    def _release(self, sequences: list[Sequence]) -> None:
        gone = set(sequences)
        if not gone:
            return
        for sequence in self.running:
            if sequence in gone:
                if self._drafter:
                    self._drafter.forget(sequence)
                self.pool.give_back(sequence.blocks)
                self._tenants[sequence.request.tenant] -= 1
        self.running = [sequence for sequence in self.running if sequence not in gone]


class EmbeddingScheduler(Scheduler):
    """The queue of texts to embed. Texts of all clients share a step, tenants in turn.

    An embedding needs no second step: a text is read whole, and its place is free again. Its keys and
    values are not kept, so there is no cache to share out; the tokens of a step are what is bounded.
    """

    def __init__(self, max_batch_size: int, max_batch_tokens: int, max_queue_length: int) -> None:
        """A text may be longer than `max_batch_tokens`: then it has a step of its own."""
        super().__init__(BlockPool(1), max_batch_size, max_batch_tokens, max_queue_length)

    def next_batch(self) -> Batch | None:
        """The next step, or None when there is nothing to do."""
        self._admit()
        spans = tuple(
            Span(sequence, 0, sequence.prompt_length, samples=True, whole=True)
            for sequence in self.running
        )
        return Batch(spans) if spans else None

    def advance(self, batch: Batch, sampled: list[Sampled]) -> list[Delivery]:
        """End the texts of a step; `sampled` has an embedding for each, in order."""
        deliveries = [
            Delivery(span.sequence, span.sequence.embed(one))
            for span, one in zip(batch.spans, sampled, strict=True)
        ]
        self._release([delivery.sequence for delivery in deliveries])
        return deliveries

    def _admit(self) -> None:
        room = self.max_batch_tokens - sum(sequence.prompt_length for sequence in self.running)
        while len(self.running) < self.max_batch_size and (
            sequence := self.waiting.first(self._tenants)
        ):
            room -= sequence.prompt_length
            if self.running and room < 0:
                break
            self.waiting.pop(sequence)
            self.running.append(sequence)
            self._tenants[sequence.request.tenant] += 1
            self.prompt_tokens += sequence.prompt_length


def _chunk(sequence: Sequence, room: int) -> int:
    """Tokens of the next chunk;
    it ends with a block where it can, for only from there known blocks can follow."""
    if sequence.pending <= room:
        return sequence.pending
    end = (sequence.computed + room) // BLOCK_TOKENS * BLOCK_TOKENS
    return end - sequence.computed if end > sequence.computed else room
