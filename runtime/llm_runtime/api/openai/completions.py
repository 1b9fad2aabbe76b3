"""`POST /v1/completions`: a text to continue, without a chat template."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import accumulate
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import AfterValidator, BeforeValidator, Field
from starlette.responses import Response

from llm_runtime.api.answering import (
    adapter_of,
    collect,
    event_stream,
    job,
    model_name,
    pipeline_of,
    start,
)
from llm_runtime.api.answers import JsonResponse, openai_error
from llm_runtime.api.documents import JSON_OR_EVENTS, OPENAI_ERRORS, example
from llm_runtime.api.guard import SECURITY, GenerationRoute
from llm_runtime.api.openai.common import Chunks, OpenAIBody, fingerprint, logprob, usage
from llm_runtime.api.openai.fields import NEUTRAL_IN_COMPLETIONS
from llm_runtime.api.openai.prompts import several, texts_or_tokens
from llm_runtime.api.spelled import Spelled, spelled
from llm_runtime.contract import COMPLETIONS_PATH
from llm_runtime.pipeline import MAX_CHOICES, NOT_ASKED, Generation, Job, text_of
from llm_runtime.request import TextCodec, TokenEvent

router = APIRouter(
    route_class=GenerationRoute, dependencies=SECURITY, tags=["OpenAI"], responses=OPENAI_ERRORS
)

DEFAULT_MAX_TOKENS = 16
"""The default in OpenAI's API."""


Prompts = Annotated[
    list[Any],
    Field(min_length=1, max_length=MAX_CHOICES),
    BeforeValidator(several, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    AfterValidator(texts_or_tokens),
]


class CompletionBody(OpenAIBody):
    """A text, or several, to continue."""

    model_config = example(model="support-bot", prompt="Once upon a time", max_tokens=16)

    prompt: Prompts
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    no_effect: ClassVar[dict[str, tuple[Any, ...]]] = NEUTRAL_IN_COMPLETIONS

    def job(self, request: Request, adapter: str) -> Job:
        return job(
            request,
            "cmpl-",
            prompts=tuple(self.prompt),
            sampling=self.sampling(
                self.max_tokens or NOT_ASKED,
                self.logprobs,
                self.constraint(),
                pipeline_of(request).codec.sampling_defaults,
            ),
            constraint_field=self.constraint_field,
            adapter=adapter,
            default_max_tokens=DEFAULT_MAX_TOKENS,
            n=self.n,
            stream=self.stream,
            user=self.safety_identifier or self.user,
        )


@router.post(COMPLETIONS_PATH, summary="Continue a text", responses=JSON_OR_EVENTS)
async def completions(request: Request, body: CompletionBody) -> Response:
    """Continue each prompt, whole or as server-sent events."""
    pipeline = pipeline_of(request)
    adapter = adapter_of(request, body.model)
    generation = await start(request, body.job(request, adapter))
    envelope = {
        "id": generation.job.id,
        "object": "text_completion",
        "created": int(time.time()),
        "model": model_name(generation, pipeline),
        "system_fingerprint": fingerprint(pipeline),
    }
    if body.stream:
        chunks = Chunks(envelope, body.include_usage, _text_choice)
        return event_stream(
            request, generation, _stream(generation, pipeline.codec, chunks), openai_error
        )
    choices = await collect(request, generation)
    tokens = spelled(generation.job, pipeline.codec)
    answers = [
        _choice(
            index,
            choice.text,
            _logprobs(tokens[index], choice.events, ended=True),
            choice.finish_reason,
        )
        for index, choice in enumerate(choices)
    ]
    return JsonResponse({**envelope, "choices": answers, "usage": usage(generation)})


def _choice(
    index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _text_choice(index: int, text: str) -> dict[str, Any]:
    return _choice(index, text, None, None)


async def _stream(
    generation: Generation, codec: TextCodec, chunks: Chunks
) -> AsyncGenerator[bytes]:
    offsets = [0] * generation.choices
    tokens = spelled(generation.job, codec)
    async with aclosing(generation.bursts()) as bursts:
        async for index, events in bursts:
            text = text_of(events)
            reason = events[-1].finish_reason
            logprobs = _logprobs(tokens[index], events, offsets[index], ended=reason is not None)
            if logprobs:
                offsets[index] += sum(map(len, logprobs["tokens"]))
            if reason or logprobs:
                yield chunks.choice(_choice(index, text, logprobs, reason))
            elif text:
                yield chunks.text(index, text)
    if chunks.include_usage:
        yield chunks.usage(generation)


def _logprobs(
    tokens: Spelled | None, events: list[TokenEvent], offset: int = 0, *, ended: bool
) -> dict[str, Any] | None:
    """Log probabilities in OpenAI's older form, parallel lists.
    `text_offset` counts characters of the answer."""
    if tokens is None:
        return None
    found = tokens.take(events, ended=ended)
    return {
        "tokens": [each.text for each in found],
        "token_logprobs": [logprob(each.event.logprob) for each in found],
        "top_logprobs": [_rivals(each.event) for each in found],
        "text_offset": (
            list(accumulate((len(each.text) for each in found[:-1]), initial=offset))
            if found
            else []
        ),
    }


def _rivals(event: TokenEvent) -> dict[str, float]:
    # Tokens that are parts of characters may have the same text. The likeliest one keeps it.
    return {top.text: logprob(top.logprob) for top in reversed(event.top_logprobs)}
