"""`POST /v1/chat/completions`."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from pydantic import BeforeValidator, Field, model_validator
from starlette.responses import Response

from llm_runtime.api.answers import JsonResponse
from llm_runtime.api.body import Body, MaxTokens, Text, check_model, conflict
from llm_runtime.api.guard import SECURITY, GenerationRoute
from llm_runtime.api.openai.common import (
    IDLE,
    Chunks,
    OpenAIBody,
    event_stream,
    fingerprint,
    logprob,
    model_name,
    new_id,
    request_id,
    usage,
)
from llm_runtime.auth import check_adapter
from llm_runtime.pipeline import IDEMPOTENCY_KEY, NOT_ASKED, Choice, Generation, Job, Pipeline, text_of
from llm_runtime.request import TextCodec, TokenEvent
from llm_runtime.stream import while_connected

router = APIRouter(route_class=GenerationRoute, dependencies=SECURITY, tags=["OpenAI"])

PATH = "/v1/chat/completions"


class TextPart(Body):
    """A part of a message's content; this server reads text only."""

    type: Literal["text"]
    text: Text


def _as_parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Content = Annotated[
    list[TextPart], Field(min_length=1), BeforeValidator(_as_parts, json_schema_input_type=str | list[TextPart])
]


class Message(Body):
    """One message. A client may send back an answer's message as it came."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    no_effect: ClassVar[dict[str, tuple[Any, ...]]] = {"annotations": ([],), "tool_calls": ([],)}

    def for_template(self) -> dict[str, str]:
        """As chat templates take it; they know `developer` by its older name."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": "".join(part.text for part in self.content)}


class ChatBody(OpenAIBody):
    """A conversation to continue."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    no_effect: ClassVar[dict[str, tuple[Any, ...]]] = {
        **IDLE,
        "tools": ([],),
        "tool_choice": ("none",),
        "modalities": (["text"],),
    }

    @model_validator(mode="after")
    def _agree(self) -> "ChatBody":
        if self.top_logprobs is not None and not self.logprobs:
            raise conflict("top_logprobs", "needs logprobs: true")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise conflict("max_tokens", "says another number than max_completion_tokens; send one of them")
        return self

    def job(self, request: Request, adapter: str) -> Job:
        return Job(
            id=new_id("chatcmpl"),
            endpoint=PATH,
            request_id=request_id(),
            prompts=(tuple(message.for_template() for message in self.messages),),
            prompt_field="messages",
            sampling=self.sampling(
                max_tokens=self.max_completion_tokens or self.max_tokens or NOT_ASKED,
                logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            ),
            constraint_field=self.constraint_field,
            adapter=adapter,
            n=self.n,
            stream=self.stream,
            caller=request.state.caller,
            user=self.user,
            idempotency_key=request.headers.get(IDEMPOTENCY_KEY),
        )


@router.post(PATH, summary="Continue a conversation")
async def chat_completions(request: Request, body: ChatBody) -> Response:
    """Answer the last message, whole or as server-sent events."""
    pipeline: Pipeline = request.state.pipeline
    adapter = check_model(body.model, pipeline.config.model.name, pipeline.engine.adapters)
    check_adapter(request.state.caller, adapter)
    generation = await pipeline.start(body.job(request, adapter))
    if body.stream:
        envelope = _envelope(generation, pipeline, "chat.completion.chunk")
        chunks = Chunks(envelope, body.include_usage, _text_delta)
        return event_stream(pipeline, generation, _stream(generation, pipeline.codec, chunks))
    async with generation:
        timeout_seconds = pipeline.config.server.request_timeout_seconds
        choices = await while_connected(request.receive, generation.collect(), timeout_seconds)
    return JsonResponse(_completion(generation, pipeline, choices))


def _envelope(generation: Generation, pipeline: Pipeline, object_: str) -> dict[str, Any]:
    return {
        "id": generation.job.id,
        "object": object_,
        "created": int(time.time()),
        "model": model_name(generation, pipeline),
        "system_fingerprint": fingerprint(pipeline),
    }


def _completion(generation: Generation, pipeline: Pipeline, choices: list[Choice]) -> dict[str, Any]:
    return {
        **_envelope(generation, pipeline, "chat.completion"),
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": _logprobs(generation.job, choice.events, pipeline.codec),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ],
        "usage": usage(generation),
    }


async def _stream(generation: Generation, codec: TextCodec, chunks: Chunks) -> AsyncGenerator[bytes]:
    """First every choice's role, then texts as they come, for each choice its finish reason alone, and the usage."""
    for index in range(generation.choices):
        yield chunks.choice(_delta(index, {"role": "assistant", "content": "", "refusal": None}))
    async with aclosing(generation.bursts()) as bursts:
        async for index, events in bursts:
            text = text_of(events)
            logprobs = _logprobs(generation.job, events, codec)
            if logprobs and logprobs["content"]:
                yield chunks.choice(_delta(index, {"content": text}, logprobs))
            elif text:
                yield chunks.text(index, text)
            if reason := events[-1].finish_reason:
                yield chunks.choice(_delta(index, {}, finish_reason=reason))
    if chunks.include_usage:
        yield chunks.usage(generation)


def _text_delta(index: int, text: str) -> dict[str, Any]:
    return _delta(index, {"content": text})


def _delta(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish_reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprobs(job: Job, events: list[TokenEvent], codec: TextCodec) -> dict[str, Any] | None:
    if job.sampling.logprobs is None:
        return None
    return {"content": [_token(event, codec) for event in events if event.token_id is not None], "refusal": None}


def _token(event: TokenEvent, codec: TextCodec) -> dict[str, Any]:
    text = codec.token_text(event.token_id) if event.token_id is not None else ""
    alternatives = [_entry(top.text, top.logprob) for top in event.top_logprobs]
    return {**_entry(text, event.logprob), "top_logprobs": alternatives}


def _entry(text: str, value: float | None) -> dict[str, Any]:
    # Part of a character has no text of its own, and its bytes are not known here.
    whole = "\ufffd" not in text
    return {"token": text, "logprob": logprob(value), "bytes": list(text.encode()) if whole else None}
