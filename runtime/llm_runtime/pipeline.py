"""The pipeline turns a job into a generation, in the order of `Pipeline.start`:
validate → place → filter → cache → encode → tokens → engine.

The key is checked and the request counted before it; streaming and usage come after it. A dialect
passes a `Job` and gets a `Generation` back. Work that grows with the prompt's length is done only
after admission, and for long prompts in a thread.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Protocol, TypeVar

from llm_runtime import errors
from llm_runtime.cache.answer import Answer, Turn
from llm_runtime.cache.completions import CompletionCache
from llm_runtime.cache.idempotency import HEADER as IDEMPOTENCY_KEY
from llm_runtime.cache.idempotency import IdempotencyKeys
from llm_runtime.cache.key import job_digest, model_digest
from llm_runtime.common.aside import aside
from llm_runtime.contract import RuntimeConfig
from llm_runtime.embedding import check_texts, other_task, text_requests
from llm_runtime.filters import Filters
from llm_runtime.generation import (
    Admission,
    Books,
    Choice,
    Generation,
    Listener,
    Replay,
    close,
    model_version,
    text_of,
)
from llm_runtime.job import (
    MAX_CHOICES,
    MAX_INPUTS,
    NOT_ASKED,
    Job,
    Messages,
    Prompt,
    characters,
    drop_oldest,
    is_conversation,
    too_many_letters,
    written,
)
from llm_runtime.metrics import Metrics
from llm_runtime.request import (
    Caller,
    EmbeddingModel,
    Engine,
    GenerationRequest,
    TextCodec,
    TokenStream,
)
from llm_runtime.usage import UsageLog, UsageRow

# Everything that a dialect needs.
__all__ = [
    "IDEMPOTENCY_KEY",
    "MAX_CHOICES",
    "MAX_INPUTS",
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
"""Length from which prompts are prepared in a thread. Encoding this many takes about 3 ms."""
SENT_AT_ONCE = 64
"""Requests that are handed to the engine in a row, which takes about 3 ms."""
SLOW_SECONDS = 0.1
"""Preparation time of a short prompt after which the next ones run in a thread:
its chat template is slow."""


class Limiter(Protocol):
    """Enforces a caller's limits."""

    async def admit(
        self, caller: Caller, tokens: int, *, requests: int = 1, counted: int = 0
    ) -> Admission:
        """Wait for a concurrency slot and reserve requests and tokens, or raise `errors.Refusal`.

        `counted` of the requests have already been counted.
        """
        ...

    def most_tokens(self, caller: Caller) -> int | None:
        """Most tokens that one request may ask for; None without a limit."""
        ...


class NoLimits:
    """A limiter that admits everything."""

    async def admit(
        self, caller: Caller, tokens: int, *, requests: int = 1, counted: int = 0
    ) -> Admission:
        return self

    def most_tokens(self, caller: Caller) -> int | None:
        return None

    async def reserve(self, tokens: int) -> None:
        """Always succeeds."""

    def settle(self, tokens: int) -> None:
        """Does nothing, as nothing was reserved."""


class NoUsage:
    """A usage log of nothing."""

    def write(self, row: UsageRow) -> None:
        """Does nothing: nobody is billed."""


class Pipeline:
    """Runs every request to one loaded model."""

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
        """`cache` and `idempotency` outlive a swap of the model.

        `identity` returns the version of an adapter, which becomes part of their keys. `version` is
        the version that the model's `uri` resolved to; "" means the configuration's. Raises
        `errors.ConfigInvalid` for an invalid pattern of a filter.
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
        self._no_books = replace(self._books, metrics=Metrics(), usage=NoUsage())
        """Nobody reads these."""
        self._metrics = metrics
        self._slow = False
        """Set once a short prompt took long. From then on all prompts are prepared in a thread."""

    async def start(
        self,
        job: Job,
        *,
        large: bool = False,
        listener: Listener | None = None,
        unbilled: bool = False,
    ) -> Generation:
        """Admit a job and start it.
        Every refusal is raised here, before the first byte of an answer.

        `large` means that even counting its characters takes time, so that is done in a thread,
        too. `unbilled`: it is under no limits, and leaves no trace in usage, metrics and caches.
        """
        job, length = await self._checked(job, large)
        # Releases everything after a refusal or a cancellation, wherever it is.
        async with AsyncExitStack() as undo:
            admission = NoLimits() if unbilled else await self._admit(job, length)
            undo.callback(admission.settle, 0)
            job = await self._prepared(length, self._filters.prompts, job)
            weights = self._weights(job)
            answer, turns = (None, []) if unbilled else await self._recall(job, weights, undo)
            if answer:
                undo.pop_all()
                return _replay(self._books, job, admission, answer, turns)
            await self._check_constraint(job)
            job, prompts = await self._prepared(length, self._encode, job)
            requests = self._requests(job, prompts)
            await admission.reserve(_most_tokens(prompts, requests))
            streams = await self._run(requests)
            undo.pop_all()
            if self._weights(job) != weights:  # The adapter was replaced while this request waited.
                turns = _without_cache(job, turns)
        prompt_tokens = sum(map(len, prompts))
        books = self._no_books if unbilled else self._books
        books.metrics.prompt_tokens.labels(self.config.model.name).inc(prompt_tokens)
        return Generation(
            books,
            job,
            admission,
            choices=len(streams),
            prompt_tokens=prompt_tokens,
            streams=streams,
            turns=turns,
            masks=() if job.embeds else self._filters.masks(len(streams)),
            listener=listener,
        )

    async def encoded(self, job: Job, *, large: bool = False) -> list[list[int]]:
        """The tokens of a job's prompts, as `start` would bill them.
        Raises what `start` does until then, and generates nothing."""
        job, length = await self._checked(job, large)
        admission = await self.limiter.admit(job.caller, 0, requests=len(job.prompts), counted=1)
        try:
            job = await self._prepared(length, self._filters.prompts, job)
            _, prompts = await self._prepared(length, self._encode, job)
        finally:
            admission.settle(0)
        return prompts

    async def decoded(self, caller: Caller, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones included. Raises what limits refuse."""
        admission = await self.limiter.admit(caller, 0, requests=1, counted=1)
        try:
            return await aside(self.codec.decode, tokens, special=True)
        finally:
            admission.settle(0)

    @property
    def embedding(self) -> EmbeddingModel:
        """What the model's embeddings are like.
        Raises `errors.InvalidRequest` for a model that makes none."""
        if (model := self.engine.embedding) is None:
            raise other_task(self.config.model.name, embeds=False)
        return model

    def masked(self, value: T) -> T:
        """A value, wherever it holds texts, as the filters let the model see it."""
        return self._filters.masked(value)

    async def _checked(self, job: Job, large: bool) -> tuple[Job, int]:
        return await aside(self._validate, job) if large else self._validate(job)

    async def _prepared(self, length: int, work: Callable[[Job], T], job: Job) -> T:
        """Do `work` here, or in a thread if it takes long:
        because of the length, or of a slow chat template."""
        if self._slow or length > LONG_CHARACTERS:
            return await aside(work, job)
        began = time.perf_counter()
        try:
            return work(job)
        finally:
            self._slow = time.perf_counter() - began > SLOW_SECONDS

    def _validate(self, job: Job) -> tuple[Job, int]:
        """The job, without the oldest messages if it is too long and they may go,
        and its length in characters.

        Prompts of token ids count their tokens.
        """
        embeds = self.engine.embedding is not None
        if job.embeds != embeds:
            raise other_task(self.config.model.name, embeds=embeds)
        if job.embeds:
            return job, check_texts(job, self.config.server.max_prompt_characters)
        if len(job.prompts) * job.n > MAX_CHOICES:
            message = (
                f"A request may have at most {MAX_CHOICES} choices; it asks for {len(job.prompts)}"
                f" x {job.n}."
            )
            raise errors.InvalidRequest(message, param="n")
        limit = self.config.server.max_prompt_characters
        beside = (
            written(job.tools) + written(job.template_options)
            if job.tools or job.template_options
            else 0
        )
        length = sum(map(characters, job.prompts)) + beside
        while length > limit:
            if not job.droppable_messages:
                raise too_many_letters(job.prompt_field, limit, length, "shorten the conversation")
            job = drop_oldest(job, 2)
            length = sum(map(characters, job.prompts)) + beside
        tokens = [
            len(prompt)
            for prompt in job.prompts
            if not isinstance(prompt, str) and not is_conversation(prompt)
        ]
        if tokens and max(tokens) + job.least_tokens > self.engine.max_model_length:
            raise self._too_long(job, max(tokens))
        return job, length + sum(tokens)

    async def _admit(self, job: Job, length: int) -> Admission:
        """Reserve a slot, the requests beyond the counted one,
        and the least number of tokens of a long prompt.

        A caller without that many tokens left is refused before its prompt is encoded.
        """
        least = 0
        if length > LONG_CHARACTERS:
            answer = 0 if job.embeds else job.n * max(1, job.sampling.max_tokens)
            least = len(job.prompts) * (1 + answer)
        # Texts to embed are one request, as in OpenAI's API.
        requests = 1 if job.embeds else len(job.prompts)
        return await self.limiter.admit(job.caller, least, requests=requests, counted=1)

    def _weights(self, job: Job) -> str:
        """Identifies the weights that answer: the model's version and the adapter's."""
        return self._model + self._identity(job.adapter)

    async def _recall(
        self, job: Job, weights: str, undo: AsyncExitStack
    ) -> tuple[Answer | None, list[Turn]]:
        """An earlier answer, or the turns in which this job makes one for those who wait for it or
        ask again."""
        turns: list[Turn] = []
        sampled = self.config.server.completion_cache.sampled
        wanted = (job.deterministic or sampled) and not job.embeds
        cache = self.cache if wanted else None
        if job.idempotency_key is None and cache is None:
            return None, turns
        if job.idempotency_key is not None:
            claimed = self.idempotency.claim(
                job.caller.id, job.idempotency_key, job_digest(self._model, job)
            )
            if isinstance(claimed, Answer):
                return claimed, turns
            turns.append(claimed)
            undo.callback(claimed.drop)
        if cache is not None:
            timeout = self.config.server.request_timeout_seconds
            model = self.config.model.name
            key = job_digest(weights, job)
            cached = await cache.find(
                key, tenant=job.caller.id, model=model, timeout_seconds=timeout
            )
            self._metrics.cache_lookups.labels(
                "hit" if isinstance(cached, Answer) else "miss"
            ).inc()
            if isinstance(cached, Answer):
                return cached, turns
            turns.append(cached)
            undo.callback(cached.drop)
        return None, turns

    async def _check_constraint(self, job: Job) -> None:
        if job.sampling.constraint is None:
            return
        try:
            # In a thread: a large schema takes 0.1 s to compile,
            # and other streams must not wait for it.
            await asyncio.to_thread(self.codec.check_constraint, job.sampling.constraint)
        except errors.InvalidRequest as refusal:
            field = job.constraint_field
            raise errors.InvalidRequest(
                f"{field}: {refusal.message}", param=field, code=refusal.code
            ) from refusal

    def _encode(self, job: Job) -> tuple[Job, list[list[int]]]:
        """The prompts' tokens.
        A conversation that is too long loses its oldest messages, if they may go."""
        prompts = [self._tokens(prompt, job) for prompt in job.prompts]
        most = self.engine.max_model_length
        wanted = job.max_tokens
        if wanted is None:
            wanted = min(job.default_max_tokens or most, most // 4)
        while job.droppable_messages and len(prompts[0]) + wanted > most:
            # Half of them at a time, because each attempt encodes everything again.
            job = drop_oldest(job, max(2, job.droppable_messages // 2))
            prompts = [self._tokens(prompt, job) for prompt in job.prompts]
        if self._filters.reads_prompts:
            self._filters.encoded(job, map(self.codec.decode, prompts))
        return job, prompts

    def _tokens(self, prompt: Prompt, job: Job) -> list[int]:
        if isinstance(prompt, str):
            return self.codec.encode(prompt, special=job.special_tokens)
        if not is_conversation(prompt):
            return [token for token in prompt if isinstance(token, int)]
        conversation = [message for message in prompt if isinstance(message, dict)]
        system = self.config.model.system_prompt
        if system and all(message["role"] != "system" for message in conversation):
            conversation.insert(0, {"role": "system", "content": system})
        return self.codec.encode_chat(conversation, job.tools, job.template_options, job.ending)

    def _requests(self, job: Job, prompts: Sequence[list[int]]) -> list[GenerationRequest]:
        if job.embeds:
            return text_requests(job, prompts, self.engine.max_model_length)
        affordable = self._affordable(job, prompts)
        return [
            request
            for number, ids in enumerate(prompts)
            for request in self._choices(job, number, ids, affordable)
        ]

    def _affordable(self, job: Job, prompts: Sequence[list[int]]) -> int | None:
        """Tokens that the caller's limits leave for each choice;
        None without a limit or if the client set a number."""
        most = self.limiter.most_tokens(job.caller) if job.max_tokens is None else None
        return (
            None
            if most is None
            else max(1, (most - sum(map(len, prompts))) // (len(prompts) * job.n))
        )

    def _choices(
        self, job: Job, number: int, ids: list[int], affordable: int | None
    ) -> list[GenerationRequest]:
        room = self.engine.max_model_length - len(ids)
        if not ids:
            raise errors.InvalidRequest(
                "The prompt has no tokens; send some text.", param=job.prompt_field
            )
        if room < job.least_tokens:
            raise self._too_long(job, len(ids))
        max_tokens = job.max_tokens
        if max_tokens is None:
            default = min(job.default_max_tokens or room, room)
            max_tokens = default if affordable is None else min(default, affordable)
        first = number * job.n
        return [
            GenerationRequest(
                id=f"{job.id}-{first + choice}",
                prompt_token_ids=tuple(ids),
                sampling=replace(
                    job.sampling, max_tokens=max_tokens, seed=_seed(job.sampling.seed, choice)
                ),
                adapter=job.adapter,
                priority=job.caller.tier.priority,
                tenant=job.caller.id,
                continues=job.ending == "continued" or not is_conversation(job.prompts[number]),
                shown_token_ids=job.shown_token_ids,
            )
            for choice in range(job.n)
        ]

    def _too_long(self, job: Job, tokens: int) -> errors.Refusal:
        limit = self.engine.max_model_length
        message = (
            f"This model's maximum context length is {limit} tokens. However, your prompt has"
            f" {tokens} tokens, which leaves none for an answer. Please reduce the length of the"
            " prompt."
        )
        return errors.InvalidRequest(
            message, param=job.prompt_field, code="context_length_exceeded"
        )

    async def _run(self, requests: Sequence[GenerationRequest]) -> list[TokenStream]:
        """Start all requests or none."""
        streams: list[TokenStream] = []
        try:
            for number, request in enumerate(requests, 1):
                streams.append(self.engine.generate(request))
                if not number % SENT_AT_ONCE:  # Others are to be heard, too.
                    await asyncio.sleep(0)
        except BaseException:
            await close(streams)
            raise
        return streams


def _most_tokens(prompts: Sequence[list[int]], requests: Sequence[GenerationRequest]) -> int:
    """Most tokens that can be billed: each prompt once, and `max_tokens` of every choice."""
    return sum(map(len, prompts)) + sum(request.sampling.max_tokens for request in requests)


def _replay(
    books: Books, job: Job, admission: Admission, answer: Answer, turns: Sequence[Turn]
) -> Generation:
    for turn in turns:
        turn.keep(answer)
    return Replay(books, job, admission, answer)


def _without_cache(job: Job, turns: Sequence[Turn]) -> list[Turn]:
    """Drop the cache's turn, because the answer comes from other weights than its key says.

    The idempotency key's turn stays: repeating this very request may return this answer.
    """
    own = 0 if job.idempotency_key is None else 1
    for turn in turns[own:]:
        turn.drop()
    return list(turns[:own])


def _seed(seed: int | None, choice: int) -> int | None:
    """The seed of one choice: choices of a prompt differ from each other,
    but are the same in each request."""
    return None if seed is None else (seed + choice) % (1 << 63)
