"""One request inside the engine: its tokens, the text they become, and when it is finished. Knows no torch."""

from dataclasses import dataclass
from typing import Protocol

from llm_runtime.request import FinishReason, GenerationRequest, TokenEvent, TopLogprob


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the sampler chose for one sequence. `token_id` None: the logits were no numbers."""

    token_id: int | None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """(token id, natural-log probability), most likely first."""


class Detokenizer(Protocol):
    """Turns the tokens of one sequence into text as they come."""

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; empty while bytes of a character are missing."""
        ...

    def flush(self) -> str:
        """What is left at the end, incomplete characters included."""
        ...


class Vocabulary(Protocol):
    """What a sequence needs of the tokenizer."""

    eos_token_ids: frozenset[int]

    def detokenizer(self) -> Detokenizer: ...

    def token_text(self, token_id: int) -> str: ...


class Sequence:
    """A request on its way through the engine.

    `token_ids` is the prompt followed by what was generated; the first `computed` of them have keys and values in the
    cache. There is no prefill and no decode phase: a sequence just catches up with its own tokens.
    """

    __slots__ = (
        "__weakref__", "_detokenizer", "_held", "_stop_token_ids", "_vocabulary",
        "arrival", "cancelled", "computed", "finish_reason", "prompt_length", "request", "token_ids",
    )  # fmt: skip

    def __init__(self, request: GenerationRequest, vocabulary: Vocabulary) -> None:
        self.request = request
        self.token_ids = list(request.prompt_token_ids)
        self.prompt_length = len(self.token_ids)
        self.computed = 0
        self.arrival = 0
        self.cancelled = False
        self.finish_reason: FinishReason | None = None
        eos_token_ids = frozenset() if request.sampling.ignore_eos else vocabulary.eos_token_ids
        self._stop_token_ids = eos_token_ids | request.sampling.stop_token_ids
        self._vocabulary = vocabulary
        self._detokenizer = vocabulary.detokenizer()
        self._held = ""

    @property
    def output_length(self) -> int:
        return len(self.token_ids) - self.prompt_length

    @property
    def pending(self) -> int:
        """Tokens that the model has not seen yet: 1 while decoding."""
        return len(self.token_ids) - self.computed

    def append(self, sampled: Sampled) -> TokenEvent:
        """Take the next token and say what may be shown now."""
        if sampled.token_id is None:
            return self.finish(FinishReason.ERROR, "the model produced no numbers for this prompt")
        self.token_ids.append(sampled.token_id)
        text = self._text_after(sampled.token_id)
        return TokenEvent(
            token_id=sampled.token_id,
            text=text,
            logprob=sampled.logprob,
            top_logprobs=self._named(sampled.top),
            finish_reason=self.finish_reason,
        )

    def finish(self, reason: FinishReason, error: str | None = None) -> TokenEvent:
        """End without a further token; what was held back is delivered, for it was generated."""
        self.finish_reason = reason
        text, self._held = self._held, ""
        return TokenEvent(token_id=None, text=text, finish_reason=reason, error=error)

    def _text_after(self, token_id: int) -> str:
        if token_id in self._stop_token_ids:
            self.finish_reason = FinishReason.STOP
            self._held += self._detokenizer.flush()
        else:
            self._held += self._detokenizer.push(token_id)
            if self.output_length >= self.request.sampling.max_tokens:
                self.finish_reason = FinishReason.LENGTH
                self._held += self._detokenizer.flush()
        self._cut_at_stop_string()
        return self._release()

    def _cut_at_stop_string(self) -> None:
        starts = [start for stop in self.request.sampling.stop if stop and (start := self._held.find(stop)) >= 0]
        if starts:
            self._held = self._held[: min(starts)]
            self.finish_reason = FinishReason.STOP

    def _release(self) -> str:
        keep = 0 if self.finish_reason else held_back(self._held, self.request.sampling.stop)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def _named(self, top: tuple[tuple[int, float], ...]) -> tuple[TopLogprob, ...]:
        return tuple(TopLogprob(token_id, self._vocabulary.token_text(token_id), value) for token_id, value in top)


def held_back(text: str, stops: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that may yet become a stop string."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest
