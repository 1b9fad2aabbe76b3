"""The types between API and engine: requests, events, and the protocols that both sides implement.

Every dialect of the API translates into a `GenerationRequest`, and the engine answers with
`TokenEvent`s. The two sides share nothing else.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Protocol

from llm_runtime.contract import STANDARD_TIER, Tier

Message = dict[str, Any]
"""A message for chat templates: `role`, `content` (always a string),
and optionally `tool_calls` and more."""

Ending = Literal["answer", "nothing", "continued"]
"""What stands after a conversation's last message: the beginning of an answer, nothing, or (where
that message goes on) not even its end."""


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller."""

    id: str
    """The key's public part, or `ip:<address>` for a client without a key."""
    name: str
    """Name for logs and usage."""
    tier: Tier = STANDARD_TIER
    """The caller's limits: those of the tier, overridden by the key's own."""
    owner: str = ""
    adapters: tuple[str, ...] = ()
    """Adapters that the caller may use beside the base model. Empty means all."""
    admin: bool = False
    """Whether the caller may manage models and keys."""
    operator: bool = False
    """Whether it is the operator itself, which alone may use candidates of adapters."""


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


STRICT_AS = "x-strict-as"
"""Key in a grammar's strict schemas.
Its value is the client's name of the schema, for error messages."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the complete answer must match.
    `text` is a JSON schema or a regular expression; "" for any JSON object.

    The text of a grammar is JSON: `rules` in llguidance's Lark,
    and `schemas` that they reference as `schema_0`, …
    """

    kind: Literal["json_schema", "json_object", "regex", "grammar"]
    text: str = ""
    strict: bool = False
    """Whether the JSON schema is enforced completely or refused.
    Otherwise it is enforced as far as possible.

    Schemas in a grammar are strict if they contain `STRICT_AS`.
    """


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. `temperature` 0 is greedy.
    By default, all filters and penalties are off.

    `repetition_penalty` scales down the logit of every token in prompt or answer (Keskar et al.
    2019, as in Transformers). For tokens of the answer, `presence_penalty` is subtracted once and
    `frequency_penalty` once for each occurrence (as in OpenAI's API). `logit_bias` has (token id,
    bias) pairs, which are added to the logits.
    """

    max_tokens: int
    """0: the prompt is read, and nothing is generated."""
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
    """Log probabilities of the chosen token and the k most likely ones; None for none."""
    prompt_logprobs: int | None = None
    """The same of the prompt's tokens, each in the place of the one that was chosen."""


@dataclass(frozen=True, slots=True)
class EmbeddingPrompt:
    """A text that goes before another one, to say what its embedding is for."""

    text: str
    unpooled_tokens: int = 0
    """Tokens of it that are left out when the tokens' vectors become one; 0: none."""


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """What a model that makes embeddings says of itself."""

    dimensions: int
    normalised: bool
    """Whether its vectors have the length 1."""
    prompts: Mapping[str, EmbeddingPrompt] = field(default_factory=dict)
    default_prompt: str = ""
    """Name of the prompt for texts that name none; "" for no prompt."""
    matryoshka: tuple[int, ...] = ()
    """Dimensions that its vectors may be cut to, if its authors name them; empty: to any."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate, or one text to embed.
    `n > 1` of a dialect becomes several of these."""

    id: str
    prompt_token_ids: tuple[int, ...]
    sampling: Sampling
    adapter: str = ""
    """Name of a loaded LoRA adapter; "" is the base model."""
    priority: int = 0
    """Waiting requests with a higher number are admitted first."""
    continues: bool = False
    """Whether the answer continues the prompt's text, instead of beginning a new one."""
    shown_token_ids: tuple[int, ...] = ()
    """Special tokens that stay in the text, because the dialect parses them."""
    tenant: str = ""
    """The caller's id. In the queue, tenants of the same priority take turns."""
    embeds: bool = False
    """Whether the prompt's embedding is wanted, instead of an answer."""
    unpooled_tokens: int = 0
    """Number of tokens at the prompt's beginning that its vector is not made of."""


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One candidate token: its text and its natural-log probability under the unmodified
    distribution."""

    token_id: int
    text: str
    logprob: float


@dataclass(slots=True)
class PromptLogprobs:
    """Natural-log probabilities of a prompt's tokens under the unmodified distribution, each after
    the tokens before it. The first token has none: entry i is that of token i + 1.

    Numbers are in arrays, because a prompt may have many thousand tokens, each with `top` rivals.
    """

    top: int
    """How many of the most likely tokens are listed for each place."""
    token_ids: "array[int]" = field(default_factory=lambda: array("I"))
    """All tokens of the prompt."""
    logprobs: "array[float]" = field(default_factory=lambda: array("f"))
    ranks: "array[int]" = field(default_factory=lambda: array("I"))
    """1 for the most likely token."""
    top_ids: "array[int]" = field(default_factory=lambda: array("I"))
    """`top` for each entry, the most likely first."""
    top_logprobs: "array[float]" = field(default_factory=lambda: array("f"))

    def __iter__(self) -> Iterator[tuple[int, float, int, list[tuple[int, float]]]]:
        """(token id, log probability, rank, [(rival's token id, its log probability)]) of each token
        but the first."""
        for place, (logprob, rank) in enumerate(zip(self.logprobs, self.ranks, strict=True)):
            rivals = slice(place * self.top, (place + 1) * self.top)
            top = zip(self.top_ids[rivals], self.top_logprobs[rivals], strict=True)
            yield self.token_ids[place + 1], logprob, rank, list(top)

    @property
    def arrays(self) -> "tuple[array[Any], ...]":
        """All numbers, in the order of the fields."""
        return self.token_ids, self.logprobs, self.ranks, self.top_ids, self.top_logprobs

    def extend(self, later: "PromptLogprobs") -> None:
        """Add what a later part of the prompt has."""
        for own, more in zip(self.arrays, later.arrays, strict=True):
            own.extend(more)


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated token, or an embedding. Only the last event of a request has a `finish_reason`.

    `text` may be empty while a character is incomplete, or while text is held back that may become
    a stop string. The final event has the rest. Text from a stop string on is never delivered. If a
    request is cancelled or fails, its last event has `token_id` None.

    An embedding is one event without a token. Its `text` is the vector: float32, little-endian, in
    base64, as OpenAI's clients ask for it.
    """

    token_id: int | None
    text: str
    logprob: float | None = None
    top_logprobs: tuple[TopLogprob, ...] = field(default=())
    finish_reason: FinishReason | None = None
    error: str | None = None
    cached_tokens: int = 0
    """In the first event: tokens of the prompt that were in the prefix cache."""
    stopped_by: str = ""
    """In the last event: the stop string at which the text ended; "" if it ended otherwise."""
    prompt_logprobs: PromptLogprobs | None = None
    """In the first event, where they were asked for."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot for metrics and `/status`. Cheap enough for every scrape."""

    running: int
    waiting: int
    kv_cache_usage_ratio: float
    steps: int
    alive: bool
    """False if the step loop has ended or hangs. Then the liveness probe must fail."""
    batch_size: int = 0
    """Sequences in the last step."""
    prompt_tokens: int = 0
    """Prompt tokens of all admitted requests so far."""
    cached_prompt_tokens: int = 0
    """How many of them were in the prefix cache."""
    gpu_memory_bytes: int | None = None
    """GPU memory that the engine holds; None on a CPU."""
    guessed_tokens: int = 0
    """Tokens of answers that were guessed and then checked, several in a step."""
    right_tokens: int = 0
    """How many of them were right."""
    kind: Literal["batched", "sequential"] = "batched"
    """The runner. A sequential one computes the sequences of a step one after another."""
    quiet_seconds: float = 0.0
    """Time since any open request made progress (a token, or a chunk of a prompt);
    0 without open requests."""
    load_seconds: float = 0.0
    """Time from opening the first file to the end of the first generation."""
    load_peak_bytes: int = 0
    """Peak memory that loading added, without mapped files."""


class TokenStream(Protocol):
    """The events of one request up to the final one:
    one by one by iteration, or all available ones by `take`."""

    def __aiter__(self) -> "TokenStream": ...

    async def __anext__(self) -> TokenEvent: ...

    async def take(self) -> list[TokenEvent]:
        """Wait for at least one event and return all available ones; empty after the final one.

        So a reader that is slower than the engine handles several at once, and catches up.
        """
        ...

    async def aclose(self) -> None:
        """Cancel the request if it has not ended."""
        ...


class Engine(Protocol):
    """The engine as the pipeline sees it. All methods are called on the event loop's thread."""

    @property
    def max_model_length(self) -> int:
        """Most tokens of prompt and answer together:
        the configured length, or the model's if that is less."""
        ...

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that a request may use."""
        ...

    @property
    def embedding(self) -> EmbeddingModel | None:
        """What the model's embeddings are like; None for a model that generates."""
        ...

    def generate(self, request: GenerationRequest) -> TokenStream:
        """Admit the request at once, and return its events.
        Raises `errors.QueueFull`, `InvalidRequest` or `NotFound`.

        Closing the stream early (`aclose`, also before its first event) cancels the request: its
        slot in the batch is free in the next step.
        """
        ...

    def stats(self) -> EngineStats: ...

    async def drain(self, timeout_seconds: float) -> None:
        """Refuse new requests, let running ones finish,
        and cancel those that are left after the timeout."""
        ...

    def close(self) -> None: ...

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Load or replace a LoRA adapter while serving. Requests that run with the old one keep it.

        Changes nothing if it raises `errors.Fatal`.
        """
        ...

    async def drop_adapter(self, name: str) -> None:
        """Refuse new requests for the adapter,
        and return when its last request has ended and its memory is free."""
        ...


class Detokenizer(Protocol):
    """Converts the tokens of one sequence to text as they are generated."""

    def bytes_of(self, token_id: int) -> bytes:
        """Bytes that `token_id` would add here; none for a hidden special token."""
        ...

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; empty while a character is incomplete."""
        ...

    def flush(self) -> str:
        """The rest of the text at the end, with incomplete characters replaced."""
        ...


class TextCodec(Protocol):
    """Converts between text and tokens with the served model's tokenizer. Needs no torch."""

    vocabulary_size: int
    eos_token_ids: frozenset[int]
    chat_template: str
    """Text of the chat template; "" if the model has none."""
    control_ids: Mapping[str, int]
    """Ids of control tokens (special ones and other markup) by their text.
    A grammar can't spell them in letters."""
    tool_template: str
    """Text of the template for conversations with tools; usually the same."""
    special_tokens: Mapping[str, str]
    """Texts of special tokens by what they are, such as `eos_token`."""

    @property
    def sampling_defaults(self) -> Mapping[str, float]:
        """Fields of `Sampling` that the model's authors recommend,
        for requests that leave them out."""
        ...

    def prepare(self) -> None:
        """Build what the first requests would otherwise wait for.
        Takes tenths of a second; safe in a thread."""
        ...

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Tokens of plain text, by default with the special tokens that the tokenizer adds."""
        ...

    def encode_chat(
        self,
        messages: list[Message],
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
        ending: Ending = "answer",
    ) -> list[int]:
        """Apply the chat template. `tools` have the form of functions in OpenAI's API.

        `options` are further variables of the template, such as `enable_thinking`. Raises
        `errors.InvalidRequest` if there is no template or it refuses.
        """
        ...

    def check_constraint(self, constraint: Constraint) -> None:
        """Raise `errors.InvalidRequest` for a constraint that can't be enforced.
        May take 0.1 s; safe in a thread."""
        ...

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens; with `special` also that of special ones."""
        ...

    def token_text(self, token_id: int) -> str:
        """Text of one token in the middle of a text; for a special token, its name."""
        ...

    def token_name(self, token_id: int) -> str:
        """The token as the vocabulary spells it."""
        ...

    def detokenizer(self, prompt: Sequence[int] = (), shown: Sequence[int] = ()) -> "Detokenizer":
        """A detokenizer for a new text, or one that continues `prompt`.
        Special tokens not in `shown` are hidden."""
        ...
