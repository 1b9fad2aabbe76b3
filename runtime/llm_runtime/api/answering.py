"""What the dialects with a form of their own share: from a body to a job, from a generation to an answer."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from fastapi import Request

from llm_runtime import logs
from llm_runtime.api.answers import own_error
from llm_runtime.api.body import check_model
from llm_runtime.pipeline import Choice, Generation, Job, Pipeline, text_of
from llm_runtime.request import Caller
from llm_runtime.stream import EventStream, sse, while_connected

DEFAULT_MAX_TOKENS = 256
"""Of the dialects that name no other number."""


def pipeline_of(request: Request) -> Pipeline:
    """The way to the model that this request goes."""
    pipeline: Pipeline = request.state.pipeline
    return pipeline


def caller_of(request: Request) -> Caller:
    """Who asks."""
    caller: Caller = request.state.caller
    return caller


def job(request: Request, **fields: Any) -> Job:
    """A job of this request; `fields` are those of `Job` that its body decides."""
    endpoint = request.url.path
    return Job(
        id=f"{endpoint.strip('/').replace('/', '-')}-{uuid4().hex}",
        endpoint=endpoint,
        request_id=logs.request_id.get() or "",
        caller=caller_of(request),
        **fields,
    )


def adapter_of(request: Request, asked: str | None) -> str:
    """The adapter that a model's name asks for; no name is the model's own. Raises `errors.NotFound`."""
    pipeline = pipeline_of(request)
    served = pipeline.config.model.name
    return check_model(asked or served, served, pipeline.engine.adapters)


def model_name(generation: Generation, pipeline: Pipeline) -> str:
    """The model that answered, as the client names it."""
    name, adapter = pipeline.config.model.name, generation.job.adapter
    return f"{name}:{adapter}" if adapter else name


async def collect(request: Request, generation: Generation) -> list[Choice]:
    """All choices, whole. Accounts for the job, also if the client leaves or time runs out."""
    timeout_seconds = pipeline_of(request).config.server.request_timeout_seconds
    async with generation:
        return await while_connected(request.receive, generation.collect(), timeout_seconds)


def event_stream(request: Request, generation: Generation, events: AsyncGenerator[bytes]) -> EventStream:
    """Server-sent events; what goes wrong after the first becomes an event in this project's shape of errors."""
    timeout_seconds = pipeline_of(request).config.server.request_timeout_seconds
    return EventStream(
        generation, events, fault=lambda refusal: sse(own_error(refusal)), timeout_seconds=timeout_seconds
    )


async def text_events(generation: Generation, pipeline: Pipeline) -> AsyncGenerator[tuple[str, bytes]]:
    """(text, event) as the one choice of a generation comes: `{"text": …}`, at its end with the reason and counts."""
    async with aclosing(generation.bursts()) as bursts:
        async for _, events in bursts:
            if text := text_of(events):
                yield text, sse({"text": text})
            if reason := events[-1].finish_reason:
                last = {
                    "text": "",
                    "finish_reason": reason,
                    "model": model_name(generation, pipeline),
                    "tokens_generated": generation.completion_tokens,
                    "cached": generation.cached,
                }
                yield "", sse(last)
