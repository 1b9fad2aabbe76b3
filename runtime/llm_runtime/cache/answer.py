"""A complete answer as it is cached: everything that a dialect needs to replay it,
at once or as a stream."""

import math
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llm_runtime.request import FinishReason, PromptLogprobs, TokenEvent, TopLogprob

MAX_CHARACTERS = 32_000
"""A longer answer is passed to the requests that wait for it, but not cached."""
ANSWER_BYTES = 500
EVENT_CHARACTERS = 100
"""Size of an event without its text.
Only answers with log probabilities have more than one event for a choice."""


@dataclass(frozen=True, slots=True)
class AnswerChoice:
    """One choice. Without log probabilities, a single event has all of its text."""

    events: tuple[TokenEvent, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """All choices, and the tokens that they cost when they were generated."""

    prompt_tokens: int
    choices: tuple[AnswerChoice, ...]

    @property
    def completion_tokens(self) -> int:
        return sum(choice.tokens for choice in self.choices)

    @property
    def characters(self) -> int:
        """Size of the answer in characters, with an allowance for each event."""
        return sum(
            len(event.text)
            + EVENT_CHARACTERS * (1 + len(event.top_logprobs))
            + _bytes(event.prompt_logprobs)
            for choice in self.choices
            for event in choice.events
        )

    @property
    def size(self) -> int:
        """Approximate memory of the answer, in bytes."""
        return ANSWER_BYTES + 2 * self.characters


class Turn(Protocol):
    """Single-flight: the holder of a turn generates an answer that others may wait for,
    and must end the turn."""

    def keep(self, answer: Answer) -> None:
        """End the turn with a complete answer."""
        ...

    def drop(self) -> None:
        """End the turn without an answer, so that the next request may try.
        Does nothing after `keep`."""
        ...


def _bytes(scores: PromptLogprobs | None) -> int:
    return sum(part.itemsize * len(part) for part in scores.arrays) if scores else 0


def to_json(answer: Answer) -> dict[str, Any]:
    """The answer as JSON for the database."""
    choices = [
        {"tokens": choice.tokens, "events": list(map(_pack, choice.events))}
        for choice in answer.choices
    ]
    return {"prompt_tokens": answer.prompt_tokens, "choices": choices}


def from_json(stored: dict[str, Any]) -> Answer:
    """The answer from the database.
    Raises LookupError, TypeError or ValueError if another version wrote it."""
    choices = (
        AnswerChoice(tuple(map(_unpack, choice["events"])), choice["tokens"])
        for choice in stored["choices"]
    )
    return Answer(stored["prompt_tokens"], tuple(choices))


def _pack(event: TokenEvent) -> list[Any]:
    top = [[rival.token_id, rival.text, _finite(rival.logprob)] for rival in event.top_logprobs]
    scores = event.prompt_logprobs
    rest: list[Any] = [event.stopped_by] if event.stopped_by or scores else []
    if scores:
        rest += [scores.top, *(b64encode(part.tobytes()).decode() for part in scores.arrays)]
    return [event.token_id, event.text, _finite(event.logprob), top, event.finish_reason, *rest]


def _unpack(packed: Sequence[Any]) -> TokenEvent:
    token_id, text, logprob, top, reason, *rest = packed
    rivals = tuple(TopLogprob(number, rival, _number(value)) for number, rival, value in top)
    end = FinishReason(reason) if reason else None
    stopped_by, *scores = rest or [""]
    prompt = _prompt_logprobs(*scores) if scores else None
    return TokenEvent(
        token_id, text, logprob, rivals, end, stopped_by=stopped_by, prompt_logprobs=prompt
    )


def _prompt_logprobs(top: int, *arrays: str) -> PromptLogprobs:
    scores = PromptLogprobs(top)
    for part, stored in zip(scores.arrays, arrays, strict=True):
        part.frombytes(b64decode(stored))
    return scores


def _finite(value: float | None) -> float | None:
    # JSON has no minus infinity.
    return value if value is not None and math.isfinite(value) else None


def _number(value: float | None) -> float:
    return -math.inf if value is None else value
