"""An engine without torch: a vocabulary of characters and a runner that follows a script."""

import threading
from collections.abc import Callable
from typing import Any

from llm_runtime.engine.limits import RequestLimits
from llm_runtime.engine.loop import ContinuousEngine
from llm_runtime.engine.scheduler import Batch, Scheduler
from llm_runtime.engine.sequence import Matcher, Sampled, Sequence
from llm_runtime.request import Constraint, GenerationRequest, Sampling, TokenEvent

EOS = 0


class CharacterVocabulary:
    """Token id = code point, 0 ends a text. Ids from 1,000 on are pieces that show only with the id after them."""

    eos_token_ids = frozenset({EOS})

    def detokenizer(self) -> "CharacterText":
        return CharacterText()

    def matcher(self, constraint: Constraint) -> Matcher:
        return Letters(constraint.text)

    def token_text(self, token_id: int) -> str:
        return chr(token_id)


class Letters:
    """A constraint that is met by its own text."""

    def __init__(self, text: str) -> None:
        self.left, self.fault = text, ""

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

    def push(self, token_id: int) -> str:
        self._pieces += chr(token_id)
        return "" if token_id >= 1000 else self.flush()

    def flush(self) -> str:
        text, self._pieces = self._pieces, ""
        return text


def request(
    prompt: str | tuple[int, ...] = "abc", max_tokens: int = 8, name: str = "r", **sampling: Any
) -> GenerationRequest:
    ids = tuple(map(ord, prompt)) if isinstance(prompt, str) else prompt
    return GenerationRequest(name, ids, Sampling(max_tokens=max_tokens, **sampling))


def sequence(prompt: str = "abc", max_tokens: int = 8, name: str = "r", **sampling: Any) -> Sequence:
    return Sequence(request(prompt, max_tokens, name, **sampling), CharacterVocabulary())


class ScriptedRunner:
    """Answers each request with the text its id names, then with the end token; records the batches.

    `gate` makes every step wait until the test lets it through; `fail` may raise in a step.
    """

    def __init__(self, answers: dict[str, str] | None = None, fail: Callable[[Batch], None] | None = None) -> None:
        self.answers, self.fail = answers or {}, fail
        self.batches: list[Batch] = []
        self.gate: threading.Semaphore | None = None

    def forward(self, batch: Batch) -> list[Sampled]:
        if self.gate is not None:
            assert self.gate.acquire(timeout=5)
        self.batches.append(batch)
        if self.fail is not None:
            self.fail(batch)
        return [self._next(span.sequence) for span in batch.spans if span.samples]

    def _next(self, of: Sequence) -> Sampled:
        answer = self.answers.get(of.request.id, "x" * 1000)
        index = of.output_length
        return Sampled(ord(answer[index]) if index < len(answer) else EOS)


def engine(
    runner: ScriptedRunner, slots: int = 4, max_queue_length: int = 8, max_batch_tokens: int = 64, **options: float
) -> ContinuousEngine:
    scheduler = Scheduler(slots, max_batch_tokens, max_queue_length)
    limits = RequestLimits(max_model_length=256, vocabulary_size=2000)
    return ContinuousEngine(scheduler, runner, CharacterVocabulary(), limits, **options).start()


async def collect(running: ContinuousEngine, wanted: GenerationRequest) -> list[TokenEvent]:
    return [event async for event in running.generate(wanted)]


def text_of(events: list[TokenEvent]) -> str:
    return "".join(event.text for event in events)
