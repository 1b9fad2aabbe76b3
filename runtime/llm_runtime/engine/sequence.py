"""One request inside the engine: its tokens, the text they become, and when it is finished.
Knows no torch."""

from array import array
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace
from math import isnan
from typing import Protocol

from llm_runtime.engine.blocks import Blocks
from llm_runtime.request import (
    Constraint,
    Detokenizer,
    FinishReason,
    GenerationRequest,
    PromptLogprobs,
    TokenEvent,
    TopLogprob,
)


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a step found for one sequence.
    `token_id` None: the logits were no numbers, or there was nothing to choose yet."""

    token_id: int | None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """(token id, natural-log probability), most likely first."""
    more: "tuple[Sampled, ...]" = ()
    """What was chosen after it in the same step, because the span's guess was right so far."""
    embedding: str = ""
    """In place of a token: the vector, as `TokenEvent.text` has it; "" if it held no numbers."""
    prompt: PromptLogprobs | None = None
    """Log probabilities of tokens of the prompt, where the request asks for them."""


class Matcher(Protocol):
    """Where one sequence stands in its constraint."""

    @property
    def complete(self) -> bool:
        """Whether nothing but the end may follow."""
        ...

    @property
    def fault(self) -> str:
        """Why it can't go on; "" while it can."""
        ...

    def mask(self) -> bytes:
        """The tokens that may come next, a bit for each,
        lowest id in the lowest bit of the first byte."""
        ...

    def advance(self, token_id: int) -> None:
        """Take a token that the mask allowed."""
        ...


class Vocabulary(Protocol):
    """What a sequence needs of the tokenizer."""

    eos_token_ids: frozenset[int]

    def detokenizer(self, prompt: Several[int] = (), shown: Several[int] = ()) -> Detokenizer:
        """A text that continues `prompt`, or begins. Special tokens show only if `shown`."""
        ...

    def matcher(self, constraint: Constraint) -> Matcher:
        """A matcher at the constraint's beginning. Raises `errors.InvalidRequest` for a constraint
        that no answer can meet."""
        ...

    def token_text(self, token_id: int) -> str:
        """Bytes of a token in the middle of a text; for a special token, its name."""
        ...


class TokenCounts:
    """The tokens that occurred, and how often each was generated (0: only in the prompt). Grows
    with the sequence, so that penalties cost a step nothing for what came before it."""

    __slots__ = ("_places", "generated", "token_ids")

    def __init__(self, prompt: tuple[int, ...] = ()) -> None:
        self.token_ids = array("q", dict.fromkeys(prompt))
        self.generated = array("f", bytes(4 * len(self.token_ids)))
        self._places = {token_id: place for place, token_id in enumerate(self.token_ids)}

    def add(self, token_id: int) -> None:
        """Count a generated token."""
        place = self._places.setdefault(token_id, len(self.token_ids))
        if place == len(self.token_ids):
            self.token_ids.append(token_id)
            self.generated.append(0.0)
        self.generated[place] += 1.0


class Sequence:
    """A request on its way through the engine.

    `token_ids` is the prompt followed by what was generated; the first `computed` of them have keys
    and values in the cache. There is no prefill and no decode phase: a sequence just catches up
    with its own tokens. `adapter` is the key of the weights it runs with: the request's name for
    them, or what `AdapterTable.acquire` gave for it.
    """

    __slots__ = (
        "__weakref__", "_detokenizer", "_stop_token_ids", "_vocabulary", "_withheld",
        "adapter", "arrival", "biases", "blocks", "cached", "cancelled", "computed", "counts", "finish_reason",
        "matcher", "prompt_length", "prompt_logprobs", "request", "stopped_by", "token_ids",
    )  # fmt: skip

    def __init__(self, request: GenerationRequest, vocabulary: Vocabulary) -> None:
        self.request = request
        self.adapter = request.adapter
        self.token_ids = list(request.prompt_token_ids)
        self.prompt_length = len(self.token_ids)
        self.computed = 0
        self.cached = 0
        self.prompt_logprobs = _to_be_scored(request)
        self.blocks = Blocks([], root=0)
        self.arrival = 0
        self.cancelled = False
        self.finish_reason: FinishReason | None = None
        self.stopped_by = ""
        constraint = request.sampling.constraint
        self.matcher: Matcher | None = vocabulary.matcher(constraint) if constraint else None
        self.counts = _counts(request)
        self.biases = _biases(request.sampling.logit_bias)
        """(token ids, what is added to their logits), in the form that a step can take as it is."""
        eos_token_ids = frozenset() if request.sampling.ignore_eos else vocabulary.eos_token_ids
        self._stop_token_ids = eos_token_ids | request.sampling.stop_token_ids
        self._vocabulary = vocabulary
        self._detokenizer = vocabulary.detokenizer(
            request.prompt_token_ids if request.continues else (), request.shown_token_ids
        )
        self._withheld = ""

    @property
    def longest(self) -> int:
        """Tokens of the prompt and of the longest answer it may get."""
        return self.prompt_length + self.request.sampling.max_tokens

    @property
    def output_length(self) -> int:
        return len(self.token_ids) - self.prompt_length

    @property
    def pending(self) -> int:
        """Tokens that the model has not seen yet: 1 while decoding."""
        return len(self.token_ids) - self.computed

    def note(self, prompt: PromptLogprobs) -> None:
        """Take the log probabilities of the prompt's next tokens."""
        assert self.prompt_logprobs is not None
        self.prompt_logprobs.extend(prompt)

    def append(self, sampled: Sampled) -> TokenEvent:
        """Take the next token and say what may be shown now."""
        if sampled.token_id is None or self._scores_are_no_numbers():
            fault = self.matcher.fault if self.matcher else ""
            return self.finish(
                FinishReason.ERROR, fault or "the model produced no numbers for this prompt"
            )
        if self.request.sampling.max_tokens == 0:
            return replace(self.finish(FinishReason.LENGTH), prompt_logprobs=self.prompt_logprobs)
        self.token_ids.append(sampled.token_id)
        if self.counts is not None:
            self.counts.add(sampled.token_id)
        if self.matcher is not None:
            self.matcher.advance(sampled.token_id)
        rivals = self._named(sampled.top)  # As they would stand here: before the token that came.
        text = self._text_after(sampled.token_id)
        return TokenEvent(
            token_id=sampled.token_id,
            text=text,
            logprob=sampled.logprob,
            top_logprobs=rivals,
            finish_reason=self.finish_reason,
            cached_tokens=self.cached if self.output_length == 1 else 0,
            stopped_by=self.stopped_by,
            prompt_logprobs=self.prompt_logprobs if self.output_length == 1 else None,
        )

    def embed(self, sampled: Sampled) -> TokenEvent:
        """Take the embedding, which is all that the request asked for."""
        if not sampled.embedding:
            return self.finish(FinishReason.ERROR, "the model produced no numbers for this text")
        self.finish_reason = FinishReason.STOP
        return TokenEvent(None, sampled.embedding, finish_reason=FinishReason.STOP)

    def finish(self, reason: FinishReason, error: str | None = None) -> TokenEvent:
        """End without a further token; what was held back is delivered, for it was generated."""
        self.finish_reason = reason
        text = self._withheld
        self._withheld = ""
        return TokenEvent(token_id=None, text=text, finish_reason=reason, error=error)

    def _scores_are_no_numbers(self) -> bool:
        scores = self.prompt_logprobs
        return scores is not None and not self.output_length and any(map(isnan, scores.logprobs))

    def _text_after(self, token_id: int) -> str:
        if token_id in self._stop_token_ids:
            self.finish_reason = FinishReason.STOP
            self._withheld += self._detokenizer.flush()
        else:
            self._withheld += self._detokenizer.push(token_id)
            self.finish_reason = self._end_after_this()
            if self.finish_reason:
                self._withheld += self._detokenizer.flush()
        self._cut_at_stop_string()
        return self._release()

    def _end_after_this(self) -> FinishReason | None:
        if (
            self.matcher is not None
            and self.matcher.complete
            and not self.request.sampling.ignore_eos
        ):
            return FinishReason.STOP  # Only the end token could follow; it would cost a step.
        return (
            FinishReason.LENGTH if self.output_length >= self.request.sampling.max_tokens else None
        )

    def _cut_at_stop_string(self) -> None:
        found = [
            (start, stop)
            for stop in self.request.sampling.stop
            if stop and (start := self._withheld.find(stop)) >= 0
        ]
        if found:
            start, self.stopped_by = min(found)
            self._withheld = self._withheld[:start]
            self.finish_reason = FinishReason.STOP

    def _release(self) -> str:
        keep = 0 if self.finish_reason else held_back(self._withheld, self.request.sampling.stop)
        cut = len(self._withheld) - keep
        text = self._withheld[:cut]
        self._withheld = self._withheld[cut:]
        return text

    def _named(self, top: tuple[tuple[int, float], ...]) -> tuple[TopLogprob, ...]:
        return tuple(TopLogprob(token_id, self._name(token_id), value) for token_id, value in top)

    def _name(self, token_id: int) -> str:
        # One that adds nothing, such as the end, still has a name.
        own = self._detokenizer.bytes_of(token_id)
        return own.decode(errors="replace") if own else self._vocabulary.token_text(token_id)


def _to_be_scored(request: GenerationRequest) -> PromptLogprobs | None:
    """What the prompt's log probabilities will be added to; None if nobody asks for them."""
    top = request.sampling.prompt_logprobs
    return None if top is None else PromptLogprobs(top, array("I", request.prompt_token_ids))


def _counts(request: GenerationRequest) -> TokenCounts | None:
    """What the penalties need: only the repetition penalty looks at the prompt."""
    sampling = request.sampling
    if sampling.repetition_penalty != 1.0:
        return TokenCounts(request.prompt_token_ids)
    return TokenCounts() if sampling.presence_penalty or sampling.frequency_penalty else None


def _biases(entries: tuple[tuple[int, float], ...]) -> "tuple[array[int], array[float]] | None":
    if not entries:
        return None
    return array("q", (token_id for token_id, _ in entries)), array(
        "f", (bias for _, bias in entries)
    )


def held_back(text: str, stops: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that may yet become a stop string."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest
