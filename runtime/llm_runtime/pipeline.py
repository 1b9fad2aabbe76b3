"""The road of a request, in order: validate → encode → engine → stream → usage. Authentication lies before it.

A dialect hands in a `Job` and gets a `Generation` back. Whatever will stand between a key and the engine (limits,
cache, filters) gets its line in `Pipeline.start`.
"""

import asyncio
import hashlib
import logging
import time
from asyncio import CancelledError
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from llm_runtime import errors
from llm_runtime.contract import RuntimeConfig
from llm_runtime.metrics import Metrics
from llm_runtime.request import (
    Caller,
    Engine,
    FinishReason,
    GenerationRequest,
    Message,
    Sampling,
    TextCodec,
    TokenEvent,
    TokenStream,
)
from llm_runtime.stream import ClientGone, compact_json, merge
from llm_runtime.usage import Outcome, UsageLog, UsageRow

log = logging.getLogger(__name__)

MAX_CHOICES = 128
"""Prompts times `n`: what OpenAI allows for `n` alone."""
NOT_ASKED = 0
"""As `Sampling.max_tokens` of a job: the client named no number."""

Messages = tuple[Message, ...]
Prompt = str | tuple[int, ...] | Messages
"""Text, token ids, or a conversation for the chat template."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a dialect asks for. `prompts` times `n` choices are generated, those of one prompt next to each other."""

    id: str
    endpoint: str
    request_id: str
    caller: Caller
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    default_max_tokens: int | None = None
    """Where the client named no `max_tokens`; None means all that the model's length leaves room for."""
    n: int = 1
    stream: bool = False
    user: str | None = None
    adapter: str = ""
    """Name of the LoRA adapter; "" is the base model."""
    prompt_field: str = "prompt"
    """What the dialect calls the prompt, for error messages."""
    constraint_field: str = "response_format"
    """What it calls the constraint."""
    tools: tuple[dict[str, Any], ...] = ()
    """What the chat template tells the model of, as OpenAI's API describes functions."""


@dataclass(slots=True)
class Choice:
    """One finished answer."""

    text: str = ""
    events: list[TokenEvent] = field(default_factory=list)
    """All events that carry a token."""
    finish_reason: FinishReason = FinishReason.STOP


class Pipeline:
    """One loaded model and what every request to it passes through."""

    def __init__(
        self,
        config: RuntimeConfig,
        engine: Engine,
        codec: TextCodec,
        metrics: Metrics,
        usage: UsageLog,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.config, self.engine, self.codec = config, engine, codec
        self.metrics, self.usage, self.clock = metrics, usage, clock

    async def start(self, job: Job) -> "Generation":
        """Admit a job. Whatever it can be refused for is raised here, before a byte is answered."""
        self._validate(job)
        await self._check_constraint(job)
        prompts = [self._encode(prompt, job.tools) for prompt in job.prompts]
        requests = [request for number, ids in enumerate(prompts) for request in self._choices(job, number, ids)]
        streams = await self._admit(requests)
        return Generation(self, job, sum(map(len, prompts)), streams)

    def _validate(self, job: Job) -> None:
        if len(job.prompts) * job.n > MAX_CHOICES:
            message = f"A request may have at most {MAX_CHOICES} choices; it asks for {len(job.prompts)} x {job.n}."
            raise errors.InvalidRequest(message, param="n")
        limit = self.config.server.max_prompt_characters
        if (length := sum(map(_characters, job.prompts)) + _written(job.tools)) > limit:
            message = f"The prompt has {length} characters; this server takes at most {limit}."
            raise errors.InvalidRequest(message, param=job.prompt_field, code="string_above_max_length")

    async def _check_constraint(self, job: Job) -> None:
        if job.sampling.constraint is None:
            return
        try:
            # A large schema takes 0.1 s to compile, which other streams must not feel.
            await asyncio.to_thread(self.codec.check_constraint, job.sampling.constraint)
        except errors.InvalidRequest as refusal:
            field = job.constraint_field
            raise errors.InvalidRequest(f"{field}: {refusal.message}", param=field, code=refusal.code) from refusal

    def _encode(self, prompt: Prompt, tools: Sequence[dict[str, Any]]) -> list[int]:
        if isinstance(prompt, str):
            return self.codec.encode(prompt)
        conversation = [message for message in prompt if isinstance(message, dict)]
        if not conversation:
            return [token for token in prompt if isinstance(token, int)]
        system = self.config.model.system_prompt
        if system and all(message["role"] != "system" for message in conversation):
            conversation.insert(0, {"role": "system", "content": system})
        return self.codec.encode_chat(conversation, tools)

    def _choices(self, job: Job, number: int, ids: list[int]) -> list[GenerationRequest]:
        room = self.engine.max_model_length - len(ids)
        if not ids:
            raise errors.InvalidRequest("The prompt has no tokens; send some text.", param=job.prompt_field)
        if room < 1:
            limit = self.engine.max_model_length
            message = f"The prompt has {len(ids)} tokens; with its answer it must stay within {limit}."
            raise errors.InvalidRequest(message, param=job.prompt_field, code="context_length_exceeded")
        max_tokens = job.sampling.max_tokens or min(job.default_max_tokens or room, room)
        first = number * job.n
        return [
            GenerationRequest(
                id=f"{job.id}-{first + choice}",
                prompt_token_ids=tuple(ids),
                sampling=replace(job.sampling, max_tokens=max_tokens, seed=_seed(job.sampling.seed, choice)),
                adapter=job.adapter,
                priority=job.caller.tier.priority,
                tenant=job.caller.id,
            )
            for choice in range(job.n)
        ]

    async def _admit(self, requests: Sequence[GenerationRequest]) -> list[TokenStream]:
        """All or none."""
        streams: list[TokenStream] = []
        try:
            for request in requests:
                streams.append(self.engine.generate(request))
        except BaseException:
            await _close(streams)
            raise
        return streams


class Generation:
    """An admitted job. Enter it before reading its events: leaving it frees the engine and accounts for the job."""

    def __init__(self, pipeline: Pipeline, job: Job, prompt_tokens: int, streams: list[TokenStream]) -> None:
        self.job, self.prompt_tokens, self.choices = job, prompt_tokens, len(streams)
        self.completion_tokens = self.cached_tokens = 0
        self.cached = False
        self._pipeline, self._streams, self._metrics = pipeline, streams, pipeline.metrics
        self._finish_reasons: list[FinishReason] = []
        self._first_token_seconds: float | None = None
        self._token_at: list[float | None] = [None] * len(streams)
        self._started_at = pipeline.clock()
        self._tokens = self._metrics.tokens.labels(pipeline.config.model.name)
        self._metrics.prompt_tokens.labels(pipeline.config.model.name).inc(prompt_tokens)

    async def __aenter__(self) -> "Generation":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await _close(self._streams)
        finally:
            self._pipeline.usage.write(self._row(_outcome(fault)))

    async def bursts(self) -> AsyncGenerator[tuple[int, list[TokenEvent]]]:
        """(index of the choice, its events that have come since), until every choice has ended.

        Raises `errors.Refusal` if one can't.
        """
        async with aclosing(merge(self._streams)) as merged:
            async for index, events in merged:
                self._measure(index, events)
                yield index, events
        if len(self._finish_reasons) < self.choices:
            raise errors.GenerationFailed("The engine ended without finishing this request.")

    async def collect(self) -> list[Choice]:
        """All choices, whole."""
        choices = [Choice() for _ in range(self.choices)]
        async with aclosing(self.bursts()) as bursts:
            async for index, events in bursts:
                choice = choices[index]
                choice.text += text_of(events)
                choice.events += (event for event in events if event.token_id is not None)
                choice.finish_reason = events[-1].finish_reason or choice.finish_reason
        return choices

    def _measure(self, index: int, events: list[TokenEvent]) -> None:
        event = events[-1]  # Only the last one may be final.
        if tokens := len(events) - (event.token_id is None):
            self._count_tokens(index, tokens, events[0].cached_tokens)
        if event.finish_reason is FinishReason.ERROR:
            log.error("The engine gave up on a request: %s", event.error)
            raise errors.GenerationFailed("The engine failed while it generated this answer; try again.")
        if event.finish_reason is FinishReason.CANCELLED:
            raise errors.ServiceUnavailable("The server shut down before this answer was whole; send it again.")
        if event.finish_reason:
            self._finish_reasons.append(event.finish_reason)

    def _count_tokens(self, index: int, count: int, cached: int) -> None:
        now, before = self._pipeline.clock(), self._token_at[index]
        if before is None and index % self.job.n == 0:  # A prompt counts once, however many choices it has.
            self.cached_tokens += cached
        self._token_at[index] = now
        self.completion_tokens += count
        self._tokens.inc(count)
        self._metrics.rate.add(count)
        if before is not None:
            self._metrics.inter_token.observe((now - before) / count, count)
        elif self._first_token_seconds is None:
            self._first_token_seconds = now - self._started_at
            self._metrics.first_token.observe(self._first_token_seconds)

    def _row(self, outcome: Outcome) -> UsageRow:
        job, config = self.job, self._pipeline.config
        return UsageRow(
            at=datetime.now(UTC),
            request_id=job.request_id,
            key_id=job.caller.id,
            key_name=job.caller.name,
            tier=job.caller.tier.name,
            user_hash=_user_hash(job),
            endpoint=job.endpoint,
            model=config.model.name,
            model_version=model_version(config),
            adapter=job.adapter,
            stream=job.stream,
            cached=False,
            choices=self.choices,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            finish_reasons=tuple(self._finish_reasons),
            outcome=outcome,
            first_token_seconds=self._first_token_seconds,
            duration_seconds=self._pipeline.clock() - self._started_at,
        )


def model_version(config: RuntimeConfig) -> str:
    """The registry's version, or "" for a local folder, which has none."""
    return config.model.mlflow.version if config.model.mlflow else ""


def text_of(events: list[TokenEvent]) -> str:
    """What several events show together."""
    return events[0].text if len(events) == 1 else "".join([event.text for event in events])


async def _close(streams: Sequence[TokenStream]) -> None:
    for stream in streams:
        if close := getattr(stream, "aclose", None):
            await close()


def _outcome(fault: BaseException | None) -> Outcome:
    match fault:
        case None:
            return Outcome.COMPLETED
        case ClientGone():
            return Outcome.CANCELLED
        case errors.RequestTimeout():
            return Outcome.TIMEOUT
        # A bare CancelledError is uvicorn's, when the drain time is over.
        case errors.ServiceUnavailable() | CancelledError():
            return Outcome.INTERRUPTED
        case _:
            return Outcome.FAILED


def _characters(prompt: Prompt) -> int:
    if isinstance(prompt, str):
        return len(prompt)
    return sum(len(part["content"]) + _written(part.get("tool_calls")) for part in prompt if isinstance(part, dict))


def _written(structure: object) -> int:
    """Characters of what templates write as JSON."""
    return len(compact_json(structure)) if structure else 0


def _seed(seed: int | None, choice: int) -> int | None:
    """The choices of one seeded prompt differ from each other and stay the same from request to request."""
    return None if seed is None else (seed + choice) % (1 << 63)


def _user_hash(job: Job) -> str | None:
    if job.user is None:
        return None
    return hashlib.sha256(f"{job.caller.id}:{job.user}".encode()).hexdigest()[:16]
