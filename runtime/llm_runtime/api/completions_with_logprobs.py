"""`POST /generate`: continuations with the log probability of every token,
unless answers are masked."""

import time
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, model_validator

from llm_runtime.api.answering import (
    DEFAULT_MAX_TOKENS,
    adapter_of,
    bare_reading,
    collect,
    job,
    pipeline_of,
    read,
    start,
)
from llm_runtime.api.body import Body, MaxTokens, Stops, Temperature, Text, TopP, conflict, sampling
from llm_runtime.api.documents import OWN_ERRORS, Thoughts, example
from llm_runtime.api.guard import SECURITY, GenerationRoute
from llm_runtime.api.spelled import Spelled, Spelling, of_each_choice
from llm_runtime.pipeline import MAX_CHOICES, NOT_ASKED, Choice
from llm_runtime.tools.reader import Part

router = APIRouter(
    route_class=GenerationRoute, dependencies=SECURITY, tags=["logprobs"], responses=OWN_ERRORS
)

LOWEST_LOGPROB = -9999.0
"""JSON has no minus infinity."""
MASKED = "Tokens are left out: they would show what this server's filters mask."


class Parameters(Body):
    """How to continue, and how often."""

    temperature: Temperature = 0.7
    max_new_tokens: MaxTokens | None = None
    top_p: TopP = 1.0
    num_return_sequences: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    stop_sequences: Stops = Field(default_factory=list)


class LogprobsBody(Body):
    """A text to continue. `max_new_tokens` may stand here or in `parameters`."""

    model_config = example(
        prompt="Explain quantum computing.", parameters={"temperature": 0.7, "max_new_tokens": 200}
    )

    prompt: Annotated[Text, Field(min_length=1)]
    model_name: Text | None = None
    parameters: Parameters = Field(default_factory=Parameters)
    max_new_tokens: MaxTokens | None = None

    @model_validator(mode="after")
    def _agree(self) -> "LogprobsBody":
        inner = self.parameters.max_new_tokens
        if inner and self.max_new_tokens and inner != self.max_new_tokens:
            raise conflict(
                "max_new_tokens",
                "says another number than parameters.max_new_tokens; send one of them",
            )
        return self


class Token(BaseModel):
    """A token and its natural-log probability."""

    text: str
    logprob: float


class Completion(BaseModel):
    """One continuation. `tokens` has those of its thoughts, too."""

    text: str
    reasoning_content: Thoughts = None
    tokens: list[Token]


class Completions(BaseModel):
    """All continuations. `request_time` is in seconds; `generated_text` is the first one's."""

    success: bool = True
    request_time: float
    completions: list[Completion]
    generated_text: str
    notice: str | None = Field(None, exclude_if=lambda notice: notice is None)
    """Why `tokens` are empty, where this server masks answers."""


@router.post("/generate", summary="Continue a text, with log probabilities")
async def generate(request: Request, body: LogprobsBody) -> Completions:
    """Continue the prompt once or several times."""
    began = time.perf_counter()
    pipeline = pipeline_of(request)
    parameters = body.parameters
    reading = bare_reading(request)
    masked = (
        pipeline.config.server.filters.output == "Mask"
    )  # This dialect can't ask without log probabilities.
    generation = await start(
        request,
        job(
            request,
            adapter=adapter_of(request, body.model_name, "model_name"),
            prompts=(body.prompt,),
            sampling=sampling(
                max_tokens=parameters.max_new_tokens or body.max_new_tokens or NOT_ASKED,
                temperature=parameters.temperature,
                top_p=parameters.top_p,
                stop=parameters.stop_sequences,
                logprobs=None if masked else 0,
            ),
            default_max_tokens=DEFAULT_MAX_TOKENS,
            n=parameters.num_return_sequences,
            shown_token_ids=reading.shown(pipeline.codec.control_ids),
        ),
    )
    choices = await collect(request, generation)
    parts = [read(reading, body.prompt, choice.text) for choice in choices]
    texts = [None] * len(choices) if masked else of_each_choice(generation.job, pipeline.codec)
    completions = [_completion(*each) for each in zip(parts, choices, texts, strict=True)]
    return Completions(
        request_time=time.perf_counter() - began,
        completions=completions,
        generated_text=completions[0].text,
        notice=MASKED if masked else None,
    )


def _completion(part: Part, choice: Choice, texts: Spelled | None) -> Completion:
    """`texts`: those of its tokens; None where they are left out."""
    tokens = [_token(each) for each in texts.take(choice.events, ended=True)] if texts else []
    return Completion(text=part.text, reasoning_content=part.thoughts or None, tokens=tokens)


def _token(each: Spelling) -> Token:
    value = each.event.logprob
    return Token(
        text=each.text, logprob=LOWEST_LOGPROB if value is None else max(value, LOWEST_LOGPROB)
    )
