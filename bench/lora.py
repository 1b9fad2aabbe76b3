"""What adapters cost a decode step, beside the base in the same process: only the ratios matter.

`python bench/lora.py [--model FOLDER] [--adapters 8] [--rank 8] [--rows 32] [--rounds 30]
[--threads N]`. The base has oneDNN-packed linears where PyTorch offers them; adapters are random,
on all linear layers. `--threads 1` measures CPU time, which neighbours on the same cores disturb
less.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "runtime"), str(ROOT / "tests")]

from llm_runtime.machine.threads import configure_threads  # noqa: E402

configure_threads()

import torch  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from llm_runtime.compute.cache import CacheShape, KvCache, LayerShape  # noqa: E402
from llm_runtime.compute.fused import fuse  # noqa: E402
from llm_runtime.compute.linears import pack_linears  # noqa: E402
from llm_runtime.compute.logits.sampler import Sampler  # noqa: E402
from llm_runtime.compute.lora import Adapter, AdapterSet, LoraWeights  # noqa: E402
from llm_runtime.compute.runner import TransformersRunner  # noqa: E402
from llm_runtime.engine.blocks import BlockPool  # noqa: E402
from llm_runtime.engine.scheduler import Batch, Span  # noqa: E402
from llm_runtime.engine.sequence import Sequence  # noqa: E402
from llm_runtime.loading.adapter import AdapterReader  # noqa: E402
from llm_runtime.loading.load import cached_shapes  # noqa: E402
from llm_runtime.request import GenerationRequest, Sampling  # noqa: E402
from unit.runtime.engine.fakes import CharacterVocabulary  # noqa: E402

MODEL = Path.home() / ".cache/llm-operator/models/smollm2-135m-instruct"
PROMPT = 128


def random_adapter(adapters: AdapterSet, rank: int) -> Adapter:
    """On every linear, small enough to leave numbers finite."""
    return Adapter(
        rank,
        {
            name: LoraWeights(
                torch.randn(rank, shape.inputs) * 0.01, torch.randn(shape.outputs, rank) * 0.01
            )
            for name, shape in adapters.shapes.items()
        },
    )


def decoding(rows: int) -> Batch:
    """A decode step of `rows` sequences with PROMPT tokens each."""
    sampling = Sampling(max_tokens=4, temperature=0.0)
    requests = [
        GenerationRequest(str(row), tuple(range(row, row + PROMPT)), sampling)
        for row in range(rows)
    ]
    sequences = [Sequence(request, CharacterVocabulary()) for request in requests]
    pool = BlockPool(rows * BlockPool.needed(PROMPT))
    for sequence in sequences:
        sequence.blocks = pool.take(PROMPT, pool.new_root()) or sequence.blocks
    return Batch(tuple(Span(sequence, PROMPT - 1, 1, samples=True) for sequence in sequences))


def build(folder: Path, rows: int) -> TransformersRunner:
    """The model with packed linears, without adapters."""
    model = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        .eval()
        .requires_grad_(False)
    )
    pack_linears(model)
    fuse(model)
    shape = CacheShape(tuple(LayerShape(*layer) for layer in cached_shapes(model)), torch.float32)
    return TransformersRunner(
        model,
        KvCache(shape, rows * BlockPool.needed(PROMPT), "cpu"),
        Sampler(),
        AdapterSet(model, AdapterReader(1024)),
    )


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    for name, default in (
        ("adapters", 8),
        ("rank", 8),
        ("rows", 32),
        ("rounds", 30),
        ("threads", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    runner = build(options.model, options.rows)
    for index in range(options.adapters):
        runner.adapters.install(f"a{index}", random_adapter(runner.adapters, options.rank))
    mixes: dict[str, Callable[[int], str]] = {
        "base": lambda row: "",
        "one adapter": lambda row: "a0",
        "one, half base": lambda row: "a0" if row % 2 else "",
        f"{options.adapters} adapters": lambda row: f"a{row % options.adapters}",
    }
    print_table(measure(runner, mixes, options.rows, options.rounds, clock))


def measure(
    runner: TransformersRunner,
    mixes: dict[str, Callable[[int], str]],
    rows: int,
    rounds: int,
    clock: Any,
) -> dict[str, list[float]]:
    """Seconds of each step, interleaved, after a warm-up round."""
    batch = decoding(rows)
    seconds: dict[str, list[float]] = {name: [] for name in mixes}
    for round_ in range(rounds + 1):
        for name, adapter_of in mixes.items():
            for row, span in enumerate(batch.spans):
                span.sequence.adapter = adapter_of(row)
            started = clock()
            runner.forward(batch)
            if round_:
                seconds[name].append(clock() - started)
    return seconds


def print_table(seconds: dict[str, list[float]]) -> None:
    """Each mix, and its speed as a share of the first one's."""
    base = next(iter(seconds.values()))
    for name, times in seconds.items():
        least = min(times)
        median = statistics.median(times)
        print(
            f"{name:15} min {least * 1e3:6.1f} ms  median {median * 1e3:6.1f} ms   "
            f"base/this: min {min(base) / least:.2f}  median {statistics.median(base) / median:.2f}"
        )


if __name__ == "__main__":
    main()
