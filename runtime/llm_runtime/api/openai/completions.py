"""`POST /v1/completions`: a text to continue, without a chat template."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import AfterValidator, BeforeValidator, Field, model_validator
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
from llm_runtime.api.body import conflict
from llm_runtime.api.documents import JSON_OR_EVENTS, OPENAI_ERRORS, example
from llm_runtime.api.guard import SECURITY, GenerationRoute
from llm_runtime.api.openai.common import Chunks, OpenAIBody, fingerprint, usage
from llm_runtime.api.openai.fields import NEUTRAL_IN_COMPLETIONS
from llm_runtime.api.openai.logprobs import Lists, by_token_id, of_prompt
from llm_runtime.api.openai.prompts import several, texts_or_tokens
from llm_runtime.api.spelled import spelled
from llm_runtime.common.aside import aside
from llm_runtime.contract import COMPLETIONS_PATH
from llm_runtime.pipeline import MAX_CHOICES, NOT_ASKED, Choice, Generation, Job, Prompt, text_of
from llm_runtime.request import PromptLogprobs, TextCodec, TokenEvent

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
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """0, with `echo` or `prompt_logprobs`: nothing is generated."""
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool = False
    """The prompt before its answer, with `logprobs` also those of its own tokens."""
    add_special_tokens: bool = True
    """Whether the tokenizer adds those that it adds around a text."""
    no_effect: ClassVar[dict[str, tuple[Any, ...]]] = NEUTRAL_IN_COMPLETIONS

    @model_validator(mode="after")
    def _something_is_asked(self) -> "CompletionBody":
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise conflict("max_tokens", "must be at least 1 without echo and prompt_logprobs")
        return self

    @property
    def scored(self) -> int | None:
        asked = (self.prompt_logprobs, self.logprobs if self.echo else None)
        return max((top for top in asked if top is not None), default=None)

    def job(self, request: Request, adapter: str) -> Job:
        return job(
            request,
            "cmpl-",
            prompts=tuple(self.prompt),
            sampling=self.sampling(
                NOT_ASKED if self.max_tokens is None else self.max_tokens,
                self.logprobs,
                self.constraint(),
                pipeline_of(request).codec.sampling_defaults,
            ),
            constraint_field=self.constraint_field,
            adapter=adapter,
            default_max_tokens=DEFAULT_MAX_TOKENS,
            n=self.n,
            echo=self.echo,
            special_tokens=self.add_special_tokens,
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
    answers = _Answers(generation, pipeline.codec, body)
    if body.stream:
        chunks = Chunks(envelope, body.include_usage, _text_choice)
        return event_stream(request, generation, _stream(generation, answers, chunks), openai_error)
    choices = await collect(request, generation)
    # Of a long prompt there may be megabytes.
    whole = answers.whole
    rendered = whole(choices) if body.scored is None else await aside(whole, choices)
    return JsonResponse({**envelope, "choices": rendered, "usage": usage(generation)})


class _Answers:
    """Renders the choices of one request."""

    def __init__(self, generation: Generation, codec: TextCodec, body: CompletionBody) -> None:
        job = generation.job
        self._body = body
        self._codec = codec
        self._echoed = [
            _text(prompt, codec) if body.echo else ""
            for prompt in job.prompts
            for _ in range(job.n)
        ]
        self._lists = [
            Lists(tokens, len(before)) if tokens else None
            for tokens, before in zip(spelled(job, codec), self._echoed, strict=True)
        ]

    def whole(self, choices: Sequence[Choice]) -> list[dict[str, Any]]:
        """All choices, complete."""
        return [self._choice(index, choice) for index, choice in enumerate(choices)]

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        scores = choice.prompt_logprobs
        text, before = self.prompt(index, scores)
        own = self.logprobs(index, choice.events, ended=True)
        logprobs = {name: before[name] + own[name] for name in own} if before and own else own
        answer = _choice(index, text + choice.text, logprobs, choice.finish_reason)
        if scores and (top := self._body.prompt_logprobs) is not None:
            answer["prompt_logprobs"] = by_token_id(scores, top, self._codec)
        return answer

    def prompt(
        self, index: int, scores: PromptLogprobs | None
    ) -> tuple[str, dict[str, Any] | None]:
        """What a choice begins with, if the prompt is echoed: its text and log probabilities."""
        top = self._body.logprobs
        if not (self._body.echo and scores) or top is None:
            return self._echoed[index], None
        return self._echoed[index], of_prompt(scores, top, self._codec)

    def logprobs(
        self, index: int, events: Sequence[TokenEvent], *, ended: bool
    ) -> dict[str, Any] | None:
        """The log probabilities of the next events of a choice."""
        lists = self._lists[index]
        return lists.take(events, ended=ended) if lists else None


def _text(prompt: Prompt, codec: TextCodec) -> str:
    if isinstance(prompt, str):
        return prompt
    return codec.decode([token for token in prompt if isinstance(token, int)])


def _choice(
    index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _text_choice(index: int, text: str) -> dict[str, Any]:
    return _choice(index, text, None, None)


async def _stream(
    generation: Generation, answers: _Answers, chunks: Chunks
) -> AsyncGenerator[bytes]:
    begun = [not generation.job.echo] * generation.choices
    async with aclosing(generation.bursts()) as bursts:
        async for index, events in bursts:
            if not begun[index]:
                begun[index] = True
                before = await aside(answers.prompt, index, events[0].prompt_logprobs)
                yield chunks.choice(_choice(index, *before, None))
            text = text_of(events)
            reason = events[-1].finish_reason
            logprobs = answers.logprobs(index, events, ended=reason is not None)
            if reason or logprobs:
                yield chunks.choice(_choice(index, text, logprobs, reason))
            elif text:
                yield chunks.text(index, text)
    if chunks.include_usage:
        yield chunks.usage(generation)
