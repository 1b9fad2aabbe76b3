"""The messages between the HTTP process and the engine, and how they are written to the socket.

Every message is one pickle behind its length. Both ends are the same program on the same machine,
and the socket has no name: nobody else can write to it. Commands go to the engine and are few.
`StepReport` comes back once per step with the events of all requests, as bare tuples: pickling instances
of classes would cost several times as much per token.
"""

import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llm_runtime.contract import FatalReport, RuntimeConfig
from llm_runtime.engine.limits import RequestLimits
from llm_runtime.request import FinishReason, GenerationRequest, TextCodec, TokenEvent, TopLogprob

LENGTH = struct.Struct("!I")


@dataclass(frozen=True, slots=True)
class Submit:
    """Generate. `number` names the request in everything that follows;
    `model` is one that was `Ready`."""

    number: int
    model: int
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class Cancel:
    """End the request and free its place. Its final event is sent all the same."""

    number: int


@dataclass(frozen=True, slots=True)
class Load:
    """Load a model beside those that serve. Answered by `Ready` or `Failed`."""

    call: int
    config: RuntimeConfig
    folder: Path


@dataclass(frozen=True, slots=True)
class Retire:
    """Free a model's memory once its last request has ended."""

    model: int


@dataclass(frozen=True, slots=True)
class LoadAdapter:
    """Make a LoRA adapter known under `name`, in the place of one of that name.
    Answered by `Done` or `Failed`."""

    call: int
    model: int
    name: str
    folder: Path


@dataclass(frozen=True, slots=True)
class DropAdapter:
    """Forget an adapter once its last request has ended. Answered by `Done` or `Failed`."""

    call: int
    model: int
    name: str


@dataclass(frozen=True, slots=True)
class Close:
    """End after the step that runs."""


@dataclass(frozen=True, slots=True)
class CodecRead:
    """The codec of a model that is being loaded, for the HTTP process to prepare meanwhile. Comes at
    most once, before the call's `Ready`."""

    call: int
    codec: TextCodec


@dataclass(frozen=True, slots=True)
class Ready:
    """A model is loaded and has answered once: all that the HTTP process must know of it."""

    call: int
    model: int
    limits: RequestLimits
    capacity: int
    """Requests that it takes at once, running and waiting."""
    codec: TextCodec | None
    """None: it came before, as `CodecRead`."""
    device: str
    kind: Literal["batched", "sequential"]
    adapters: tuple[str, ...]
    load_seconds: float = 0.0
    load_peak_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """A call was carried out."""

    call: int
    adapters: tuple[str, ...]
    """Adapters of that model that a request may name from now on."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A call was not carried out."""

    call: int
    report: FatalReport
    adapters: tuple[str, ...] | None = None
    """The model's adapters that a request may name from now on, where room was made in vain. None:
    nothing changed."""


class EngineFigures(NamedTuple):
    """The engine's state after a step; see `request.EngineStats`."""

    running: int = 0
    kv_cache_usage_ratio: float = 0.0
    steps: int = 0
    batch_size: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    guessed_tokens: int = 0
    right_tokens: int = 0
    gpu_memory_bytes: int | None = None


class StepReport(NamedTuple):
    """What one step brought. `events` are made by `packed`."""

    events: list[tuple[Any, ...]]
    figures: EngineFigures


Command = Submit | Cancel | Load | Retire | LoadAdapter | DropAdapter | Close
Report = CodecRead | Ready | Done | Failed | StepReport


def packed(number: int, event: TokenEvent) -> tuple[Any, ...]:
    """An event for the wire: (number, token id, text),
    with all its fields only where there is more to say."""
    if (
        event.finish_reason is None
        and event.logprob is None
        and not event.cached_tokens
        and event.prompt_logprobs is None
    ):
        return (number, event.token_id, event.text)
    top = tuple((one.token_id, one.text, one.logprob) for one in event.top_logprobs)
    reason = event.finish_reason and event.finish_reason.value
    return (
        number,
        event.token_id,
        event.text,
        event.logprob,
        top,
        reason,
        event.error,
        event.cached_tokens,
        event.stopped_by,
        event.prompt_logprobs,
    )


def unpacked(fields: tuple[Any, ...]) -> TokenEvent:
    """The event of `packed`."""
    if len(fields) == 3:
        return TokenEvent(fields[1], fields[2])
    _, token_id, text, logprob, top, reason, *rest = fields
    alternatives = tuple(TopLogprob(*one) for one in top)
    return TokenEvent(token_id, text, logprob, alternatives, reason and FinishReason(reason), *rest)


def frame(message: Command | Report) -> bytes:
    """A message as it goes over the wire."""
    body = pickle.dumps(message, protocol=5)
    return LENGTH.pack(len(body)) + body


class Frames:
    """Puts messages together from the bytes of the wire, however they were cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The messages that `data` completes."""
        self._buffer += data
        found = []
        begin = 0
        while (end := self._end(begin)) <= len(self._buffer):
            found.append(pickle.loads(memoryview(self._buffer)[begin + LENGTH.size : end]))
            begin = end
        del self._buffer[:begin]
        return found

    def _end(self, begin: int) -> int:
        """The end of the message that starts at `begin`;
        past all bytes while its length is incomplete."""
        if len(self._buffer) < begin + LENGTH.size:
            return len(self._buffer) + 1
        return begin + LENGTH.size + int(LENGTH.unpack_from(self._buffer, begin)[0])
