"""The real runtime with a mock model, which answers at once:
`python -m bench.mock serve --config FILE …`.

What remains is what the gateway costs: HTTP, keys, limits, the cache, the usage log. With
MOCK_TOKEN_SECONDS each token takes that long: something to cut, and to wait for.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llm_runtime import __main__ as runtime
from llm_runtime.api.serving import WarmModel
from llm_runtime.assembly import ModelSource
from llm_runtime.contract import RuntimeConfig
from llm_runtime.engine.process import Spawned
from llm_runtime.request import (
    Constraint,
    Detokenizer,
    EmbeddingModel,
    Ending,
    EngineStats,
    FinishReason,
    GenerationRequest,
    Message,
    TokenEvent,
)

TOKENS = 16
TOKEN_SECONDS = float(os.environ.get("MOCK_TOKEN_SECONDS", "0"))
ANSWER = [TokenEvent(number, f"word{number} ") for number in range(TOKENS - 1)]
ANSWER.append(TokenEvent(TOKENS, "end.", finish_reason=FinishReason.STOP))


class MockStream:
    """The whole answer in one `take`, or token by token where they take time."""

    def __init__(self) -> None:
        self._left = list(ANSWER)

    def __aiter__(self) -> "MockStream":
        return self

    async def __anext__(self) -> TokenEvent:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop(0)

    async def take(self) -> list[TokenEvent]:
        if TOKEN_SECONDS and self._left:
            await asyncio.sleep(TOKEN_SECONDS)
            return [self._left.pop(0)]
        events = self._left
        self._left = []
        return events

    async def aclose(self) -> None:
        """Nothing to free."""


class MockEngine:
    """Every request gets the same answer, at once."""

    max_model_length = 4096
    adapters: tuple[str, ...] = ()
    embedding: EmbeddingModel | None = None

    def generate(self, request: GenerationRequest) -> MockStream:
        return MockStream()

    def stats(self) -> EngineStats:
        return EngineStats(0, 0, 0.0, 0, alive=True)

    async def drain(self, timeout_seconds: float) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing to free."""

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Answers as before."""
        self.adapters = (*self.adapters, name)

    async def drop_adapter(self, name: str) -> None:
        """Answers as before."""
        self.adapters = tuple(known for known in self.adapters if known != name)


class MockCodec:
    """A token for each word."""

    vocabulary_size = 50_000
    eos_token_ids = frozenset({0})
    chat_template = tool_template = ""
    sampling_defaults: Mapping[str, float] = MappingProxyType({})
    control_ids: Mapping[str, int] = MappingProxyType({})
    special_tokens: Mapping[str, str] = MappingProxyType({})

    def prepare(self) -> None:
        """Nothing to make."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return [len(word) for word in text.split()]

    def encode_chat(
        self,
        messages: list[Message],
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
        ending: Ending = "answer",
    ) -> list[int]:
        return self.encode(" ".join([message["content"] for message in messages]))

    def check_constraint(self, constraint: Constraint) -> None:
        """Takes any."""

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        return " ".join(map(str, token_ids))

    def token_name(self, token_id: int) -> str:
        return str(token_id)

    def token_text(self, token_id: int) -> str:
        return str(token_id)

    def detokenizer(self, prompt: Sequence[int] = (), shown: Sequence[int] = ()) -> Detokenizer:
        raise NotImplementedError("nobody asks the mock for log probabilities")


def without(
    models: Path, fetched: Path | None = None, spawned: Spawned | None = None
) -> ModelSource:
    """A model source with the mock, in place of the runtime's functions that load a model.
    It has no adapters."""

    async def find(config: RuntimeConfig) -> Path:
        return models

    async def start(config: RuntimeConfig, found: Path) -> WarmModel:
        return WarmModel(MockEngine(), MockCodec())

    return ModelSource(find, lambda config, *_: find(config), start)


if __name__ == "__main__":
    runtime._models = without
    runtime._spawned = lambda config: None
    runtime.main()
