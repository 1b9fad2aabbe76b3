"""`POST /v1/generate` and its streaming twin `/v1/stream`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, model_validator
from starlette.responses import Response

from llm_runtime.api.answering import (
    DEFAULT_MAX_TOKENS,
    adapter_of,
    bare_reading,
    collect,
    event_stream,
    job,
    model_name,
    pipeline_of,
    read,
    start,
    text_events,
)
from llm_runtime.api.body import (
    Body,
    MaxTokens,
    Seed,
    Stops,
    Temperature,
    Text,
    TopK,
    TopP,
    conflict,
    sampling,
)
from llm_runtime.api.documents import EVENTS, OWN_ERRORS, Thoughts, example
from llm_runtime.api.guard import SECURITY, GenerationRoute
from llm_runtime.pipeline import NOT_ASKED, Generation

router = APIRouter(
    route_class=GenerationRoute, dependencies=SECURITY, tags=["generate"], responses=OWN_ERRORS
)


class GenerateBody(Body):
    """A text to continue."""

    model_config = example(prompt="Explain quantum computing", max_new_tokens=32, temperature=0.7)

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
            raise conflict(
                "max_tokens", "says another number than max_new_tokens; send one of them"
            )
        return self


class Generated(BaseModel):
    """The continuation, as `output` and as `generated_text`."""

    model: str
    output: str
    generated_text: str
    reasoning_content: Thoughts = None
    prompt: str
    tokens_generated: int
    cached: bool
    """Whether it came out of the completion cache."""


@router.post("/v1/generate", summary="Continue a text")
async def generate(request: Request, body: GenerateBody) -> Generated:
    """Continue the prompt."""
    generation = await _start(request, body, stream=False)
    [choice] = await collect(request, generation)
    part = read(bare_reading(request), body.prompt, choice.text)
    return Generated(
        model=model_name(generation, pipeline_of(request)),
        output=part.text,
        generated_text=part.text,
        reasoning_content=part.thoughts or None,
        prompt=body.prompt,
        tokens_generated=generation.completion_tokens,
        cached=generation.cached,
    )


@router.post(
    "/v1/stream",
    summary="Continue a text, event by event",
    responses=EVENTS,
    response_class=Response,
)
async def stream(request: Request, body: GenerateBody) -> Response:
    """Server-sent events: `{"text": …}` as it comes,
    then one with `finish_reason` and `tokens_generated`."""
    generation = await _start(request, body, stream=True)
    return event_stream(request, generation, _events(request, generation, body.prompt))


async def _events(request: Request, generation: Generation, prompt: str) -> AsyncGenerator[bytes]:
    reading = bare_reading(request)
    reader = reading.reader(inside=reading.inside(prompt))
    async with aclosing(text_events(generation, pipeline_of(request), reader)) as texts:
        async for _, event in texts:
            yield event


async def _start(request: Request, body: GenerateBody, *, stream: bool) -> Generation:
    return await start(
        request,
        job(
            request,
            adapter=adapter_of(request, body.model),
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
            shown_token_ids=bare_reading(request).shown(pipeline_of(request).codec.control_ids),
            stream=stream,
        ),
    )
