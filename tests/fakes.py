"""Stand-ins at the runtime's seams: an engine that says what it was told to say,
and words for tokens."""

import asyncio
import threading
import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llm_runtime import errors
from llm_runtime.contract import FatalReport
from llm_runtime.request import (
    Constraint,
    EmbeddingModel,
    Ending,
    EngineStats,
    FinishReason,
    GenerationRequest,
    Message,
    PromptLogprobs,
    TokenEvent,
    TopLogprob,
)


def token_id(text: str) -> int:
    """A stable id below the fake vocabulary's size."""
    return zlib.crc32(text.encode()) % FakeCodec.vocabulary_size


class FakeCodec:
    """Words as tokens."""

    vocabulary_size = 50_000
    eos_token_ids = frozenset({0})

    def __init__(self, chat_template: str = "") -> None:
        self.chat_template = self.tool_template = chat_template
        self.sampling_defaults: dict[str, float] = {}
        self.control_ids: dict[str, int] = {}
        self.tools: list[Sequence[dict[str, Any]]] = []
        self.words: dict[int, str] = {}
        self.chats: list[list[Message]] = []
        self.options: list[dict[str, Any]] = []
        self.endings: list[Ending] = []
        self.special_tokens = {"eos_token": "<end>"}
        self.constraints: list[Constraint] = []
        self.prepared_by: list[str] = []
        """Names of threads."""

    def prepare(self) -> None:
        self.prepared_by.append(threading.current_thread().name)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        for word in text.split():
            self.words[token_id(word)] = word
        return [token_id(word) for word in text.split()]

    def encode_chat(
        self,
        messages: list[Message],
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
        ending: Ending = "answer",
    ) -> list[int]:
        self.chats.append(messages)
        self.endings.append(ending)
        self.options.append(dict(options or {}))
        self.tools.append(tools)
        return self.encode(
            " ".join(f"{message['role']}: {message['content']}" for message in messages)
        )

    def check_constraint(self, constraint: Constraint) -> None:
        self.constraints.append(constraint)
        if "impossible" in constraint.text:
            raise errors.InvalidRequest("the constraint can't be used: nothing matches it")

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        return " ".join(self.token_text(number) for number in token_ids)

    def token_name(self, token_id: int) -> str:
        return self.token_text(token_id)

    def token_text(self, token_id: int) -> str:
        return self.words.get(token_id, f"<{token_id}>")

    def detokenizer(self, prompt: Sequence[int] = (), shown: Sequence[int] = ()) -> "FakeText":
        return FakeText(self)


class FakeText:
    """Its words."""

    def __init__(self, codec: FakeCodec) -> None:
        self._codec = codec

    def bytes_of(self, token_id: int) -> bytes:
        return self._codec.token_text(token_id).encode()

    def push(self, token_id: int) -> str:
        return self._codec.token_text(token_id)

    def flush(self) -> str:
        return ""


@dataclass
class ScriptedEngine:
    """Answers every request with `script`, one text for each token, `token_seconds` apart.
    Honours max_tokens, stop."""

    script: Sequence[str] = ("Hello", " there", "!")
    token_seconds: float = 0.0
    max_model_length: int = 64
    max_running: int = 1024
    adapters: tuple[str, ...] = ()
    embedding: EmbeddingModel | None = None
    """With it, the answer to every request is one vector: `script`'s first text."""
    cached_tokens: int = 0
    """Of every prompt, so many are said to be found in the cache."""
    ending: FinishReason | None = None
    """How to end after the script instead of by `stop`: cancelled or error."""
    codec: FakeCodec = field(default_factory=FakeCodec)
    alive: bool = True
    quiet_seconds: float = 0.0
    gpu_memory_bytes: int | None = None
    requests: list[GenerationRequest] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    running: set["ScriptedStream"] = field(default_factory=set)
    adapter_seconds: float = 0.0
    """How long it takes to load an adapter; a folder with `bad` in its name is of another base."""
    changes: list[str] = field(default_factory=list)
    """What was loaded and dropped."""
    draining: bool = False
    closed: bool = False

    def generate(self, request: GenerationRequest) -> "ScriptedStream":
        if self.draining:
            raise errors.ServiceUnavailable("draining")
        if len(self.running) >= self.max_running:
            raise errors.QueueFull("As many requests wait as may wait.")
        room = self.max_model_length - len(request.prompt_token_ids)
        if request.sampling.max_tokens > room and not request.embeds:
            message = "prompt and max_tokens are too long"
            raise errors.InvalidRequest(message, param="max_tokens", code="context_length_exceeded")
        self.requests.append(request)
        stream = ScriptedStream(self, request)
        self.running.add(stream)
        return stream

    def stats(self) -> EngineStats:
        return EngineStats(
            len(self.running),
            0,
            0.25,
            7,
            self.alive,
            gpu_memory_bytes=self.gpu_memory_bytes,
            quiet_seconds=self.quiet_seconds,
        )

    async def drain(self, timeout_seconds: float) -> None:
        self.draining = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        while self.running and loop.time() < deadline:  # noqa: ASYNC110 (a fake)
            await asyncio.sleep(0.01)
        for stream in list(self.running):
            stream.cut.set()

    def close(self) -> None:
        self.closed = True

    async def load_adapter(self, name: str, folder: Path) -> None:
        await asyncio.sleep(self.adapter_seconds)
        if "bad" in folder.name:
            raise errors.EngineFailed(
                FatalReport(reason="ModelUnsupported", message=f"{folder.name} is another base's")
            )
        self.changes.append(f"load {name} {folder.name}")
        self.adapters = (*(known for known in self.adapters if known != name), name)

    async def drop_adapter(self, name: str) -> None:
        self.changes.append(f"drop {name}")
        self.adapters = tuple(known for known in self.adapters if known != name)


class ScriptedStream:
    """The events of one request."""

    def __init__(self, engine: ScriptedEngine, request: GenerationRequest) -> None:
        self._engine = engine
        self._request = request
        self._events = self._plan()
        self.position = 0
        self.cut = asyncio.Event()

    def __aiter__(self) -> "ScriptedStream":
        return self

    async def __anext__(self) -> TokenEvent:
        if self.position >= len(self._events):
            raise StopAsyncIteration
        event = self._events[self.position]
        self.position += 1
        if await self._is_cut():
            event = TokenEvent(None, "", finish_reason=FinishReason.CANCELLED)
        if event.finish_reason:
            self.position = len(self._events)
            self._engine.running.discard(self)
        return event

    async def take(self) -> list[TokenEvent]:
        return [event] if (event := await anext(self, None)) else []

    async def aclose(self) -> None:
        if self in self._engine.running:
            self._engine.running.discard(self)
            self._engine.cancelled.append(self._request.id)

    async def _is_cut(self) -> bool:
        try:
            await asyncio.wait_for(self.cut.wait(), self._engine.token_seconds or 0.000_1)
        except TimeoutError:
            return False
        return True

    def _plan(self) -> list[TokenEvent]:
        if self._request.embeds:
            return [TokenEvent(None, self._engine.script[0], finish_reason=FinishReason.STOP)]
        first, *others = self._answer()
        return [replace(first, prompt_logprobs=self._prompt_logprobs()), *others]

    def _prompt_logprobs(self) -> PromptLogprobs | None:
        """Of each token -0.25, and of second rank; of its rivals -1, -2 and so on."""
        top = self._request.sampling.prompt_logprobs
        if top is None:
            return None
        ids = self._request.prompt_token_ids
        count = len(ids) - 1
        rivals = (array("I", range(top)), array("f", (-1.0 - rank for rank in range(top))))
        return PromptLogprobs(
            top,
            array("I", ids),
            array("f", [-0.25]) * count,
            array("I", [2]) * count,
            *(each * count for each in rivals),
        )

    def _answer(self) -> list[TokenEvent]:
        sampling = self._request.sampling
        if sampling.max_tokens == 0:
            return [TokenEvent(None, "", finish_reason=FinishReason.LENGTH)]
        text = ""
        events = list[TokenEvent]()
        for number, word in enumerate(self._engine.script):
            text += word
            found = [(text.index(stop), stop) for stop in sampling.stop if stop in text]
            end, stopped_by = min(found, default=(None, ""))
            shown = text[len(text) - len(word) : end]
            last = bool(found) or number == len(self._engine.script) - 1
            reason = FinishReason.STOP if last else None
            if not last and number + 1 == sampling.max_tokens:
                reason = FinishReason.LENGTH
            cached = self._engine.cached_tokens if number == 0 else 0
            event = self._event(
                word, shown, reason if self._engine.ending is None else None, cached
            )
            events.append(replace(event, stopped_by=stopped_by))
            if reason:
                break
        if self._engine.ending:
            events.append(
                TokenEvent(
                    None, "", finish_reason=self._engine.ending, error="scripted: /secret/path"
                )
            )
        return events

    def _event(self, word: str, shown: str, reason: FinishReason | None, cached: int) -> TokenEvent:
        number = token_id(word)
        wanted = self._request.sampling.logprobs
        self._engine.codec.words[number] = word
        top = tuple(TopLogprob(rank, f"t{rank}", -1.0 - rank) for rank in range(wanted or 0))
        return TokenEvent(
            number, shown, None if wanted is None else -0.5, top, reason, cached_tokens=cached
        )
