"""The body of `POST /v1/responses`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from llm_runtime.api.body import (
    MAX_MESSAGES,
    Body,
    MaxTokens,
    Structure,
    Temperature,
    Text,
    TopP,
    conflict,
    recommended,
    schema_text,
)
from llm_runtime.api.documents import example
from llm_runtime.api.responses.items import Item
from llm_runtime.api.responses.offer import ToolFields
from llm_runtime.request import Constraint

LOGPROBS = "message.output_text.logprobs"
INSTEAD = {
    "conversation": "this server keeps no conversations: continue one with previous_response_id",
    "prompt": "this server keeps no prompts: send what yours says as instructions and input",
}
"""What to do instead of what some fields ask for."""


class TextFormat(Body):
    """`text.format`: text, any JSON object, or JSON of a schema, which is enforced as far as it can
    be; with `strict` to its last word, or refused."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")] | None = None
    description: Text | None = None
    schema_: Structure | None = Field(default=None, alias="schema")
    strict: bool = False

    @model_validator(mode="after")
    def _schema_goes_with_its_type(self) -> "TextFormat":
        for name, value in (("name", self.name), ("schema", self.schema_)):
            if (self.type == "json_schema") != (value is not None):
                raise conflict(
                    f"text.format.{name}", "must be there if type is json_schema, and only then"
                )
        return self

    def constraint(self) -> Constraint | None:
        """The constraint that the answer must match."""
        if self.type == "json_object":
            return Constraint("json_object")
        if self.schema_ is None:
            return None
        return Constraint("json_schema", schema_text(self.schema_), strict=self.strict)


class TextConfig(Body):
    """`text`."""

    hints: ClassVar[frozenset[str]] = frozenset({"verbosity"})
    format: TextFormat = TextFormat(type="text")


class Reasoning(Body):
    """`reasoning`: how the model thinks. What it thinks comes whole, so there are no summaries."""

    hints: ClassVar[frozenset[str]] = frozenset({"summary", "generate_summary"})
    no_effect: ClassVar[dict[str, tuple[Any, ...]]] = {
        "context": ("auto",),
        "mode": ("standard",),
    }
    effort: Annotated[Text, Field(max_length=64)] | None = None
    """For chat templates that know the word; "none" also asks Qwen's to leave thinking out."""


class StreamOptions(Body):
    """`stream_options`."""

    no_effect: ClassVar[dict[str, tuple[Any, ...]]] = {"include_obfuscation": (False,)}


def _as_items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class ResponseBody(ToolFields):
    """What to answer, and what stands before it."""

    model_config = example(model="support-bot", input="What is the capital of France?")

    hints: ClassVar[frozenset[str]] = frozenset(
        {
            # Hints for prefix caching, which works without them.
            "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
            # What a request may use is its key's tier's business.
            "service_tier",
            # Of tools that the server runs: it runs none.
            "max_tool_calls",
        }
    )  # fmt: skip
    model: Annotated[Text, Field(min_length=1)]
    input: Annotated[
        list[Item],
        Field(min_length=1, max_length=MAX_MESSAGES),
        BeforeValidator(_as_items, json_schema_input_type=str | list[Item]),
    ]
    instructions: Text = ""
    """A system message. Those of the responses that this one continues are not its own."""
    previous_response_id: Text | None = None
    """The response that this one continues."""
    store: bool | None = None
    """Whether it may be continued and looked up. None: where this server keeps responses."""
    background: bool = False
    """Whether it goes on when the request has been answered."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_output_tokens: MaxTokens | None = None
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    text: TextConfig = TextConfig()
    reasoning: Reasoning = Reasoning()
    truncation: Literal["auto", "disabled"] = "disabled"
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    include: list[
        Literal[
            "message.output_text.logprobs",
            "reasoning.encrypted_content",
            "file_search_call.results",
            "web_search_call.results",
            "web_search_call.action.sources",
            "message.input_image.image_url",
            "computer_call_output.output.image_url",
            "code_interpreter_call.outputs",
        ]
    ] = Field(default_factory=list)
    """Log probabilities. Thoughts are never encrypted, and of tools that the server runs there are
    none."""
    metadata: Annotated[
        dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]],
        Field(max_length=16),
    ] = Field(default_factory=dict)
    user: Annotated[Text, Field(max_length=512)] | None = None
    """The client's own name of its user. Only a hash of it reaches the usage log."""
    safety_identifier: Annotated[Text, Field(max_length=512)] | None = None
    """OpenAI's newer name of `user`."""

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_asked_for_that_goes_otherwise(cls, data: Any) -> Any:
        for name, instead in INSTEAD.items():
            if isinstance(data, dict) and data.get(name) is not None:
                raise conflict(name, instead)
        return data

    @model_validator(mode="after")
    def _fields_agree(self) -> "ResponseBody":
        if self.top_logprobs and LOGPROBS not in self.include:
            raise conflict("top_logprobs", f"needs include: [{LOGPROBS!r}]")
        if self.stream_options and not self.stream:
            raise conflict("stream_options", "needs stream: true")
        if self.background and self.store is False:
            raise conflict("store", "must be true with background, to be asked for later")
        return self

    @property
    def logprobs(self) -> int | None:
        """How many alternatives of each token are wanted; None: no log probabilities at all."""
        return self.top_logprobs if LOGPROBS in self.include else None

    def chosen(self, defaults: Mapping[str, float]) -> dict[str, float]:
        """Parameters of sampling, from the body or else the model's `defaults`."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            **recommended(self, defaults),
        }
