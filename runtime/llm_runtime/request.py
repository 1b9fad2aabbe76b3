"""The nouns of a generation: what the API layer hands to the engine and what comes back.

Every dialect of the API translates into a `GenerationRequest`; the engine answers with `TokenEvent`s. Both sides know
nothing else of each other.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1.0 switch those filters off."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    logprobs: int | None = None
    """None: no log probabilities; k: the chosen token's and those of the k most likely ones."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate. `n > 1` of a dialect becomes several of these."""

    id: str
    prompt_token_ids: tuple[int, ...]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One candidate token: its text and its natural-log probability under the unmodified distribution."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated token. The last event of a request, and only that one, has a `finish_reason`.

    `text` is what may be shown now: it may be empty (bytes of a character still missing, a possible stop string held
    back) and the final event carries what was held back. Text from a stop string on is never delivered. A request that
    ends without a token (cancelled, error) ends in an event with `token_id` None.
    """

    token_id: int | None
    text: str
    logprob: float | None = None
    top_logprobs: tuple[TopLogprob, ...] = field(default=())
    finish_reason: FinishReason | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot for metrics and `/status`; cheap enough for every scrape."""

    running: int
    waiting: int
    kv_cache_usage_ratio: float
    steps: int
    alive: bool
    """False when the step loop has ended or stands still: liveness must fail."""


class Engine(Protocol):
    """What the pipeline needs of an engine. All methods are called from the event loop's thread."""

    @property
    def max_model_length(self) -> int:
        """Tokens that prompt and answer may have together: the configured length, or the model's if that is less."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        """Admit now (raises `errors.QueueFull` or `errors.InvalidRequest`), then yield events until the final one.

        Closing the iterator early (`aclose`, also before its first event) cancels the request: its place in the batch
        is free at the next step.
        """
        ...

    def stats(self) -> EngineStats: ...

    async def drain(self, timeout_seconds: float) -> None:
        """Admit nothing more, let running requests finish, cancel what is left after the time-out."""
        ...

    def close(self) -> None: ...


class TextCodec(Protocol):
    """Between text and tokens, as the served model's tokenizer does it. Needs no torch."""

    vocabulary_size: int
    eos_token_ids: frozenset[int]

    def encode(self, text: str) -> list[int]: ...

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Apply the chat template with a generation prompt. Raises `errors.InvalidRequest` without a template."""
        ...

    def decode(self, token_ids: list[int]) -> str: ...

    def token_text(self, token_id: int) -> str:
        """One token's own text, special tokens included; bytes that are no character show as U+FFFD."""
        ...
