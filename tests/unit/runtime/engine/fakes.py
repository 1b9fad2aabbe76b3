"""An engine without torch: a vocabulary of characters and a runner that follows a script."""

import threading
from array import array
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Several
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llm_runtime.engine.adapters import AdapterTable
from llm_runtime.engine.blocks import BlockPool
from llm_runtime.engine.budget import PrefillBudget
from llm_runtime.engine.client import EngineClient
from llm_runtime.engine.limits import RequestLimits
from llm_runtime.engine.local import start_local
from llm_runtime.engine.model import Model
from llm_runtime.engine.scheduler import Batch, Scheduler, Span
from llm_runtime.engine.sequence import Matcher, Sampled, Sequence
from llm_runtime.errors import ModelNotFound
from llm_runtime.request import (
    Constraint,
    Ending,
    GenerationRequest,
    Message,
    PromptLogprobs,
    Sampling,
    TokenEvent,
)
from waiting import PATIENCE_SECONDS

EOS = 0


class CharacterVocabulary:
    """Token id = code point, 0 ends a text.
    Ids from 1,000 on are pieces that show only with the id after them."""

    vocabulary_size = 2000
    eos_token_ids = frozenset({EOS})
    chat_template = tool_template = ""
    sampling_defaults: Mapping[str, float] = MappingProxyType({})
    control_ids: Mapping[str, int] = MappingProxyType({})
    special_tokens: Mapping[str, str] = MappingProxyType({})

    def prepare(self) -> None:
        """Nothing to make."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return list(map(ord, text))

    def encode_chat(
        self,
        messages: list[Message],
        tools: Several[dict[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
        ending: Ending = "answer",
    ) -> list[int]:
        return self.encode(" ".join(message["content"] for message in messages))

    def decode(self, token_ids: Several[int], *, special: bool = False) -> str:
        return "".join(map(chr, token_ids))

    def token_name(self, token_id: int) -> str:
        return chr(token_id)

    def detokenizer(self, prompt: Several[int] = (), shown: Several[int] = ()) -> "CharacterText":
        return CharacterText()

    def check_constraint(self, constraint: Constraint) -> None:
        """Every text is one."""

    def matcher(self, constraint: Constraint) -> Matcher:
        return Letters(constraint.text)

    def token_text(self, token_id: int) -> str:
        return chr(token_id)


class Letters:
    """A constraint that is met by its own text."""

    def __init__(self, text: str) -> None:
        self.left = text
        self.fault = ""

    @property
    def complete(self) -> bool:
        return not self.left

    def mask(self) -> bytes:
        return (1 << (ord(self.left[0]) if self.left else EOS)).to_bytes(250, "little")

    def advance(self, token_id: int) -> None:
        self.left = self.left[1:]


class CharacterText:
    def __init__(self) -> None:
        self._pieces = ""

    def bytes_of(self, token_id: int) -> bytes:
        return chr(token_id).encode()

    def push(self, token_id: int) -> str:
        self._pieces += chr(token_id)
        return "" if token_id >= 1000 else self.flush()

    def flush(self) -> str:
        text = self._pieces
        self._pieces = ""
        return text


def request(
    prompt: str | tuple[int, ...] = "abc", max_tokens: int = 8, name: str = "r", **options: Any
) -> GenerationRequest:
    """`options`: of the request itself or of its sampling."""
    ids = tuple(map(ord, prompt)) if isinstance(prompt, str) else prompt
    own = {key: options.pop(key) for key in ("adapter", "priority", "tenant") if key in options}
    return GenerationRequest(name, ids, Sampling(max_tokens=max_tokens, **options), **own)


def sequence(
    prompt: str = "abc", max_tokens: int = 8, name: str = "r", **sampling: Any
) -> Sequence:
    return Sequence(request(prompt, max_tokens, name, **sampling), CharacterVocabulary())


class ScriptedRunner:
    """Answers each request with the text its id names, then with the end token;
    records the batches.

    `gate` makes every step wait until the test lets it through; `fail` may raise in a step.
    """

    def __init__(
        self, answers: dict[str, str] | None = None, fail: Callable[[Batch], None] | None = None
    ) -> None:
        self.answers = answers or {}
        self.fail = fail
        self.batches: list[Batch] = []
        self.adapters: dict[str, Path] = {}
        self.gate: threading.Semaphore | None = None

    def read_adapter(self, folder: Path) -> Path:
        if not folder.is_dir():
            raise ModelNotFound(f"{folder} is not there")
        return folder

    def install_adapter(self, key: str, adapter: Path) -> None:
        self.adapters[key] = adapter

    def drop_adapter(self, key: str) -> None:
        del self.adapters[key]

    def forward(self, batch: Batch) -> list[Sampled]:
        if self.gate is not None:
            assert self.gate.acquire(timeout=PATIENCE_SECONDS)
        self.batches.append(batch)
        if self.fail is not None:
            self.fail(batch)
        return [self._answer(span) for span in batch.spans if span.answers]

    def _answer(self, span: Span) -> Sampled:
        """Of a prompt's tokens, the log probabilities are their negative places."""
        found = self._next(span.sequence) if span.samples else Sampled(None)
        if not span.scored:
            return found
        places = range(span.start + 1, span.start + 1 + len(span.scored))
        values = array("f", (-float(place) for place in places))
        ranks = array("I", [1] * len(values))
        return replace(found, prompt=PromptLogprobs(0, array("I"), values, ranks))

    def _next(self, of: Sequence) -> Sampled:
        answer = self.answers.get(of.request.id, "x" * 1000)
        index = of.output_length
        return Sampled(ord(answer[index]) if index < len(answer) else EOS)


def scheduler(
    places: int = 4, tokens: int = 64, queue: int = 8, beside: int | None = None, blocks: int = 1000
) -> Scheduler:
    """`beside`: prompt tokens that may share a step with running streams."""
    budget = None if beside is None else PrefillBudget(beside, goal_seconds=1e9)
    if budget:
        budget.observe(0, 16, 1.0)
    return Scheduler(BlockPool(blocks), places, tokens, queue, budget)


def model(
    runner: ScriptedRunner,
    slots: int = 4,
    max_queue_length: int = 8,
    max_batch_tokens: int = 64,
    **fields: Any,
) -> Model:
    limits = RequestLimits(max_model_length=256, vocabulary_size=2000)
    fields.setdefault("adapters", AdapterTable(4))
    return Model(
        scheduler(slots, max_batch_tokens, max_queue_length),
        runner,
        CharacterVocabulary(),
        limits,
        **fields,
    )


def engine(
    runner: ScriptedRunner,
    slots: int = 4,
    max_queue_length: int = 8,
    max_batch_tokens: int = 64,
    **options: Any,
) -> EngineClient:
    return start_local(model(runner, slots, max_queue_length, max_batch_tokens), **options)


async def collect(running: EngineClient, wanted: GenerationRequest) -> list[TokenEvent]:
    return [event async for event in running.generate(wanted)]


def text_of(events: list[TokenEvent]) -> str:
    return "".join(event.text for event in events)
