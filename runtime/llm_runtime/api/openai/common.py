"""What chat completions and text completions share."""

from collections.abc import AsyncGenerator, Callable
from json.encoder import encode_basestring as quoted
from typing import Annotated, Any, ClassVar
from uuid import uuid4

from pydantic import Field, model_validator

from llm_runtime import logs
from llm_runtime.api.answers import openai_error
from llm_runtime.api.body import Body, MaxTokens, Seed, Stops, Temperature, Text, TopP, conflict
from llm_runtime.pipeline import Generation, Pipeline, model_version
from llm_runtime.stream import EventStream, compact_json, sse

MAX_N = 128
TEXT_HERE = "\0text\0"
LOWEST_LOGPROB = -9999.0
"""JSON has no minus infinity; OpenAI writes this number for it."""

IDLE: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "store": (False,),
    "metadata": ({},),
    "service_tier": ("auto", "default"),
}


class StreamOptions(Body):
    """`stream_options`."""

    include_usage: bool = False
    no_effect: ClassVar[dict[str, tuple[Any, ...]]] = {"include_obfuscation": (False,)}


class OpenAIBody(Body):
    """Fields of both endpoints."""

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
    """Of its value only a hash reaches the usage log."""

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> "OpenAIBody":
        if self.stream_options and not self.stream:
            raise conflict("stream_options", "needs stream: true")
        return self

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


def new_id(prefix: str) -> str:
    """An id in OpenAI's form: `chatcmpl-…`."""
    return f"{prefix}-{uuid4().hex}"


def request_id() -> str:
    """The id of the HTTP request, for the usage log."""
    return logs.request_id.get() or ""


def fingerprint(pipeline: Pipeline) -> str | None:
    """`system_fingerprint`: the registry's version that answered, so that clients see a promotion."""
    version = model_version(pipeline.config)
    return f"{pipeline.config.model.name}-v{version}" if version else None


def usage(generation: Generation) -> dict[str, int]:
    """`usage`, so far."""
    prompt, completion = generation.prompt_tokens, generation.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def logprob(value: float | None) -> float:
    """A log probability that JSON can carry."""
    return LOWEST_LOGPROB if value is None else max(value, LOWEST_LOGPROB)


class Chunks:
    """Renders a stream's chunks. What is the same in all of them is rendered once: most carry a single token."""

    def __init__(
        self, envelope: dict[str, Any], include_usage: bool, choice_of: Callable[[int, str], dict[str, Any]]
    ) -> None:
        """`choice_of(index, text)` is a choice that carries nothing but a text."""
        self._envelope, self.include_usage, self._choice_of = envelope, include_usage, choice_of
        self._head = f'data: {compact_json(envelope)[:-1]},"choices":['
        # Clients that asked for usage expect the field in every chunk, null until the last.
        self._tail = '],"usage":null}\n\n' if include_usage else "]}\n\n"
        self._around: dict[int, tuple[str, str]] = {}

    def choice(self, choice: dict[str, Any]) -> bytes:
        """A chunk with one choice."""
        return f"{self._head}{compact_json(choice)}{self._tail}".encode()

    def text(self, index: int, text: str) -> bytes:
        """A chunk with one choice that carries nothing but `text`: a fifth of what rendering its parts would cost."""
        before, after = self._around.get(index) or self._render_around(index)
        return f"{before}{quoted(text)}{after}".encode()

    def usage(self, generation: Generation) -> bytes:
        """The last chunk, if `include_usage`."""
        return sse({**self._envelope, "choices": [], "usage": usage(generation)})

    def _render_around(self, index: int) -> tuple[str, str]:
        before, after = self.choice(self._choice_of(index, TEXT_HERE)).decode().split(quoted(TEXT_HERE))
        self._around[index] = before, after
        return before, after


def event_stream(pipeline: Pipeline, generation: Generation, events: AsyncGenerator[bytes]) -> EventStream:
    """The answer to `stream: true`."""
    timeout_seconds = pipeline.config.server.request_timeout_seconds
    return EventStream(
        generation, events, fault=lambda refusal: sse(openai_error(refusal)), timeout_seconds=timeout_seconds
    )
