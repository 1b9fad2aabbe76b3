"""The road of a request, in order: validate → place → filter → cache → encode → limits → engine → stream → usage.

Authentication and the count of the request lie before it. A dialect hands in a `Job` and gets a `Generation` back. What
takes time by the prompt's length comes after the caller has a place, and for long prompts runs in a thread.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Protocol, TypeVar

from llm_runtime import errors
from llm_runtime.aside import aside
from llm_runtime.cache.answer import Answer, Turn
from llm_runtime.cache.completions import CompletionCache
from llm_runtime.cache.idempotency import HEADER as IDEMPOTENCY_KEY
from llm_runtime.cache.idempotency import IdempotencyKeys
from llm_runtime.cache.key import job_digest, model_digest
from llm_runtime.contract import RuntimeConfig
from llm_runtime.filters import Filters
from llm_runtime.generation import Admission, Books, Choice, Generation, Replay, close, model_version, text_of
from llm_runtime.job import MAX_CHOICES, NOT_ASKED, Job, Messages, Prompt, characters, forget, is_conversation, written
from llm_runtime.metrics import Metrics
from llm_runtime.request import Caller, Engine, GenerationRequest, TextCodec, TokenStream
from llm_runtime.usage import UsageLog

# All that a dialect needs.
__all__ = [
    "IDEMPOTENCY_KEY",
    "MAX_CHOICES",
    "NOT_ASKED",
    "Choice",
    "Generation",
    "Job",
    "Messages",
    "Pipeline",
    "Prompt",
    "model_version",
    "text_of",
]


T = TypeVar("T")

LONG_CHARACTERS = 4000
"""To encode so many takes some 3 ms, for which all others would wait; longer prompts are prepared in a thread."""
SLOW_SECONDS = 0.1


class Limiter(Protocol):
    """What stands between a caller and too much."""

    async def admit(self, caller: Caller, tokens: int, *, requests: int = 1, counted: int = 0) -> Admission:
        """Set aside all of it but the requests that are `counted`, or raise `errors.Refusal`; waits for a place."""
        ...

    def most_tokens(self, caller: Caller) -> int | None:
        """The most that one request may ask for; None: no limit."""
        ...


class NoLimits:
    """Everybody may do everything."""

    async def admit(self, caller: Caller, tokens: int, *, requests: int = 1, counted: int = 0) -> Admission:
        return self

    def most_tokens(self, caller: Caller) -> int | None:
        return None

    async def reserve(self, tokens: int) -> None:
        """There is enough."""

    def settle(self, tokens: int) -> None:
        """Nothing was set aside."""


class Pipeline:
    """One loaded model and what every request to it passes through."""

    def __init__(
        self,
        config: RuntimeConfig,
        engine: Engine,
        codec: TextCodec,
        metrics: Metrics,
        usage: UsageLog,
        *,
        limiter: Limiter | None = None,
        cache: CompletionCache | None = None,
        idempotency: IdempotencyKeys | None = None,
        identity: Callable[[str], str] = str,
        version: str = "",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Cache and keys outlive a swap of the model; `identity` tells versions of one adapter apart for them, and
        `version` says what a `uri` stands for; "": the configuration's.

        Raises `errors.ConfigInvalid` for a filter's pattern.
        """
        self.config = config
        self.engine = engine
        self.codec = codec
        self.limiter = NoLimits() if limiter is None else limiter
        self.cache = cache
        self.idempotency = idempotency or IdempotencyKeys()
        self._identity = identity
        self.version = version or model_version(config)
        own = (config.model.system_prompt, codec.chat_template, codec.tool_template)
        self._filters = Filters(config.server.filters, own)
        self._model = model_digest(config, self.version)
        self._books = Books(config, self.version, metrics, usage, clock)
        self._metrics = metrics
        self._slow = False
        """A short prompt took long once: from then on none is prepared on the event loop."""
        metrics.cache_entries.set_function(lambda: cache.entries if cache else 0)

    async def start(self, job: Job, *, large: bool = False) -> Generation:
        """Admit a job. Whatever it can be refused for is raised here, before a byte is answered.

        `large`: even to count its characters takes time.
        """
        job, length = await aside(self._validate, job) if large else self._validate(job)
        async with AsyncExitStack() as held:  # A refusal or a cancellation, wherever it comes, gives all of it back.
            admission = await self._admit(job, length)
            held.callback(admission.settle, 0)
            job = await self._prepared(length, self._filters.prompts, job)
            weights = self._weights(job)
            answer, turns = await self._recall(job, weights, held)
            if answer:
                held.pop_all()
                return _replay(self._books, job, admission, answer, turns)
            await self._check_constraint(job)
            job, prompts = await self._prepared(length, self._encode, job)
            requests = self._requests(job, prompts)
            await admission.reserve(_most_tokens(prompts, requests))
            streams = await self._run(requests)
            held.pop_all()
            if self._weights(job) != weights:  # The adapter was replaced while this request waited for its turn.
                turns = _without_cache(job, turns)
        prompt_tokens = sum(map(len, prompts))
        self._metrics.prompt_tokens.labels(self.config.model.name).inc(prompt_tokens)
        return Generation(
            self._books,
            job,
            admission,
            choices=len(streams),
            prompt_tokens=prompt_tokens,
            streams=streams,
            turns=turns,
            masks=self._filters.masks(len(streams)),
        )

    async def _prepared(self, length: int, work: Callable[[Job], T], job: Job) -> T:
        """`work` on a prompt of this length: here, or aside where it takes time, be it by the model's chat template."""
        if self._slow or length > LONG_CHARACTERS:
            return await aside(work, job)
        began = time.perf_counter()
        try:
            return work(job)
        finally:
            self._slow = time.perf_counter() - began > SLOW_SECONDS

    def _validate(self, job: Job) -> tuple[Job, int]:
        """The job, shortened where it may be, and its length in characters or tokens. Counts, and looks at nothing."""
        if len(job.prompts) * job.n > MAX_CHOICES:
            message = f"A request may have at most {MAX_CHOICES} choices; it asks for {len(job.prompts)} x {job.n}."
            raise errors.InvalidRequest(message, param="n")
        limit = self.config.server.max_prompt_characters
        beside = written(job.tools) + written(job.template_options) if job.tools or job.template_options else 0
        while (length := sum(map(characters, job.prompts)) + beside) > limit:
            if not job.forgettable:
                # Clients know a prompt that is too long by OpenAI's words, here and below, and send a shorter one.
                message = (
                    f"The prompt is a string too long. Expected a string with maximum length {limit}, but got a string "
                    f"with length {length} instead: shorten the conversation."
                )
                raise errors.InvalidRequest(message, param=job.prompt_field, code="string_above_max_length")
            job = forget(job, 2)
        tokens = [len(prompt) for prompt in job.prompts if not isinstance(prompt, str) and not is_conversation(prompt)]
        if tokens and max(tokens) >= self.engine.max_model_length:
            raise self._too_long(job, max(tokens))
        return job, length + sum(tokens)

    async def _admit(self, job: Job, length: int) -> Admission:
        """A place, the requests beyond the one that was counted, and of a long prompt what it takes at least."""
        least = 0
        if length > LONG_CHARACTERS:
            least = len(job.prompts) * (1 + job.n * max(1, job.sampling.max_tokens))
        return await self.limiter.admit(job.caller, least, requests=len(job.prompts), counted=1)

    def _weights(self, job: Job) -> str:
        """What answers, down to the adapter's version."""
        return self._model + self._identity(job.adapter)

    async def _recall(self, job: Job, weights: str, held: AsyncExitStack) -> tuple[Answer | None, list[Turn]]:
        """An answer that was given before; or the turns to make one, for those who wait for it or will ask again."""
        turns: list[Turn] = []
        sampled = self.config.server.completion_cache.sampled
        cache = self.cache if job.deterministic or sampled else None
        if job.idempotency_key is None and cache is None:
            return None, turns
        if job.idempotency_key is not None:
            found = self.idempotency.claim(job.caller.id, job.idempotency_key, job_digest(self._model, job))
            if isinstance(found, Answer):
                return found, turns
            turns.append(found)
            held.callback(found.drop)
        if cache is not None:
            timeout = self.config.server.request_timeout_seconds
            model = self.config.model.name
            key = job_digest(weights, job)
            found = await cache.find(key, tenant=job.caller.id, model=model, timeout_seconds=timeout)
            self._metrics.cache_lookups.labels("hit" if isinstance(found, Answer) else "miss").inc()
            if isinstance(found, Answer):
                return found, turns
            turns.append(found)
            held.callback(found.drop)
        return None, turns

    async def _check_constraint(self, job: Job) -> None:
        if job.sampling.constraint is None:
            return
        try:
            # A large schema takes 0.1 s to compile, which other streams must not feel.
            await asyncio.to_thread(self.codec.check_constraint, job.sampling.constraint)
        except errors.InvalidRequest as refusal:
            field = job.constraint_field
            raise errors.InvalidRequest(f"{field}: {refusal.message}", param=field, code=refusal.code) from refusal

    def _encode(self, job: Job) -> tuple[Job, list[list[int]]]:
        """The prompts' tokens; of a conversation that is too long its oldest messages go first, if they may."""
        prompts = [self._tokens(prompt, job) for prompt in job.prompts]
        most = self.engine.max_model_length
        wanted = job.sampling.max_tokens or min(job.default_max_tokens or most, most // 4)
        while job.forgettable and len(prompts[0]) + wanted > most:
            # By halves: each try encodes everything again.
            job = forget(job, max(2, job.forgettable // 2))
            prompts = [self._tokens(prompt, job) for prompt in job.prompts]
        if self._filters.reads_prompts:
            self._filters.encoded(job, map(self.codec.decode, prompts))
        return job, prompts

    def _tokens(self, prompt: Prompt, job: Job) -> list[int]:
        if isinstance(prompt, str):
            return self.codec.encode(prompt)
        if not is_conversation(prompt):
            return [token for token in prompt if isinstance(token, int)]
        conversation = [message for message in prompt if isinstance(message, dict)]
        system = self.config.model.system_prompt
        if system and all(message["role"] != "system" for message in conversation):
            conversation.insert(0, {"role": "system", "content": system})
        return self.codec.encode_chat(conversation, job.tools, job.template_options)

    def _requests(self, job: Job, prompts: Sequence[list[int]]) -> list[GenerationRequest]:
        affordable = self._affordable(job, prompts)
        return [
            request for number, ids in enumerate(prompts) for request in self._choices(job, number, ids, affordable)
        ]

    def _affordable(self, job: Job, prompts: Sequence[list[int]]) -> int | None:
        """Tokens that the caller's limits leave for each choice, where the client has not said how many it wants."""
        most = None if job.sampling.max_tokens else self.limiter.most_tokens(job.caller)
        return None if most is None else max(1, (most - sum(map(len, prompts))) // (len(prompts) * job.n))

    def _choices(self, job: Job, number: int, ids: list[int], affordable: int | None) -> list[GenerationRequest]:
        room = self.engine.max_model_length - len(ids)
        if not ids:
            raise errors.InvalidRequest("The prompt has no tokens; send some text.", param=job.prompt_field)
        if room < 1:
            raise self._too_long(job, len(ids))
        default = min(job.default_max_tokens or room, room)
        max_tokens = job.sampling.max_tokens or (default if affordable is None else min(default, affordable))
        first = number * job.n
        return [
            GenerationRequest(
                id=f"{job.id}-{first + choice}",
                prompt_token_ids=tuple(ids),
                sampling=replace(job.sampling, max_tokens=max_tokens, seed=_seed(job.sampling.seed, choice)),
                adapter=job.adapter,
                priority=job.caller.tier.priority,
                tenant=job.caller.id,
                continues=not is_conversation(job.prompts[number]),
                shown_token_ids=job.shown_token_ids,
            )
            for choice in range(job.n)
        ]

    def _too_long(self, job: Job, tokens: int) -> errors.Refusal:
        limit = self.engine.max_model_length
        message = (
            f"This model's maximum context length is {limit} tokens. However, your prompt has {tokens} tokens, "
            "which leaves none for an answer. Please reduce the length of the prompt."
        )
        return errors.InvalidRequest(message, param=job.prompt_field, code="context_length_exceeded")

    async def _run(self, requests: Sequence[GenerationRequest]) -> list[TokenStream]:
        """All or none."""
        streams: list[TokenStream] = []
        try:
            for request in requests:
                streams.append(self.engine.generate(request))
        except BaseException:
            await close(streams)
            raise
        return streams


def _most_tokens(prompts: Sequence[list[int]], requests: Sequence[GenerationRequest]) -> int:
    """What is billed at most: each prompt once, and all that its choices may say."""
    return sum(map(len, prompts)) + sum(request.sampling.max_tokens for request in requests)


def _replay(books: Books, job: Job, admission: Admission, answer: Answer, turns: Sequence[Turn]) -> Generation:
    for turn in turns:
        turn.keep(answer)
    return Replay(books, job, admission, answer)


def _without_cache(job: Job, turns: Sequence[Turn]) -> list[Turn]:
    """An answer of other weights than its key says is kept for whoever repeats this very request, and for no other."""
    own = 0 if job.idempotency_key is None else 1
    for turn in turns[own:]:
        turn.drop()
    return list(turns[:own])


def _seed(seed: int | None, choice: int) -> int | None:
    """The choices of one seeded prompt differ from each other and stay the same from request to request."""
    return None if seed is None else (seed + choice) % (1 << 63)
