"""`POST /predict`: prompt in, text out. `max_length` counts new tokens, not the prompt's."""

import time
from datetime import UTC, datetime
from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from llm_runtime import logs
from llm_runtime.api.body import Body, MaxTokens, Stops, Temperature, Text, TopP, sampling
from llm_runtime.api.guard import SECURITY, GenerationRoute
from llm_runtime.pipeline import IDEMPOTENCY_KEY, NOT_ASKED, Job, Pipeline, model_version
from llm_runtime.stream import while_connected

router = APIRouter(route_class=GenerationRoute, dependencies=SECURITY, tags=["predict"])

DEFAULT_MAX_LENGTH = 100


class PredictBody(Body):
    """A text to continue."""

    prompt: Annotated[Text, Field(min_length=1)]
    max_length: MaxTokens | None = None
    temperature: Temperature = 0.7
    top_p: TopP = 0.95
    stop_tokens: Stops = Field(default_factory=list)


class Prediction(BaseModel):
    """The continuation. `processing_time` is in seconds."""

    generated_text: str
    prompt: str
    tokens_generated: int
    processing_time: float
    model_name: str
    model_version: str
    timestamp: datetime


@router.post("/predict", summary="Continue a text")
async def predict(request: Request, body: PredictBody) -> Prediction:
    """Continue the prompt."""
    began = time.perf_counter()
    pipeline: Pipeline = request.state.pipeline
    async with await pipeline.start(_job(body, request)) as generation:
        timeout_seconds = pipeline.config.server.request_timeout_seconds
        [choice] = await while_connected(request.receive, generation.collect(), timeout_seconds)
    return Prediction(
        generated_text=choice.text,
        prompt=body.prompt,
        tokens_generated=generation.completion_tokens,
        processing_time=time.perf_counter() - began,
        model_name=pipeline.config.model.name,
        model_version=model_version(pipeline.config),
        timestamp=datetime.now(UTC),
    )


def _job(body: PredictBody, request: Request) -> Job:
    return Job(
        id=f"predict-{uuid4().hex}",
        endpoint="/predict",
        request_id=logs.request_id.get() or "",
        prompts=(body.prompt,),
        sampling=sampling(
            max_tokens=body.max_length or NOT_ASKED,
            temperature=body.temperature,
            top_p=body.top_p,
            stop=body.stop_tokens,
        ),
        default_max_tokens=DEFAULT_MAX_LENGTH,
        caller=request.state.caller,
        idempotency_key=request.headers.get(IDEMPOTENCY_KEY),
    )
