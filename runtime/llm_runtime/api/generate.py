"""`POST /v1/generate` and its streaming twin `/v1/stream`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, ClassVar
from uuid import uuid4

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, model_validator
from starlette.responses import Response

from llm_runtime import logs
from llm_runtime.api.answers import own_error
from llm_runtime.api.body import (
    Body,
    MaxTokens,
    Seed,
    Stops,
    Temperature,
    Text,
    TopK,
    TopP,
    check_model,
    conflict,
    sampling,
)
from llm_runtime.api.guard import SECURITY, GenerationRoute
from llm_runtime.pipeline import IDEMPOTENCY_KEY, NOT_ASKED, Generation, Job, Pipeline, text_of
from llm_runtime.stream import EventStream, sse, while_connected

router = APIRouter(route_class=GenerationRoute, dependencies=SECURITY, tags=["generate"])

DEFAULT_MAX_TOKENS = 256


class GenerateBody(Body):
    """A text to continue."""

    prompt: Annotated[Text, Field(min_length=1)]
    model: Text | None = None
    max_new_tokens: MaxTokens | None = None
    max_tokens: MaxTokens | None = None
    """Another name for `max_new_tokens`."""
    temperature: Temperature = 0.7
    top_p: TopP = 1.0
    top_k: TopK = 0
    stop: Stops = Field(default_factory=list)
    seed: Seed | None = None
    no_effect: ClassVar[dict[str, tuple[Any, ...]]] = {"stream": (False,)}

    @model_validator(mode="after")
    def _agree(self) -> "GenerateBody":
        if self.max_tokens and self.max_new_tokens and self.max_tokens != self.max_new_tokens:
            raise conflict("max_tokens", "says another number than max_new_tokens; send one of them")
        return self


class Generated(BaseModel):
    """The continuation, as `output` and as `generated_text`."""

    model: str
    output: str
    generated_text: str
    prompt: str
    tokens_generated: int
    cached: bool


@router.post("/v1/generate", summary="Continue a text")
async def generate(request: Request, body: GenerateBody) -> Generated:
    """Continue the prompt."""
    pipeline: Pipeline = request.state.pipeline
    async with await _start(request, body, pipeline) as generation:
        timeout_seconds = pipeline.config.server.request_timeout_seconds
        [choice] = await while_connected(request.receive, generation.collect(), timeout_seconds)
    return Generated(
        model=pipeline.config.model.name,
        output=choice.text,
        generated_text=choice.text,
        prompt=body.prompt,
        tokens_generated=generation.completion_tokens,
        cached=False,
    )


@router.post("/v1/stream", summary="Continue a text, event by event")
async def stream(request: Request, body: GenerateBody) -> Response:
    """Server-sent events: `{"text": …}` as it comes, then one with `finish_reason` and `tokens_generated`."""
    pipeline: Pipeline = request.state.pipeline
    generation = await _start(request, body, pipeline)
    timeout_seconds = pipeline.config.server.request_timeout_seconds
    return EventStream(
        generation, _events(generation), fault=lambda refusal: sse(own_error(refusal)), timeout_seconds=timeout_seconds
    )


async def _start(request: Request, body: GenerateBody, pipeline: Pipeline) -> Generation:
    check_model(body.model or pipeline.config.model.name, pipeline.config.model.name)
    return await pipeline.start(_job(body, request))


async def _events(generation: Generation) -> AsyncGenerator[bytes]:
    async with aclosing(generation.bursts()) as bursts:
        async for _, events in bursts:
            if text := text_of(events):
                yield sse({"text": text})
            if reason := events[-1].finish_reason:
                tokens = generation.completion_tokens
                yield sse({"text": "", "finish_reason": reason, "tokens_generated": tokens, "cached": False})


def _job(body: GenerateBody, request: Request) -> Job:
    endpoint = request.url.path
    return Job(
        id=f"generate-{uuid4().hex}",
        endpoint=endpoint,
        request_id=logs.request_id.get() or "",
        prompts=(body.prompt,),
        sampling=sampling(
            max_tokens=body.max_new_tokens or body.max_tokens or NOT_ASKED,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            stop=body.stop,
            seed=body.seed,
        ),
        default_max_tokens=DEFAULT_MAX_TOKENS,
        stream=endpoint == "/v1/stream",
        caller=request.state.caller,
        idempotency_key=request.headers.get(IDEMPOTENCY_KEY),
    )
