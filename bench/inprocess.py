"""Without HTTP: the engine itself, and Transformers' own `generate`. No other module knows the engine's interface."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.models import MAX_LENGTH
from bench.servers import MAX_SEQUENCES
from bench.workload import Ask, answer_tokens
from llm_runtime.engine.threads import configure_threads


class Engine:
    """The engine of the runtime, called as its API layer calls it."""

    def __init__(self, folder: Path, dtype: str) -> None:
        configure_threads()
        from llm_runtime.contract import EngineConfig, ModelConfig, RuntimeConfig
        from llm_runtime.models.build import build_engine

        settings = EngineConfig.model_validate(
            {"device": "cpu", "dtype": dtype, "max_model_length": MAX_LENGTH, "max_batch_size": MAX_SEQUENCES}
        )
        self._engine, self._codec = build_engine(
            RuntimeConfig(model=ModelConfig(name="bench"), engine=settings), folder
        )
        self._served = 0

    def tokens_per_second(self, asks: Sequence[Ask], clients: int) -> float:
        """Answer `asks` with `clients` callers, each taking the next one when its last is answered."""
        prompts = iter([(tuple(self._codec.encode(ask.prompt)), ask.max_tokens) for ask in asks])
        started = time.perf_counter()
        asyncio.run(self._callers(prompts, clients))
        return answer_tokens(asks) / (time.perf_counter() - started)

    def close(self) -> None:
        self._engine.close()

    async def _callers(self, prompts: Any, clients: int) -> None:
        async def caller() -> None:
            for prompt, tokens in prompts:
                await self._answer(prompt, tokens)

        await asyncio.gather(*(caller() for _ in range(clients)))

    async def _answer(self, prompt: tuple[int, ...], tokens: int) -> None:
        from llm_runtime.request import GenerationRequest, Sampling

        self._served += 1
        sampling = Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        count = 0
        async for event in self._engine.generate(GenerationRequest(str(self._served), prompt, sampling)):
            count += event.token_id is not None
        if count != tokens:
            raise RuntimeError(f"the engine made {count} tokens instead of {tokens}")


class Generate:
    """`model.generate`: one request after the other, or all as one left-padded batch."""

    def __init__(self, folder: Path, dtype: str) -> None:
        configure_threads()
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.convert_ids_to_tokens(0)

    def one_by_one(self, asks: Sequence[Ask]) -> float:
        """Tokens per second when nobody waits in a batch and everybody waits in a queue."""
        started = time.perf_counter()
        for ask in asks:
            self._generate([ask.prompt], ask.max_tokens)
        return answer_tokens(asks) / (time.perf_counter() - started)

    def static_batch(self, asks: Sequence[Ask]) -> float:
        """Tokens per second, of those asked for, when everyone waits for the longest prompt and the longest answer."""
        started = time.perf_counter()
        self._generate([ask.prompt for ask in asks], max(ask.max_tokens for ask in asks))
        return answer_tokens(asks) / (time.perf_counter() - started)

    def _generate(self, prompts: list[str], tokens: int) -> None:
        import torch

        batch = self._tokenizer(prompts, return_tensors="pt", padding=len(prompts) > 1)
        with torch.inference_mode():
            made = self._model.generate(
                batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=tokens, do_sample=False
            )
        if made.shape[1] - batch["input_ids"].shape[1] != tokens:
            raise RuntimeError(f"generate did not make {tokens} tokens")
