"""Fields and rendering that chat completions and text completions share."""

import re
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring as quoted
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from llm_runtime.api.body import (
    Body,
    MaxTokens,
    Seed,
    Stops,
    Temperature,
    Text,
    TopK,
    TopP,
    conflict,
    recommended,
    sampling,
    schema_text,
)
from llm_runtime.api.openai.fields import HINTS
from llm_runtime.engine.limits import (
    MAX_BIAS,
    MAX_BIASES,
    MAX_LOGPROBS,
    MAX_REPETITION_PENALTY,
    MAX_STOP_TOKENS,
)
from llm_runtime.pipeline import Generation, Pipeline
from llm_runtime.request import Constraint, Sampling
from llm_runtime.stream import compact_json, sse

MAX_N = 128
TEXT_HERE = "\0text\0"
LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have, as in OpenAI's API."""


class StreamOptions(Body):
    """`stream_options`."""

    include_usage: bool = False
    no_effect: ClassVar[dict[str, tuple[Any, ...]]] = {
        "include_obfuscation": (False,),
        "continuous_usage_stats": (False,),
    }


class NamedSchema(Body):
    """`response_format.json_schema`. It is enforced as far as it can be;
    with `strict` to its last word, or refused."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: dict[str, Any] = Field(alias="schema")
    description: Text | None = None
    strict: bool | None = None


class ResponseFormat(Body):
    """`response_format`: text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _schema_goes_with_its_type(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise conflict(
                "response_format", "json_schema must be there if type is json_schema, and only then"
            )
        return self

    def constraint(self) -> Constraint | None:
        if self.type == "json_object":
            return Constraint("json_object")
        if self.json_schema is None:
            return None
        return Constraint(
            "json_schema",
            schema_text(self.json_schema.schema_),
            strict=bool(self.json_schema.strict),
        )


class StructuredOutputs(Body):
    """`structured_outputs`, as vLLM's server takes it: one of its fields."""

    regex: Annotated[Text, Field(min_length=1)] | None = None
    json_: dict[str, Any] | Text | None = Field(default=None, alias="json")
    choice: (
        Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=1, max_length=256)]
        | None
    ) = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "StructuredOutputs":
        if len(self.model_fields_set) != 1:
            raise conflict("structured_outputs", "takes exactly one of regex, json and choice")
        return self

    def constraint(self) -> Constraint:
        if self.json_ is not None:
            return Constraint(
                "json_schema",
                self.json_ if isinstance(self.json_, str) else schema_text(self.json_),
            )
        return Constraint("regex", self.regex or "|".join(map(_literally, self.choice or ())))


def _literally(text: str) -> str:
    return re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", text)


def _biases(entries: dict[str, float]) -> dict[str, float]:
    if any(not re.fullmatch("0|[1-9][0-9]{0,8}", token_id) for token_id in entries):
        raise ValueError("its names must be token ids in digits")
    return entries


def _off(top_k: Any) -> Any:
    return 0 if top_k == -1 and not isinstance(top_k, bool) else top_k


Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0)]


class OpenAIBody(Body):
    """Fields of both endpoints: OpenAI's, and from `top_k` on those of vLLM's server."""

    hints: ClassVar[frozenset[str]] = HINTS
    model: Annotated[Text, Field(min_length=1)]
    max_tokens: MaxTokens | None = None
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    n: Annotated[int, Field(ge=1, le=MAX_N)] = 1
    stop: Stops = Field(default_factory=list)
    seed: Seed | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Annotated[Text, Field(max_length=512)] | None = None
    """The client's own name of its user. Only a hash of it reaches the usage log."""
    safety_identifier: Annotated[Text, Field(max_length=512)] | None = None
    """OpenAI's newer name of `user`."""
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: Annotated[
        dict[str, Bias], Field(max_length=MAX_BIASES), AfterValidator(_biases)
    ] = Field(default_factory=dict)
    response_format: ResponseFormat | None = None
    top_k: Annotated[TopK, BeforeValidator(_off)] = 0
    """0 or -1: off."""
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    repetition_penalty: Annotated[
        float, Field(gt=0, le=MAX_REPETITION_PENALTY, allow_inf_nan=False)
    ] = 1.0
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKENS)] = Field(
        default_factory=list
    )
    ignore_eos: bool = False
    structured_outputs: StructuredOutputs | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> "OpenAIBody":
        if self.include_usage and not self.stream:
            raise conflict("stream_options", "needs stream: true")
        return self

    @model_validator(mode="after")
    def _prompts_are_scored_whole(self) -> "OpenAIBody":
        if self.prompt_logprobs is not None and self.stream:
            raise conflict("prompt_logprobs", "come in a whole answer only; send it without stream")
        return self

    @model_validator(mode="after")
    def _one_constraint(self) -> "OpenAIBody":
        if self.structured_outputs and self.response_format and self.response_format.constraint():
            raise conflict(
                "structured_outputs", "says something else than response_format; send one of them"
            )
        return self

    @property
    def constraint_field(self) -> str:
        return "structured_outputs" if self.structured_outputs else "response_format"

    def constraint(self) -> Constraint | None:
        """The constraint that the answer must match."""
        asked = self.structured_outputs or self.response_format
        return asked.constraint() if asked else None

    def sampling(
        self,
        max_tokens: int,
        logprobs: int | None,
        constraint: Constraint | None,
        defaults: Mapping[str, float],
    ) -> Sampling:
        """The sampling options, from fields of both endpoints and arguments that differ.
        `defaults` are the model's."""
        chosen: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            **recommended(self, defaults),
        }
        return sampling(
            max_tokens=max_tokens,
            **chosen,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=tuple((int(token_id), bias) for token_id, bias in self.logit_bias.items()),
            constraint=constraint,
            seed=self.seed,
            stop=self.stop,
            stop_token_ids=frozenset(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
            prompt_logprobs=self.scored,
        )

    @property
    def scored(self) -> int | None:
        """How many rivals of each token of the prompt are asked for; None if not even the tokens'
        own log probabilities."""
        return self.prompt_logprobs

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


def fingerprint(pipeline: Pipeline) -> str | None:
    """`system_fingerprint`: the model's version or commit,
    so that clients can notice a promotion."""
    return f"{pipeline.config.model.name}-v{pipeline.version}" if pipeline.version else None


def usage(generation: Generation) -> dict[str, Any]:
    """`usage`, up to now."""
    prompt = generation.prompt_tokens
    completion = generation.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": generation.cached_tokens},
    }


def logprob(value: float | None) -> float:
    """A log probability that JSON can represent."""
    return LOWEST_LOGPROB if value is None else max(value, LOWEST_LOGPROB)


class Chunks:
    """Renders a stream's chunks.
    Their common part is rendered only once, because most chunks have a single token."""

    def __init__(
        self,
        envelope: dict[str, Any],
        include_usage: bool,
        choice_of: Callable[[int, str], dict[str, Any]],
    ) -> None:
        """`choice_of(index, text)` returns a choice that contains only a text."""
        self._envelope = envelope
        self.include_usage = include_usage
        self._choice_of = choice_of
        self._head = f'data: {compact_json(envelope)[:-1]},"choices":['
        # Clients that request usage expect the field in every chunk, null in all but the last.
        self._tail = '],"usage":null}\n\n' if include_usage else "]}\n\n"
        self._around: dict[int, tuple[str, str]] = {}

    def choice(self, choice: dict[str, Any]) -> bytes:
        """A chunk with one choice."""
        return f"{self._head}{compact_json(choice)}{self._tail}".encode()

    def text(self, index: int, text: str) -> bytes:
        """A chunk with one choice that contains only `text`.
        Costs a fifth of rendering it from parts."""
        before, after = self._around.get(index) or self._render_around(index)
        return f"{before}{quoted(text)}{after}".encode()

    def usage(self, generation: Generation) -> bytes:
        """The last chunk, if `include_usage`."""
        return sse({**self._envelope, "choices": [], "usage": usage(generation)})

    def _render_around(self, index: int) -> tuple[str, str]:
        before, after = (
            self.choice(self._choice_of(index, TEXT_HERE)).decode().split(quoted(TEXT_HERE))
        )
        self._around[index] = before, after
        return before, after
