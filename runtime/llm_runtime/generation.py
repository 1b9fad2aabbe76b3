"""An admitted job: delivers its events, and accounts for it when it ends, however it ends."""

import asyncio
import hashlib
import logging
from asyncio import CancelledError
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Protocol

from starlette.types import Receive

from llm_runtime import errors
from llm_runtime.cache.answer import Answer, AnswerChoice, Turn
from llm_runtime.contract import RuntimeConfig
from llm_runtime.filters import Mask
from llm_runtime.job import Job, Prompt
from llm_runtime.metrics import Metrics
from llm_runtime.request import FinishReason, PromptLogprobs, TokenEvent, TokenStream
from llm_runtime.stream import ClientGone, compact_json, merge, while_connected
from llm_runtime.usage import Outcome, UsageLog, UsageRow

log = logging.getLogger(__name__)


class Admission(Protocol):
    """What the limits have reserved for one job."""

    async def reserve(self, tokens: int) -> None:
        """Change the reservation to `tokens`, now that the number is known,
        or raise `errors.Refusal`."""
        ...

    def settle(self, tokens: int) -> None:
        """End the job: charge the `tokens` that it used,
        and release the rest and its concurrency slot."""
        ...


@dataclass(slots=True)
class Choice:
    """One finished answer."""

    text: str = ""
    events: list[TokenEvent] = field(default_factory=list)
    """All events that carry a token.
    A cached answer has them only if log probabilities were requested."""
    finish_reason: FinishReason = FinishReason.STOP
    stopped_by: str = ""
    """The stop string at which the text ended; "" if it ended otherwise."""
    tokens: int = 0
    """How many tokens were generated for it."""
    prompt_logprobs: PromptLogprobs | None = None
    """Log probabilities of its prompt, if they were requested."""


class Listener(Protocol):
    """Somebody beside the client who is told an answer."""

    def answered(self, job: Job, choices: Sequence[Choice], seconds: float) -> None:
        """The whole answer, which was generated in `seconds`.
        Never called for one that is cut or was cached."""
        ...


@dataclass(frozen=True, slots=True)
class Books:
    """Where generations are accounted for: metrics and usage,
    with the configuration that their rows need."""

    config: RuntimeConfig
    version: str
    """Version of the model; "" if it has none."""
    metrics: Metrics
    usage: UsageLog
    clock: Callable[[], float]


class Generation:
    """An admitted job. Use it as a context manager:
    its exit releases the engine and accounts for the job."""

    cached = False
    """Whether it replays an earlier answer."""

    def __init__(
        self,
        books: Books,
        job: Job,
        admission: Admission,
        *,
        choices: int,
        prompt_tokens: int,
        streams: Sequence[TokenStream] = (),
        turns: Sequence[Turn] = (),
        masks: Sequence[Mask] = (),
        listener: Listener | None = None,
    ) -> None:
        """`turns` get the complete answer.
        `masks`, one for each choice, filter every text before it is delivered."""
        self.job = job
        self.choices = choices
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = self.cached_tokens = 0
        self._books = books
        self._admission = admission
        self._streams = streams
        self._turns = turns
        self._masks = masks
        self._listener = listener
        self._finish_reasons: list[FinishReason] = []
        self._first_token_seconds: float | None = None
        self._token_at: list[float | None] = [None] * choices
        self._started_at = books.clock()
        self._open = True
        kept = turns or listener or books.config.database.store_prompts
        self._said = [Choice() for _ in range(choices)] if kept else []

    async def __aenter__(self) -> "Generation":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await close(self._streams)
        finally:
            self._account(_outcome(fault))

    def __del__(self) -> None:
        # A shutdown may cancel the caller before it enters.
        # The slot must be released, and waiting requests must know.
        if self._open:
            with suppress(RuntimeError):  # Without a running loop, the engine has ended, too.
                asyncio.get_running_loop().create_task(close(self._streams))
            self._account(Outcome.CANCELLED)

    def _account(self, outcome: Outcome) -> None:
        self._open = False
        self._admission.settle(self._billed)
        for turn in self._turns:
            turn.drop()
        self._books.usage.write(self._row(outcome))
        if self._listener and outcome is Outcome.COMPLETED:
            self._listener.answered(self.job, self._said, self._books.clock() - self._started_at)
        if (
            self.completion_tokens
            and not self.cached
            and outcome in (Outcome.COMPLETED, Outcome.CANCELLED)
        ):
            # An answer that its client broke off counts:
            # whoever talks too long is broken off more often.
            mean = self.completion_tokens / self.choices
            self._books.metrics.answer_tokens_fine.observe(mean, self.choices)

    @property
    def _billed(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    async def bursts(self) -> AsyncGenerator[tuple[int, list[TokenEvent]]]:
        """Yield (index of the choice, its new events) until every choice has ended.

        Raises `errors.Refusal` if one fails.
        """
        tokens = self._books.metrics.tokens.labels(self._books.config.model.name)
        async with aclosing(merge(self._streams)) as merged:
            async for index, events in merged:
                count = len(events) - (
                    events[-1].token_id is None
                )  # Only the last event may have no token.
                if count:
                    self._count_tokens(index, count, events[0].cached_tokens)
                    tokens.inc(count)
                elif self.job.embeds and events[-1].text:
                    self._note_first(self._books.clock())
                self._end(events[-1])
                shown = self._masks[index].events(events) if self._masks else events
                if self._said:
                    self._note(index, shown, count)
                yield index, shown
        if len(self._finish_reasons) < self.choices:
            raise errors.GenerationFailed("The engine ended without finishing this request.")
        for turn in self._turns:
            turn.keep(self._answer())

    async def collect(self) -> list[Choice]:
        """Wait for all choices."""
        choices = [Choice() for _ in range(self.choices)]
        async with aclosing(self.bursts()) as bursts:
            async for index, events in bursts:
                _add(choices[index], events, len(events) - (events[-1].token_id is None))
        return choices

    async def whole(self, receive: Receive) -> list[Choice]:
        """Wait for all choices. Raises `ClientGone` if the client disconnects,
        `errors.RequestTimeout` on timeout."""
        return await while_connected(
            receive, self.collect(), self._books.config.server.request_timeout_seconds
        )

    def _end(self, event: TokenEvent) -> None:
        match event.finish_reason:
            case None:
                return
            case FinishReason.ERROR:
                log.error("The engine gave up on a request: %s", event.error)
                raise errors.GenerationFailed(
                    "The engine failed while it generated this answer; try again."
                )
            case FinishReason.CANCELLED:
                raise errors.ServiceUnavailable(
                    "The server shut down before this answer was whole; send it again."
                )
        self._finish_reasons.append(event.finish_reason)

    def _count_tokens(self, index: int, count: int, cached: int) -> None:
        metrics = self._books.metrics
        now = self._books.clock()
        before = self._token_at[index]
        if (
            before is None and index % self.job.n == 0
        ):  # Count a prompt once, however many choices it has.
            self.cached_tokens += cached
        self._token_at[index] = now
        self.completion_tokens += count
        metrics.rate.add(count)
        if before is not None:
            metrics.inter_token.observe((now - before) / count, count)
            metrics.inter_token_fine.observe((now - before) / count, count)
        else:
            self._note_first(now)

    def _note_first(self, now: float) -> None:
        """A choice's first token has come, or its embedding: only the first one of all counts."""
        if self._first_token_seconds is not None:
            return
        metrics = self._books.metrics
        self._first_token_seconds = now - self._started_at
        metrics.first_token.observe(self._first_token_seconds)
        metrics.first_token_fine.observe(self._first_token_seconds)

    def _note(self, index: int, events: list[TokenEvent], tokens: int) -> None:
        _add(self._said[index], events, tokens)

    def _answer(self) -> Answer:
        logprobs = self.job.sampling.logprobs is not None
        return Answer(
            self.prompt_tokens, tuple(_kept(choice, logprobs=logprobs) for choice in self._said)
        )

    def _row(self, outcome: Outcome) -> UsageRow:
        job = self.job
        config = self._books.config
        stored = config.database.store_prompts
        return UsageRow(
            at=datetime.now(UTC),
            request_id=job.request_id,
            key_id=job.caller.id,
            key_name=job.caller.name,
            tier=job.caller.tier.name,
            user_hash=_user_hash(job),
            endpoint=job.endpoint,
            model=config.model.name,
            model_version=self._books.version,
            adapter=job.adapter,
            stream=job.stream,
            cached=self.cached,
            choices=self.choices,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            finish_reasons=tuple(self._finish_reasons),
            outcome=outcome,
            first_token_seconds=self._first_token_seconds,
            duration_seconds=self._books.clock() - self._started_at,
            prompt=_one_text(job.prompts) if stored else None,
            # Vectors are no text that anybody would read there.
            completion=_one_text([choice.text for choice in self._said])
            if stored and not job.embeds
            else None,
        )


class Replay(Generation):
    """Replays an earlier answer, complete or as a stream.
    It counts as a request of the limits, but costs no tokens."""

    cached = True

    def __init__(self, books: Books, job: Job, admission: Admission, answer: Answer) -> None:
        super().__init__(
            books, job, admission, choices=len(answer.choices), prompt_tokens=answer.prompt_tokens
        )
        self.completion_tokens = answer.completion_tokens
        self._kept = answer

    @property
    def _billed(self) -> int:
        return 0

    async def bursts(self) -> AsyncGenerator[tuple[int, list[TokenEvent]]]:
        for index, choice in enumerate(self._kept.choices):
            self._end(choice.events[-1])
            if self._said:
                self._note(index, list(choice.events), choice.tokens)
            yield index, list(choice.events)

    async def collect(self) -> list[Choice]:
        choices = await super().collect()
        for choice, kept in zip(choices, self._kept.choices, strict=True):
            choice.tokens = kept.tokens
        return choices

    async def whole(self, receive: Receive) -> list[Choice]:
        return await self.collect()  # Immediate, so there is no need to watch for a disconnect.


def model_version(config: RuntimeConfig) -> str:
    """The registered version that the configuration names, or ""."""
    return config.model.mlflow.version if config.model.mlflow else ""


def text_of(events: Sequence[TokenEvent]) -> str:
    """The joined text of several events."""
    return events[0].text if len(events) == 1 else "".join([event.text for event in events])


async def close(streams: Sequence[TokenStream]) -> None:
    """Cancel the streams that have not ended."""
    for stream in streams:
        if give_up := getattr(stream, "aclose", None):
            await give_up()


def _add(choice: Choice, events: list[TokenEvent], tokens: int) -> None:
    choice.text += text_of(events)
    choice.events += (event for event in events if event.token_id is not None)
    choice.finish_reason = events[-1].finish_reason or choice.finish_reason
    choice.stopped_by = events[-1].stopped_by
    choice.prompt_logprobs = choice.prompt_logprobs or events[0].prompt_logprobs
    choice.tokens += tokens


def _kept(choice: Choice, *, logprobs: bool) -> AnswerChoice:
    # Single tokens are needed only for log probabilities.
    events = choice.events if logprobs else []
    rest = choice.text.removeprefix(text_of(events))
    end = TokenEvent(
        None,
        rest,
        finish_reason=choice.finish_reason,
        stopped_by=choice.stopped_by,
        prompt_logprobs=None if events else choice.prompt_logprobs,
    )
    return AnswerChoice(
        (*(replace(event, finish_reason=None, stopped_by="") for event in events), end),
        choice.tokens,
    )


def _outcome(fault: BaseException | None) -> Outcome:
    match fault:
        case None:
            return Outcome.COMPLETED
        case ClientGone():
            return Outcome.CANCELLED
        case errors.RequestTimeout():
            return Outcome.TIMEOUT
        # A bare CancelledError comes from uvicorn, at the end of the grace period of a shutdown.
        case errors.ServiceUnavailable() | CancelledError():
            return Outcome.INTERRUPTED
        case _:
            return Outcome.FAILED


def _one_text(parts: Sequence[Prompt]) -> str:
    """A single text unchanged, anything else as JSON."""
    [only] = parts if len(parts) == 1 else [None]
    return only if isinstance(only, str) else compact_json(only if only is not None else parts)


def _user_hash(job: Job) -> str | None:
    if job.user is None:
        return None
    return hashlib.sha256(f"{job.caller.id}:{job.user}".encode()).hexdigest()[:16]
