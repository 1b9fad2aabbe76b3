"""A whole answer, as it is kept: what every dialect needs to give it again, whole or as a stream."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llm_runtime.request import FinishReason, TokenEvent, TopLogprob

MAX_CHARACTERS = 32_000
"""A longer answer is given to those who wait for it, and not kept."""
ANSWER_BYTES = 500
EVENT_CHARACTERS = 100
"""What an event counts for beside its text: only answers with log probabilities have more than one for a choice."""


@dataclass(frozen=True, slots=True)
class AnswerChoice:
    """One choice. Without log probabilities one event holds all of its text."""

    events: tuple[TokenEvent, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """All choices, and what they cost when they were made."""

    prompt_tokens: int
    choices: tuple[AnswerChoice, ...]

    @property
    def completion_tokens(self) -> int:
        return sum(choice.tokens for choice in self.choices)

    @property
    def characters(self) -> int:
        """Its size."""
        return sum(
            len(event.text) + EVENT_CHARACTERS * (1 + len(event.top_logprobs))
            for choice in self.choices
            for event in choice.events
        )

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return ANSWER_BYTES + 2 * self.characters


class Turn(Protocol):
    """The right to make an answer, and the duty to say how it ended: others may wait for it."""

    def keep(self, answer: Answer) -> None:
        """The answer is whole."""
        ...

    def drop(self) -> None:
        """There will be none; the next may try. Does nothing after `keep`."""
        ...


def to_json(answer: Answer) -> dict[str, Any]:
    """For the database."""
    choices = [{"tokens": choice.tokens, "events": list(map(_pack, choice.events))} for choice in answer.choices]
    return {"prompt_tokens": answer.prompt_tokens, "choices": choices}


def from_json(stored: dict[str, Any]) -> Answer:
    """From the database. Raises LookupError, TypeError or ValueError for what another version has written."""
    choices = (AnswerChoice(tuple(map(_unpack, each["events"])), each["tokens"]) for each in stored["choices"])
    return Answer(stored["prompt_tokens"], tuple(choices))


def _pack(event: TokenEvent) -> list[Any]:
    top = [[each.token_id, each.text, _finite(each.logprob)] for each in event.top_logprobs]
    return [event.token_id, event.text, _finite(event.logprob), top, event.finish_reason]


def _unpack(packed: Sequence[Any]) -> TokenEvent:
    token_id, text, logprob, top, reason = packed
    rivals = tuple(TopLogprob(number, rival, _number(value)) for number, rival, value in top)
    return TokenEvent(token_id, text, logprob, rivals, FinishReason(reason) if reason else None)


def _finite(value: float | None) -> float | None:
    # JSON has no minus infinity.
    return value if value is not None and math.isfinite(value) else None


def _number(value: float | None) -> float:
    return -math.inf if value is None else value
