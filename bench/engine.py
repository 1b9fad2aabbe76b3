"""How fast the engine is beside `generate`, in one process and one run: only the ratios matter.

`python bench/engine.py [--model FOLDER]… [--requests 32] [--rounds 3]` runs the same greedy requests three ways, in
turn: one by one with `model.generate`, as one static left-padded batch, and all at once through the engine. Without
`--model` it takes a random two-layer Llama and SmolLM2-135M-Instruct (made once under .cache/models).
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "runtime"), str(ROOT / "hack"), str(ROOT / "tests")]

from llm_runtime.engine.threads import configure_threads  # noqa: E402

configure_threads()

import torch  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from llm_runtime.contract import EngineConfig, ModelConfig, RuntimeConfig  # noqa: E402
from llm_runtime.models.build import build_engine  # noqa: E402
from llm_runtime.request import GenerationRequest, Sampling  # noqa: E402

Work = list[tuple[tuple[int, ...], int]]
"""Prompt and number of tokens to generate, for each request."""


def workload(requests: int, vocabulary: int, seed: int = 0) -> Work:
    """Random prompts of 16 to 200 tokens, answers of 16 to 128."""
    chance = random.Random(seed)
    prompts = [tuple(chance.randrange(vocabulary) for _ in range(chance.randrange(16, 201))) for _ in range(requests)]
    return [(prompt, chance.randrange(16, 129)) for prompt in prompts]


def one_by_one(model: Any, work: Work) -> None:
    """Nobody waits in a batch, everybody waits in a queue."""
    for prompt, tokens in work:
        _generate(model, torch.tensor([prompt]), torch.ones(1, len(prompt), dtype=torch.long), tokens)


def static_batch(model: Any, work: Work) -> None:
    """Everyone waits for the longest prompt and the longest answer: what batching without an engine means."""
    width, tokens = max(len(prompt) for prompt, _ in work), max(tokens for _, tokens in work)
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt, _ in work])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt, _ in work])
    _generate(model, ids, mask, tokens)


def _generate(model: Any, ids: Any, mask: Any, tokens: int) -> None:
    with torch.inference_mode():
        model.generate(ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)


def through_engine(engine: Any, work: Work) -> None:
    """All at once, as clients of a server would come."""

    async def answer(index: int, prompt: tuple[int, ...], tokens: int) -> None:
        sampling = Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        count = 0
        async for event in engine.generate(GenerationRequest(str(index), prompt, sampling)):
            count += event.token_id is not None
        assert count == tokens

    async def everyone() -> None:
        await asyncio.gather(*(answer(index, *request) for index, request in enumerate(work)))

    asyncio.run(everyone())


def measure(folder: Path, requests: int, rounds: int) -> None:
    """Run every way in turn, `rounds` times, and print the table."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    settings = EngineConfig(device="cpu", max_model_length=512, max_batch_size=requests, max_batch_tokens=256)
    engine, codec = build_engine(RuntimeConfig(model=ModelConfig(name="bench"), engine=settings), folder)
    work = workload(requests, codec.vocabulary_size)
    ways: dict[str, Callable[[], None]] = {
        "generate, one by one": lambda: one_by_one(model, work),
        "generate, static batch": lambda: static_batch(model, work),
        "engine": lambda: through_engine(engine, work),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    engine.close()
    _print(folder, work, seconds)


def _print(folder: Path, work: Work, seconds: dict[str, list[float]]) -> None:
    tokens = sum(count for _, count in work)
    print(f"\n{folder.name}: {len(work)} requests, {sum(len(p) for p, _ in work)} prompt and {tokens} answer tokens")
    print(f"{'way':24} {'tokens/s, median':>17} {'lowest':>8} {'highest':>8} {'engine / way':>13}")
    engine = statistics.median(seconds["engine"])
    for name, each in seconds.items():
        median = statistics.median(each)
        rates = f"{tokens / median:17.0f} {tokens / max(each):8.0f} {tokens / min(each):8.0f}"
        print(f"{name:24} {rates} {median / engine:12.1f}x")


def _default_models() -> list[Path]:
    from devstack import smollm
    from unit.runtime import tiny_model

    cache = ROOT / ".cache" / "models"
    tiny = cache / "tiny-llama"
    if not (tiny / "config.json").is_file():
        tiny_model.make(tiny)
    return [tiny, smollm.make(cache / "smollm2-135m-instruct")]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench/engine.py", description="Engine against generate, greedy, on the CPU.")
    parser.add_argument("--model", type=Path, action="append", help="folder of a model; may be repeated")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, {options.rounds} rounds in turn")
    for folder in options.model or _default_models():
        measure(folder, options.requests, options.rounds)


if __name__ == "__main__":
    main()
