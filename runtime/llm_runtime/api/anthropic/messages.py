"""`POST /v1/messages`, and `/v1/messages/count_tokens` beside it."""

from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, model_validator
from starlette.responses import Response

from llm_runtime import errors
from llm_runtime.api.answering import (
    adapter_of,
    collect,
    converse,
    event_stream,
    job,
    pipeline_of,
    prompt_tokens,
    worked_out,
)
from llm_runtime.api.answers import JsonResponse, anthropic_error
from llm_runtime.api.anthropic.answer import PING, events, message
from llm_runtime.api.anthropic.content import InputMessage, Texts, for_template, joined, problems
from llm_runtime.api.anthropic.offer import ToolFields
from llm_runtime.api.body import (
    MAX_MESSAGES,
    Body,
    MaxTokens,
    StopText,
    Temperature,
    Text,
    TopK,
    TopP,
    conflict,
    recommended,
    sampling,
    schema_text,
)
from llm_runtime.api.documents import ANTHROPIC_ERRORS, JSON_OR_NAMED_EVENTS, example
from llm_runtime.api.guard import SECURITY, GenerationRoute
from llm_runtime.contract import COUNT_PATH, MESSAGES_PATH
from llm_runtime.engine.limits import ENGINE_STOPS
from llm_runtime.pipeline import Job
from llm_runtime.request import Constraint, Sampling, TextCodec
from llm_runtime.stream import named_sse
from llm_runtime.tools.offer import Answers, Offer, answers_to, check_messages
from llm_runtime.tools.thoughts import effort_options

VERSIONS = ("2023-06-01", "2026-10-21")
"""The versions of Anthropic's API whose shapes these are. The newer one has no temperature, top_p
and top_k, which models here have still: they are taken in both."""


class MessagesRoute(GenerationRoute):
    """A route to the model for Anthropic's clients."""

    async def admit(self, request: Request) -> None:
        await super().admit(request)
        if request.headers.get("anthropic-version", VERSIONS[-1]) not in VERSIONS:
            message = (
                f"anthropic-version: this server speaks {' and '.join(VERSIONS)}; send one of them,"
                " or leave the header out."
            )
            raise errors.InvalidRequest(message, code="unsupported_version")


router = APIRouter(
    route_class=MessagesRoute, dependencies=SECURITY, tags=["Anthropic"], responses=ANTHROPIC_ERRORS
)


class Metadata(Body):
    """`metadata`."""

    user_id: Annotated[Text, Field(max_length=512)] | None = None
    """The client's own name of its user. Only a hash of it reaches the usage log."""


class Thinking(Body):
    """`thinking`: variables for the chat template, which may not know them."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=1)] | None = None
    no_effect: ClassVar[dict[str, tuple[Any, ...]]] = {"display": ("summarized",)}

    @model_validator(mode="after")
    def _budget_goes_with_its_type(self) -> "Thinking":
        if (self.type == "enabled") != (self.budget_tokens is not None):
            raise conflict(
                "thinking.budget_tokens", "must be there if type is enabled, and only then"
            )
        return self

    def template_options(self) -> dict[str, Any]:
        """The names that templates have for it: Qwen's and others', DeepSeek's, Seed-OSS'."""
        thinks = self.type != "disabled"
        budget = {"thinking_budget": self.budget_tokens} if self.budget_tokens else {}
        return {"enable_thinking": thinks, "thinking": thinks, **budget}


class OutputFormat(Body):
    """`output_config.format`: JSON of a schema, which is enforced to its last word, or refused."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    """`output_config`."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    """For chat templates that know `reasoning_effort`."""
    format: OutputFormat | None = None


class PromptBody(ToolFields):
    """A conversation, and what the model may do in it."""

    hints: ClassVar[frozenset[str]] = frozenset({"cache_control", "service_tier"})
    no_effect: ClassVar[dict[str, tuple[Any, ...]]] = {
        "mcp_servers": ([],),
        "speed": ("standard",),
        # Every thought is kept anyway.
        "context_management": (
            {},
            {"edits": []},
            {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        ),
    }
    model: Annotated[Text, Field(min_length=1)]
    messages: Annotated[list[InputMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: Texts = Field(default_factory=list)
    thinking: Thinking | None = None
    output_config: OutputConfig = OutputConfig()

    @model_validator(mode="after")
    def _messages_make_a_conversation(self) -> "PromptBody":
        for place, problem in problems(self.messages):
            raise conflict(place, problem)
        return self

    def offer(self, template: str) -> Offer | None:
        """The tools that the model may call.
        Raises `errors.InvalidRequest` if its template can't show them."""
        check_messages(template, self.messages)
        return self.offer_in(template)

    def constraint(self) -> Constraint | None:
        """The constraint that the answer must match."""
        asked = self.output_config.format
        return Constraint("json_schema", schema_text(asked.schema_), strict=True) if asked else None

    @property
    def template_options(self) -> dict[str, Any]:
        """Variables for the chat template."""
        return {
            **effort_options(self.output_config.effort),
            **(self.thinking.template_options() if self.thinking else {}),
        }

    def answers(self, codec: TextCodec, offer: Offer | None) -> Answers:
        """How to parse the model's answers."""
        bound = self.output_config.format is not None
        return answers_to(codec, offer, self.template_options, bound=bound)

    def prompt(self, request: Request, adapter: str, sampling: Sampling, **fields: Any) -> Job:
        """The job of this prompt; `fields` are others of `Job`."""
        return job(
            request,
            "msg-",
            prompts=(for_template(joined(self.system), self.messages),),
            tools=tuple(tool.for_template() for tool in self.offered),
            template_options=self.template_options,
            prompt_field="messages",
            sampling=sampling,
            adapter=adapter,
            **fields,
        )


class MessageBody(PromptBody):
    """A conversation to answer."""

    model_config = example(
        model="support-bot",
        max_tokens=100,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
    )

    max_tokens: MaxTokens
    stop_sequences: Annotated[list[StopText], Field(max_length=ENGINE_STOPS)] = Field(
        default_factory=list
    )
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    top_k: TopK = 0
    metadata: Metadata = Metadata()
    stream: bool = False

    def job(self, request: Request, adapter: str, answers: Answers) -> Job:
        """The job whose answers these are."""
        codec = pipeline_of(request).codec
        offer = answers.offer
        constraint = self.constraint()
        chosen: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            **recommended(self, codec.sampling_defaults),
        }
        return self.prompt(
            request,
            adapter,
            sampling(
                max_tokens=self.max_tokens,
                stop=self.stop_sequences,
                constraint=offer.constraint(constraint, codec.control_ids) if offer else constraint,
                **chosen,
            ),
            constraint_field="tools" if offer else "output_config.format",
            shown_token_ids=answers.reading.shown(codec.control_ids),
            stream=self.stream,
            user=self.metadata.user_id,
        )


class CountBody(PromptBody):
    """A conversation whose tokens are counted."""

    model_config = example(
        model="support-bot",
        messages=[{"role": "user", "content": "What is the capital of France?"}],
    )


class TokenCount(BaseModel):
    """The tokens of messages, system and tools, as the chat template writes them."""

    input_tokens: int


@router.post(MESSAGES_PATH, summary="Answer a conversation", responses=JSON_OR_NAMED_EVENTS)
async def create_message(request: Request, body: MessageBody) -> Response:
    """Answer the last message, whole or as server-sent events."""
    pipeline = pipeline_of(request)
    generation, answers = await converse(request, body)
    if body.stream:
        return event_stream(
            request,
            generation,
            events(generation, pipeline, answers),
            anthropic_error,
            named_sse,
            heartbeat=PING,
            done=b"",
        )
    [choice] = await collect(request, generation)
    return JsonResponse(message(generation, pipeline, choice, answers))


@router.post(COUNT_PATH, summary="Count the tokens of a conversation")
async def count_tokens(request: Request, body: CountBody) -> TokenCount:
    """Count the tokens that a message of the same fields would be billed for its prompt.

    Nothing is generated; for limits it is one request without tokens."""
    pipeline = pipeline_of(request)
    adapter = adapter_of(request, body.model)
    await worked_out(request, body.offer, pipeline.codec.tool_template)
    wanted = await worked_out(request, body.prompt, request, adapter, Sampling(max_tokens=1))
    tokens = await prompt_tokens(request, wanted)
    return TokenCount(input_tokens=len(tokens))
