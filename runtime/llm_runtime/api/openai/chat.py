"""`POST /v1/chat/completions`."""

from dataclasses import replace
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import Field, model_validator
from starlette.responses import Response

from llm_runtime.api.answering import (
    collect,
    converse,
    event_stream,
    job,
    pipeline_of,
)
from llm_runtime.api.answers import JsonResponse, openai_error
from llm_runtime.api.body import MaxTokens, conflict
from llm_runtime.api.documents import JSON_OR_EVENTS, OPENAI_ERRORS, example
from llm_runtime.api.guard import SECURITY, GenerationRoute
from llm_runtime.api.openai.answer import chunks, completion
from llm_runtime.api.openai.common import OpenAIBody
from llm_runtime.api.openai.conversation import ConversationFields
from llm_runtime.api.openai.fields import NEUTRAL_IN_CHAT
from llm_runtime.api.openai.logprobs import by_token_id
from llm_runtime.api.openai.messages import for_template
from llm_runtime.common.aside import aside
from llm_runtime.contract import CHAT_PATH
from llm_runtime.pipeline import NOT_ASKED, Job
from llm_runtime.request import TextCodec
from llm_runtime.tools.offer import Answers, Offer, answers_to

router = APIRouter(
    route_class=GenerationRoute, dependencies=SECURITY, tags=["OpenAI"], responses=OPENAI_ERRORS
)


class ChatBody(OpenAIBody, ConversationFields):
    """A conversation to continue."""

    model_config = example(
        model="support-bot", messages=[{"role": "user", "content": "What is Python?"}]
    )

    max_completion_tokens: MaxTokens | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
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
    def _calls_have_room(self) -> "ChatBody":
        if self.structured_outputs and self.offered:
            raise conflict(
                "structured_outputs",
                "leaves no room for calls; send it without tools, or response_format",
            )
        return self

    def answers(self, codec: TextCodec, offer: Offer | None) -> Answers:
        """How to parse the model's answers."""
        bound = self.constraint() is not None
        answers = answers_to(codec, offer, self.template_options, bound=bound)
        if self.ending == "answer":
            return answers
        # Then it is not the template that may have begun a thought.
        begun = self.messages[-1].text if self.continue_final_message else ""
        return replace(answers, inside=not bound and answers.reading.inside(begun))

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
            ending=self.ending,
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
    answer = completion(generation, pipeline, choices, answers)
    if body.prompt_logprobs is not None and (scores := choices[0].prompt_logprobs):
        answer["prompt_logprobs"] = await aside(
            by_token_id, scores, body.prompt_logprobs, pipeline.codec
        )
    return JsonResponse(answer)
