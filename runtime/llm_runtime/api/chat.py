"""`POST /v1/chat`: a conversation;
with a `session_id` the server remembers what was said before."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from llm_runtime import errors
from llm_runtime.api.answering import (
    DEFAULT_MAX_TOKENS,
    adapter_of,
    caller_of,
    collect,
    event_stream,
    job,
    model_name,
    pipeline_of,
    start,
    text_events,
)
from llm_runtime.api.body import (
    MAX_MESSAGES,
    Body,
    MaxTokens,
    Seed,
    Stops,
    Temperature,
    Text,
    TopP,
    sampling,
)
from llm_runtime.api.documents import JSON_OR_EVENTS, OWN_ERRORS, Thoughts, example
from llm_runtime.api.guard import SECURITY, GenerationRoute
from llm_runtime.api.server import server_of
from llm_runtime.pipeline import NOT_ASKED, Generation
from llm_runtime.request import Message
from llm_runtime.tools.forms import reading_of

router = APIRouter(
    route_class=GenerationRoute, dependencies=SECURITY, tags=["chat"], responses=OWN_ERRORS
)


class Said(Body):
    """One message."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[Text, Field(min_length=1)]

    def message(self) -> Message:
        return {"role": self.role, "content": self.content}


class ConversationBody(Body):
    """What was said since the last answer; without a session, the whole conversation."""

    model_config = example(
        messages=[{"role": "user", "content": "What is the capital of France?"}], max_tokens=100
    )

    messages: Annotated[list[Said], Field(min_length=1, max_length=MAX_MESSAGES)]
    session_id: Annotated[Text, Field(min_length=1, max_length=256)] | None = None
    """Id of the conversation, which the client chooses. Each API key has its own sessions."""
    model: Text | None = None
    max_tokens: MaxTokens | None = None
    temperature: Temperature = 0.7
    top_p: TopP = 1.0
    stop: Stops = Field(default_factory=list)
    seed: Seed | None = None
    stream: bool = False


class Answer(BaseModel):
    """What the assistant said."""

    role: Literal["assistant"] = "assistant"
    content: str
    reasoning_content: Thoughts = None
    """Sessions do not remember it."""


class ConversationAnswer(BaseModel):
    """The answer to the last message."""

    message: Answer
    model: str
    tokens_generated: int
    cached: bool
    """Whether it came out of the completion cache."""


class Session:
    """The conversation that a request continues, if it names one."""

    def __init__(self, request: Request, session_id: str | None) -> None:
        """Raises `errors.InvalidRequest` if this server keeps none."""
        self._store = (
            server_of(request).sessions if session_id and not request.state.unbilled else None
        )
        self._tenant = caller_of(request).id
        self._id = session_id or ""
        if session_id and self._store is None:
            message = "This server keeps no sessions; send the whole conversation as messages."
            raise errors.InvalidRequest(message, param="session_id", code="unsupported_parameter")

    async def history(self) -> list[Message]:
        return await self._store.history(self._tenant, self._id) if self._store else []

    async def append(self, generation: Generation, said: int, answer: str) -> None:
        """A turn, once its answer is whole: the last `said` messages, as the model saw them."""
        if self._store:
            [conversation] = generation.job.prompts
            messages = [message for message in conversation[-said:] if isinstance(message, dict)]
            await self._store.append(
                self._tenant, self._id, [*messages, {"role": "assistant", "content": answer}]
            )


@router.post(
    "/v1/chat", summary="Converse", response_model=ConversationAnswer, responses=JSON_OR_EVENTS
)
async def chat(request: Request, body: ConversationBody) -> ConversationAnswer | Response:
    """Answer the last message, whole or as the events of `/v1/stream`."""
    session = Session(request, body.session_id)
    generation = await _start(request, body, await session.history())
    if body.stream:
        return event_stream(
            request, generation, _events(request, generation, session, len(body.messages))
        )
    [choice] = await collect(request, generation)
    answer = (
        reading_of(pipeline_of(request).codec.chat_template).reader().take(choice.text, final=True)
    )
    await session.append(generation, len(body.messages), answer.text)
    return ConversationAnswer(
        message=Answer(content=answer.text, reasoning_content=answer.thoughts or None),
        model=model_name(generation, pipeline_of(request)),
        tokens_generated=generation.completion_tokens,
        cached=generation.cached,
    )


async def _events(
    request: Request, generation: Generation, session: Session, said: int
) -> AsyncGenerator[bytes]:
    answer = ""
    pipeline = pipeline_of(request)
    reader = reading_of(pipeline.codec.chat_template).reader()
    async with aclosing(text_events(generation, pipeline, reader)) as texts:
        async for text, event in texts:
            answer += text
            yield event
    await session.append(generation, said, answer)


async def _start(request: Request, body: ConversationBody, history: list[Message]) -> Generation:
    codec = pipeline_of(request).codec
    return await start(
        request,
        job(
            request,
            adapter=adapter_of(request, body.model),
            prompts=((*history, *(message.message() for message in body.messages)),),
            droppable_messages=len(history),
            prompt_field="messages",
            sampling=sampling(
                max_tokens=body.max_tokens or NOT_ASKED,
                temperature=body.temperature,
                top_p=body.top_p,
                stop=body.stop,
                seed=body.seed,
            ),
            default_max_tokens=DEFAULT_MAX_TOKENS,
            shown_token_ids=reading_of(codec.chat_template).shown(codec.control_ids),
            stream=body.stream,
        ),
    )
