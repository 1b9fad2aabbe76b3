"""The nouns of a generation: what the API layer hands to the engine and what comes back.

Every dialect of the API translates into a `GenerationRequest`; the engine answers with `TokenEvent`s. Both sides know
nothing else of each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Protocol

from llm_runtime.contract import STANDARD_TIER, Tier

Message = dict[str, Any]
"""Of a conversation, as chat templates take it: `role`, `content` (always a text), maybe `tool_calls` and more."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as everything behind authentication sees them."""

    id: str
    """The key's public part, or `ip:<address>` of a client without one."""
    name: str
    """For logs and usage."""
    tier: Tier = STANDARD_TIER
    """Its limits; a key's own are laid over those of its tier."""
    owner: str = ""
    adapters: tuple[str, ...] = ()
    """Adapters that it may use beside the model itself; none named: all."""
    admin: bool = False
    """May manage models and keys."""


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


STRICT_AS = "x-strict-as"
"""In a grammar's schema that is strict: what the client calls it."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the whole answer must match. `text` is the JSON schema or the regular expression; "" for any JSON object.

    A grammar is JSON: `rules` in llguidance's Lark, `schemas` that they speak of as `schema_0`, `schema_1`, …
    """

    kind: Literal["json_schema", "json_object", "regex", "grammar"]
    text: str = ""
    strict: bool = False
    """The JSON schema is enforced to its last word, or refused. Otherwise it is enforced as far as it can be.

    Those of a grammar say by `STRICT_AS` whether they are.
    """


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. `temperature` 0 is greedy; the defaults of all filters and penalties switch them off.

    `repetition_penalty` divides or multiplies the logits of every token seen in prompt or answer (Keskar et al. 2019,
    as in Transformers); `presence_penalty` and `frequency_penalty` are subtracted once, or once for each occurrence,
    for tokens of the answer (as in OpenAI's API); `logit_bias` is added to the logits of (token id, bias) pairs.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    constraint: Constraint | None = None
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
    adapter: str = ""
    """Name of a loaded LoRA adapter; "" is the base model."""
    priority: int = 0
    """Of two that wait, the one with the higher number gets the place."""
    continues: bool = False
    """The answer's text goes on from the prompt's, and does not begin one."""
    shown_token_ids: tuple[int, ...] = ()
    """Special tokens that show in the text: markup that somebody reads before anybody else sees it."""
    tenant: str = ""
    """Whom it is for: tenants of one priority take turns in the queue."""


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
    cached_tokens: int = 0
    """In the first event: how many tokens of the prompt were found in the prefix cache."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot for metrics and `/status`; cheap enough for every scrape."""

    running: int
    waiting: int
    kv_cache_usage_ratio: float
    steps: int
    alive: bool
    """False when the step loop has ended or stands still: liveness must fail."""
    batch_size: int = 0
    """Sequences in the last step."""
    prompt_tokens: int = 0
    """Prompt tokens of all admitted requests so far."""
    cached_prompt_tokens: int = 0
    """How many of them came out of the prefix cache."""
    gpu_memory_bytes: int | None = None
    """GPU memory that the engine holds; None on a CPU."""
    kind: Literal["batched", "sequential"] = "batched"
    """Sequential: the slow path, one sequence after another within a step."""
    quiet_seconds: float = 0.0
    """For how long nothing has come of the requests that are open: no token, no part of a prompt. 0 without any."""
    load_seconds: float = 0.0
    """From the first file to the end of the first generation."""
    load_peak_bytes: int = 0
    """Memory that loading took at once, mapped files not counted."""


class TokenStream(Protocol):
    """The events of one request, until the final one: singly by iteration, or as they lie by `take`."""

    def __aiter__(self) -> "TokenStream": ...

    async def __anext__(self) -> TokenEvent: ...

    async def take(self) -> list[TokenEvent]:
        """All events that have come since, at least one; empty after the final one.

        Whoever is slower than the engine so handles several at once, and catches up.
        """
        ...

    async def aclose(self) -> None:
        """Give the request up if it has not ended."""
        ...


class Engine(Protocol):
    """What the pipeline needs of an engine. All methods are called from the event loop's thread."""

    @property
    def max_model_length(self) -> int:
        """Tokens that prompt and answer may have together: the configured length, or the model's if that is less."""
        ...

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that a request may ask for."""
        ...

    def generate(self, request: GenerationRequest) -> TokenStream:
        """Admit now (raises `errors.QueueFull`, `InvalidRequest` or `NotFound`), then yield events until the final one.

        Closing the iterator early (`aclose`, also before its first event) cancels the request: its place in the batch
        is free at the next step.
        """
        ...

    def stats(self) -> EngineStats: ...

    async def drain(self, timeout_seconds: float) -> None:
        """Admit nothing more, let running requests finish, cancel what is left after the time-out."""
        ...

    def close(self) -> None: ...

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Load or replace a LoRA adapter while serving; requests that run with the old one keep it.

        Raises `errors.Fatal`, and nothing has changed.
        """
        ...

    async def drop_adapter(self, name: str) -> None:
        """Refuse the adapter from now on, and return when its last request has ended and its memory is free."""
        ...


class Detokenizer(Protocol):
    """Turns the tokens of one sequence into text as they come."""

    def bytes_of(self, token_id: int) -> bytes:
        """What `token_id` would add here; nothing for a special token that is hidden."""
        ...

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; empty while bytes of a character are missing."""
        ...

    def flush(self) -> str:
        """What is left at the end, incomplete characters included."""
        ...


class TextCodec(Protocol):
    """Between text and tokens, as the served model's tokenizer does it. Needs no torch."""

    vocabulary_size: int
    eos_token_ids: frozenset[int]
    chat_template: str
    """Its text; "" for a model that has none."""
    control_ids: Mapping[str, int]
    """Tokens that stand for no letters, special ones and other markup, by their text: no grammar spells them."""
    tool_template: str
    """The text of the one for conversations with tools: mostly the same."""

    @property
    def sampling_defaults(self) -> Mapping[str, float]:
        """Fields of `Sampling` as the model's makers recommend them, for requests that leave them out."""
        ...

    def prepare(self) -> None:
        """Make what the first requests would wait for. Takes tenths of a second; safe in a thread."""
        ...

    def encode(self, text: str) -> list[int]: ...

    def encode_chat(
        self,
        messages: list[Message],
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Apply the chat template with a generation prompt; `tools` are functions as OpenAI's API describes them.

        `options` are further variables of the template, such as `enable_thinking`. Raises `errors.InvalidRequest`
        without a template.
        """
        ...

    def check_constraint(self, constraint: Constraint) -> None:
        """Raise `errors.InvalidRequest` for a constraint that can't be enforced. May take 0.1 s; safe in a thread."""
        ...

    def decode(self, token_ids: list[int]) -> str: ...

    def detokenizer(self, prompt: Sequence[int] = (), shown: Sequence[int] = ()) -> "Detokenizer":
        """Of a text that goes on from `prompt`'s, or begins; special tokens show only if `shown`."""
        ...
