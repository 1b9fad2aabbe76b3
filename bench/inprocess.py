"""Without HTTP: the engine itself, and Transformers' own `generate`.
No other module knows the engine's interface."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.models import MAX_LENGTH
from bench.servers import MAX_SEQUENCES
from bench.workload import Ask, answer_tokens
from llm_runtime.machine.threads import configure_threads


class Engine:
    """Scheduler and runner, stepped by hand:
    what the engine's thread does, without a thread, a process or HTTP."""

    def __init__(self, folder: Path, dtype: str) -> None:
        configure_threads()
        from llm_runtime.contract import EngineConfig, ModelConfig, RuntimeConfig
        from llm_runtime.loading.build import build_model

        settings = EngineConfig.model_validate(
            {
                "device": "cpu",
                "dtype": dtype,
                "max_model_length": MAX_LENGTH,
                "max_batch_size": MAX_SEQUENCES,
            }
        )
        self._model = build_model(
            RuntimeConfig(model=ModelConfig(name="bench"), engine=settings), folder
        )

    def tokens_per_second(self, asks: Sequence[Ask], clients: int) -> float:
        """Answer `asks`, `clients` at a time: each answer starts the next request."""
        waiting = [self._sequence(ask) for ask in reversed(asks)]
        started = time.perf_counter()
        tokens = 0
        for _ in range(min(clients, len(waiting))):
            self._model.scheduler.add(waiting.pop())
        while deliveries := self._step():
            tokens += sum(delivery.event.token_id is not None for delivery in deliveries)
            for _ in range(
                min(sum(d.event.finish_reason is not None for d in deliveries), len(waiting))
            ):
                self._model.scheduler.add(waiting.pop())
        if tokens != answer_tokens(asks):
            raise RuntimeError(f"the engine made {tokens} tokens instead of {answer_tokens(asks)}")
        return tokens / (time.perf_counter() - started)

    def _step(self) -> list[Any]:
        """Events of the next step that generates a token; empty when all requests are done."""
        scheduler = self._model.scheduler
        deliveries: list[Any] = []
        while not deliveries and (batch := scheduler.next_batch()) is not None:
            started = time.perf_counter()
            sampled = self._model.runner.forward(batch)
            scheduler.observe(batch, time.perf_counter() - started)
            deliveries = scheduler.advance(batch, sampled)
        return deliveries

    def _sequence(self, ask: Ask) -> Any:
        from llm_runtime.engine.sequence import Sequence as Running
        from llm_runtime.request import GenerationRequest, Sampling

        prompt = tuple(self._model.codec.encode(ask.prompt))
        sampling = Sampling(max_tokens=ask.max_tokens, temperature=0.0, ignore_eos=True)
        return Running(GenerationRequest("bench", prompt, sampling), self._model.codec)


class Generate:
    """`model.generate`: one request after the other, or all as one left-padded batch."""

    def __init__(self, folder: Path, dtype: str) -> None:
        configure_threads()
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype)
        ).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._tokenizer.pad_token = (
            self._tokenizer.pad_token or self._tokenizer.convert_ids_to_tokens(0)
        )

    def one_by_one(self, asks: Sequence[Ask]) -> float:
        """Tokens per second when nobody waits in a batch and everybody waits in a queue."""
        started = time.perf_counter()
        for ask in asks:
            self._generate([ask.prompt], ask.max_tokens)
        return answer_tokens(asks) / (time.perf_counter() - started)

    def static_batch(self, asks: Sequence[Ask]) -> float:
        """Tokens per second, of those asked for,
        when everyone waits for the longest prompt and the longest answer."""
        started = time.perf_counter()
        self._generate([ask.prompt for ask in asks], max(ask.max_tokens for ask in asks))
        return answer_tokens(asks) / (time.perf_counter() - started)

    def _generate(self, prompts: list[str], tokens: int) -> None:
        import torch

        batch = self._tokenizer(prompts, return_tensors="pt", padding=len(prompts) > 1)
        with torch.inference_mode():
            made = self._model.generate(
                batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=tokens,
                do_sample=False,
            )
        if made.shape[1] - batch["input_ids"].shape[1] != tokens:
            raise RuntimeError(f"generate did not make {tokens} tokens")
