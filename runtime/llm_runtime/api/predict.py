"""`POST /predict` and `/predict/batch`: prompts in, texts out.
`max_length` counts new tokens, not the prompt's."""

import time
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from llm_runtime.api.answering import (
    adapter_of,
    bare_reading,
    collect,
    job,
    pipeline_of,
    read,
    start,
)
from llm_runtime.api.body import Body, MaxTokens, Stops, Temperature, Text, TopP, sampling
from llm_runtime.api.documents import OWN_ERRORS, Thoughts, example
from llm_runtime.api.guard import SECURITY, GenerationRoute
from llm_runtime.pipeline import MAX_CHOICES, NOT_ASKED

router = APIRouter(
    route_class=GenerationRoute, dependencies=SECURITY, tags=["predict"], responses=OWN_ERRORS
)

DEFAULT_MAX_LENGTH = 100

Prompt = Annotated[Text, Field(min_length=1)]


class PredictOptions(Body):
    """How to continue."""

    max_length: MaxTokens | None = None
    temperature: Temperature = 0.7
    top_p: TopP = 0.95
    stop_tokens: Stops = Field(default_factory=list)


class PredictBody(PredictOptions):
    """A text to continue."""

    model_config = example(prompt="Once upon a time", max_length=100, temperature=0.7)

    prompt: Prompt


class BatchBody(PredictOptions):
    """Texts to continue, all in the same way. For limits and quotas they are as many requests."""

    model_config = example(prompts=["Hello world", "How are you?"], max_length=50)

    prompts: Annotated[list[Prompt], Field(min_length=1, max_length=MAX_CHOICES)]


class Prediction(BaseModel):
    """The continuation. `processing_time` is in seconds, of a batch that of the whole batch."""

    generated_text: str
    reasoning_content: Thoughts = None
    prompt: str
    tokens_generated: int
    processing_time: float
    model_name: str
    model_version: str
    timestamp: datetime


@router.post("/predict", summary="Continue a text")
async def predict(request: Request, body: PredictBody) -> Prediction:
    """Continue the prompt."""
    [prediction] = await _predict(request, [body.prompt], body, "prompt")
    return prediction


@router.post("/predict/batch", summary="Continue several texts")
async def predict_batch(request: Request, body: BatchBody) -> list[Prediction]:
    """Continue each prompt; the answers are in the order of the prompts."""
    return await _predict(request, body.prompts, body, "prompts")


async def _predict(
    request: Request, prompts: list[str], options: PredictOptions, field: str
) -> list[Prediction]:
    began = time.perf_counter()
    pipeline = pipeline_of(request)
    reading = bare_reading(request)
    generation = await start(
        request,
        job(
            request,
            adapter=adapter_of(request, None),
            prompts=tuple(prompts),
            prompt_field=field,
            sampling=sampling(
                max_tokens=options.max_length or NOT_ASKED,
                temperature=options.temperature,
                top_p=options.top_p,
                stop=options.stop_tokens,
            ),
            default_max_tokens=DEFAULT_MAX_LENGTH,
            shown_token_ids=reading.shown(pipeline.codec.control_ids),
        ),
    )
    choices = await collect(request, generation)
    parts = [
        read(reading, prompt, choice.text) for prompt, choice in zip(prompts, choices, strict=True)
    ]
    return [
        Prediction(
            generated_text=part.text,
            reasoning_content=part.thoughts or None,
            prompt=prompt,
            tokens_generated=choice.tokens,
            processing_time=time.perf_counter() - began,
            model_name=pipeline.config.model.name,
            model_version=pipeline.version,
            timestamp=datetime.now(UTC),
        )
        for prompt, choice, part in zip(prompts, choices, parts, strict=True)
    ]
