"""`POST /v1/chat/completions`."""

from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import AfterValidator, Field, model_validator
from starlette.responses import Response

from llm_runtime.api.answering import (
    collect,
    converse,
    event_stream,
    job,
    pipeline_of,
)
from llm_runtime.api.answers import JsonResponse, openai_error
from llm_runtime.api.body import MAX_MESSAGES, MaxTokens, Structure, Text, conflict
from llm_runtime.api.documents import JSON_OR_EVENTS, OPENAI_ERRORS, example
from llm_runtime.api.guard import SECURITY, GenerationRoute
from llm_runtime.api.openai.answer import chunks, completion
from llm_runtime.api.openai.common import OpenAIBody
from llm_runtime.api.openai.fields import NEUTRAL_IN_CHAT
from llm_runtime.api.openai.messages import ChatMessage, for_template
from llm_runtime.api.openai.offer import ToolFields
from llm_runtime.contract import CHAT_PATH
from llm_runtime.pipeline import NOT_ASKED, Job
from llm_runtime.request import TextCodec
from llm_runtime.tools.offer import Answers, Offer, answers_to, check_messages
from llm_runtime.tools.thoughts import effort_options

router = APIRouter(
    route_class=GenerationRoute, dependencies=SECURITY, tags=["OpenAI"], responses=OPENAI_ERRORS
)

SET_HERE = frozenset(
    {"messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now"}
)
"""Variables of a chat template that clients can't set; nor can they set its special tokens."""


def _not_ours(options: dict[str, Any]) -> dict[str, Any]:
    for name in options:
        if name in SET_HERE or name.endswith("_token"):
            raise conflict(f"chat_template_kwargs.{name}", "is not for a request to set")
    return options


class ChatBody(OpenAIBody, ToolFields):
    """A conversation to continue."""

    model_config = example(
        model="support-bot", messages=[{"role": "user", "content": "What is Python?"}]
    )

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    reasoning_effort: Annotated[Text, Field(max_length=64)] | None = None
    """For chat templates that know the word; "none" also asks Qwen's to leave thinking out."""
    chat_template_kwargs: Annotated[Structure, AfterValidator(_not_ours)] = Field(
        default_factory=dict
    )
    """Variables for the chat template, such as `enable_thinking`."""
    no_effect: ClassVar[dict[str, tuple[Any, ...]]] = NEUTRAL_IN_CHAT

    @model_validator(mode="after")
    def _agree(self) -> "ChatBody":
        if self.top_logprobs and not self.logprobs:
            raise conflict("top_logprobs", "needs logprobs: true")
        if (
            self.max_tokens
            and self.max_completion_tokens
            and self.max_tokens != self.max_completion_tokens
        ):
            raise conflict(
                "max_tokens", "says another number than max_completion_tokens; send one of them"
            )
        return self

    @model_validator(mode="after")
    def _messages_fit_their_roles(self) -> "ChatBody":
        for number, message in enumerate(self.messages):
            for field, problem in message.problems():
                raise conflict(f"messages[{number}].{field}", problem)
        return self

    @model_validator(mode="after")
    def _tools_fit_each_other(self) -> "ChatBody":
        names = [offered.function.name for offered in self.tools]
        if len(set(names)) < len(names):
            raise conflict("tools", "two functions have the same name")
        if self.tool_choice and self.tool_choice.mode == "required" and not names:
            raise conflict("tool_choice", "is required, but there are no tools")
        if self.chosen_name and self.chosen_name not in names:
            raise conflict("tool_choice", "names a function that is not among the tools")
        if self.structured_outputs and self.offered:
            raise conflict(
                "structured_outputs",
                "leaves no room for calls; send it without tools, or response_format",
            )
        return self

    def offer(self, template: str) -> Offer | None:
        """The tools that the model may call.
        Raises `errors.InvalidRequest` if its template can't show them."""
        check_messages(template, self.messages)
        return self.offer_in(template)

    @property
    def template_options(self) -> dict[str, Any]:
        """Variables for the chat template."""
        return {**effort_options(self.reasoning_effort), **self.chat_template_kwargs}

    def answers(self, codec: TextCodec, offer: Offer | None) -> Answers:
        """How to parse the model's answers."""
        bound = self.constraint() is not None
        return answers_to(codec, offer, self.template_options, bound=bound)

    def job(self, request: Request, adapter: str, answers: Answers) -> Job:
        codec = pipeline_of(request).codec
        offer = answers.offer
        constraint = (
            offer.constraint(self.constraint(), codec.control_ids) if offer else self.constraint()
        )
        return job(
            request,
            "chatcmpl-",
            prompts=(for_template(self.messages),),
            tools=tuple(offered.for_template() for offered in self.offered),
            template_options=self.template_options,
            prompt_field="messages",
            sampling=self.sampling(
                max_tokens=self.max_completion_tokens or self.max_tokens or NOT_ASKED,
                logprobs=(self.top_logprobs or 0) if self.logprobs else None,
                constraint=constraint,
                defaults=codec.sampling_defaults,
            ),
            constraint_field="tools" if offer else self.constraint_field,
            shown_token_ids=answers.reading.shown(codec.control_ids),
            adapter=adapter,
            n=self.n,
            stream=self.stream,
            user=self.safety_identifier or self.user,
        )


@router.post(CHAT_PATH, summary="Continue a conversation", responses=JSON_OR_EVENTS)
async def chat_completions(request: Request, body: ChatBody) -> Response:
    """Answer the last message, whole or as server-sent events."""
    pipeline = pipeline_of(request)
    generation, answers = await converse(request, body)
    if body.stream:
        events = chunks(generation, pipeline, answers, include_usage=body.include_usage)
        return event_stream(request, generation, events, openai_error)
    choices = await collect(request, generation)
    return JsonResponse(completion(generation, pipeline, choices, answers))
