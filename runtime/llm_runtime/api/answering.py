"""What the dialects with a form of their own share:
from a body to a job, from a generation to an answer."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, ParamSpec, Protocol, TypeVar
from uuid import uuid4

from fastapi import Request

from llm_runtime import errors, logs
from llm_runtime.api.answers import own_error
from llm_runtime.api.body import BASE, check_model
from llm_runtime.api.server import server_of
from llm_runtime.auth.callers import may_use
from llm_runtime.common.aside import aside
from llm_runtime.pipeline import IDEMPOTENCY_KEY, Choice, Generation, Job, Pipeline, text_of
from llm_runtime.request import Caller, TextCodec
from llm_runtime.stream import DONE, HEARTBEAT, EventStream, sse, while_connected
from llm_runtime.tools.forms import AnswerForm, reading_of
from llm_runtime.tools.offer import Answers, Offer
from llm_runtime.tools.reader import AnswerReader, Part

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_MAX_TOKENS = 256
"""Default of the dialects that name no other number."""


def pipeline_of(request: Request) -> Pipeline:
    """The way to the model that this request goes."""
    pipeline: Pipeline = request.state.pipeline
    return pipeline


def caller_of(request: Request) -> Caller:
    """Who asks."""
    caller: Caller = request.state.caller
    return caller


def job(request: Request, prefix: str = "", **fields: Any) -> Job:
    """A job of this request;
    `fields` are those of `Job` that its body decides. `prefix` begins its id."""
    endpoint = request.url.path
    begun = prefix or f"{endpoint.strip('/').replace('/', '-')}-"
    return Job(
        id=f"{begun}{uuid4().hex}",
        endpoint=endpoint,
        request_id=logs.request_id.get() or "",
        caller=caller_of(request),
        idempotency_key=request.headers.get(IDEMPOTENCY_KEY),
        **fields,
    )


def adapter_of(request: Request, asked: str | None, field: str = "model") -> str:
    """The adapter that a model's name, which stands in `field`, asks for;
    no name is the model's own.

    Raises `errors.NotFound`, also for one that the caller may not use, and
    `errors.ServiceUnavailable` for one that is on its way.
    """
    pipeline = pipeline_of(request)
    server = server_of(request)
    served = pipeline.config.model.name
    present = pipeline.engine.adapters
    default = server.default_adapter
    listed = server.adapters.names if server.adapters else ()
    # The default one may have no version yet that has passed its gates: then it is not listed.
    known = dict.fromkeys((*present, *listed, *([default] if default else [])))
    usable = [name for name in known if may_use(caller_of(request), name)]
    adapter = check_model(asked or served, served, usable, default, field)
    if not adapter or adapter in present:
        return adapter
    if adapter in listed:
        raise errors.ServiceUnavailable(
            f"The adapter {adapter} is not loaded yet; try again shortly."
        )
    raise errors.ServiceUnavailable(
        f"The adapter {adapter}, which answers for {served!r}, has no version yet that may answer;"
        f" try again later, or ask {f'{served}:{BASE}'!r} for the model alone."
    )


def model_name(generation: Generation, pipeline: Pipeline) -> str:
    """The model that answered, as the client names it."""
    name = pipeline.config.model.name
    adapter = generation.job.adapter
    return f"{name}:{adapter}" if adapter else name


def bare_reading(request: Request) -> AnswerForm:
    """How answers to bare prompts are read:
    a model may think even then, but was offered nothing to call."""
    return replace(reading_of(pipeline_of(request).codec.chat_template), form=None)


def read(reading: AnswerForm, prompt: str, text: str) -> Part:
    """A whole answer to a bare prompt."""
    return reading.reader(inside=reading.inside(prompt)).take(text, final=True)


async def start(request: Request, wanted: Job) -> Generation:
    """Admit a job, unless the client leaves while it waits for its turn.
    Raises what it can be refused for."""
    pipeline = pipeline_of(request)
    state = request.state
    starting = pipeline.start(
        wanted, large=state.large, listener=state.listener, unbilled=state.unbilled
    )
    return await while_connected(
        request.receive, starting, pipeline.config.server.request_timeout_seconds
    )


class Conversation(Protocol):
    """A body whose model may call tools."""

    @property
    def model(self) -> str:
        """The model, or one of its adapters, that is asked."""

    def offer(self, template: str) -> Offer | None:
        """The tools that the model may call."""

    def answers(self, codec: TextCodec, offer: Offer | None) -> Answers:
        """How to parse the model's answers."""

    def job(self, request: Request, adapter: str, answers: Answers) -> Job:
        """The job whose answers these are."""


async def converse(request: Request, body: Conversation) -> tuple[Generation, Answers]:
    """Start the job of a conversation. Raises what it can be refused for."""
    codec = pipeline_of(request).codec
    adapter = adapter_of(request, body.model)
    offer = await worked_out(request, body.offer, codec.tool_template)
    answers = body.answers(codec, offer)
    wanted = await worked_out(request, body.job, request, adapter, answers)
    return await start(request, wanted), answers


async def prompt_tokens(request: Request, wanted: Job) -> list[int]:
    """The tokens of a job's only prompt, unless the client leaves meanwhile.
    Raises what it can be refused for."""
    pipeline = pipeline_of(request)
    encoding = pipeline.encoded(wanted, large=request.state.large)
    timeout_seconds = pipeline.config.server.request_timeout_seconds
    [tokens] = await while_connected(request.receive, encoding, timeout_seconds)
    return tokens


async def worked_out(
    request: Request, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Do `work` on the body, in a thread if the body is large."""
    return await aside(work, *args, **kwargs) if request.state.large else work(*args, **kwargs)


async def collect(request: Request, generation: Generation) -> list[Choice]:
    """All choices, whole. Accounts for the job, also if the client leaves or time runs out."""
    async with generation:
        return await generation.whole(request.receive)


def event_stream(
    request: Request,
    generation: Generation,
    events: AsyncGenerator[bytes],
    error: Callable[[errors.Refusal], dict[str, Any]] = own_error,
    event: Callable[[dict[str, Any]], bytes] = sse,
    heartbeat: bytes = HEARTBEAT,
    done: bytes = DONE,
) -> EventStream:
    """Server-sent events; what goes wrong after the first becomes an event,
    in the dialect's shape of errors."""
    timeout_seconds = pipeline_of(request).config.server.request_timeout_seconds
    return EventStream(
        generation,
        events,
        fault=lambda refusal: event(error(refusal)),
        timeout_seconds=timeout_seconds,
        heartbeat=heartbeat,
        done=done,
    )


async def text_events(
    generation: Generation, pipeline: Pipeline, reader: AnswerReader
) -> AsyncGenerator[tuple[str, bytes]]:
    """(text, event) as the one choice of a generation comes:
    `{"text": …}`, at its end with the reason and counts.

    The `reader` takes thoughts out of the text: they are `{"reasoning_content": …}`.
    """
    async with aclosing(generation.bursts()) as bursts:
        async for _, events in bursts:
            reason = events[-1].finish_reason
            part = reader.take(text_of(events), final=reason is not None)
            if part.thoughts:
                yield "", sse({"text": "", "reasoning_content": part.thoughts})
            if part.text:
                yield part.text, sse({"text": part.text})
            if reason:
                last = {
                    "text": "",
                    "finish_reason": reason,
                    "model": model_name(generation, pipeline),
                    "tokens_generated": generation.completion_tokens,
                    "cached": generation.cached,
                }
                yield "", sse(last)
