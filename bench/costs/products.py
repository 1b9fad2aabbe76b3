"""How fast this processor multiplies few rows with a weight, by each way that the engine knows.

`python -m bench.costs.products [--rounds 5] [--threads N]` prints a Markdown table: speed as a multiple of
`F.linear` in float32 at the same rows, and at one row the share of a plain read's speed at which the
weights are read. Ways take turns. Each has so many copies of its weight that they come from memory
and not from a cache, as they do in a step of a model; a third-level cache of hundreds of MiB may
hold the small ones all the same. Nothing else should use the machine; `--threads 1` measures CPU
time, which neighbours on the same cores disturb less.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "runtime")]

from llm_runtime.machine.threads import configure_threads  # noqa: E402

configure_threads()

import torch  # noqa: E402

from llm_runtime.compute import int4  # noqa: E402
from llm_runtime.compute.int8 import Int8Linear, quantize_weight  # noqa: E402
from llm_runtime.compute.linears import PackedLinear  # noqa: E402
from llm_runtime.compute.products import BlockLinear  # noqa: E402

SHAPES = ((576, 576), (1536, 576), (576, 1536), (49152, 576), (5632, 2048))
"""(outputs, inputs)"""
ROWS = (1, 8, 32)
COPIES_BYTES = 600 << 20
"""All copies of a weight together; less only where the processor's caches can't hold it either."""
SECONDS = 0.15
"""How long a way is called in a round."""

Way = Callable[[Any], Any]
WAYS: dict[str, Way] = {
    "F.linear float32": lambda linear: linear,
    "oneDNN float32": PackedLinear,
    "blocks float32": lambda linear: BlockLinear(linear, linear.weight),
    "blocks bfloat16, x float32": lambda linear: BlockLinear(linear, linear.weight.bfloat16()),
    "int8pack (bfloat16)": lambda linear: Int8Linear(linear, *quantize_weight(linear.weight)),
    "blocks int8": lambda linear: BlockLinear(linear, *quantize_weight(linear.weight)),
    "blocks int4": lambda linear: BlockLinear(linear, int4.quantize_weight(linear.weight)),
}
REFERENCE = next(iter(WAYS))
BYTES = dict(zip(WAYS, (4, 4, 4, 2, 1, 1, 19 / 32), strict=True))


def read_speed() -> float:
    """Bytes a second of a plain read of memory."""
    numbers = torch.ones(COPIES_BYTES // 4)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - started)
    return float(numbers.nbytes / best)


def measured(shape: tuple[int, int], rounds: int) -> dict[tuple[str, int], float]:
    """Best seconds of a call, by way and rows."""
    outputs, inputs = shape
    copies = max(1, COPIES_BYTES // (4 * outputs * inputs))
    plain = [torch.nn.Linear(inputs, outputs, bias=False) for _ in range(copies)]
    best: dict[tuple[str, int], float] = {}
    made = {name: endless([way(layer) for layer in plain]) for name, way in WAYS.items()}
    for _ in range(rounds):
        for rows in ROWS:
            x = torch.randn(rows, inputs)
            for name, layers in made.items():
                best[name, rows] = min(best.get((name, rows), float("inf")), called(layers, x))
    return best


def called(layers: Iterator[Any], x: Any) -> float:
    """Median seconds of one call."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        started = clock()
        next(layers)(x)
        seconds.append(clock() - started)
    return sorted(seconds)[len(seconds) // 2]


def endless(layers: list[Any]) -> Iterator[Any]:
    """The layers again and again."""
    while True:
        yield from layers


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with torch.inference_mode():
        tables = {}
        reading = 0.0
        for shape in SHAPES:
            reading = max(reading, read_speed())
            tables[shape] = measured(shape, options.rounds)
    print(f"Plain read: {reading / 1e9:.0f} GB/s, {torch.get_num_threads()} threads\n")
    print("| way | " + " | ".join(f"{n}x{k}" for n, k in SHAPES) + " |")
    print("| --- |" + " --- |" * len(SHAPES))
    for name in WAYS:
        cells = []
        for (outputs, inputs), best in tables.items():
            times = [best[REFERENCE, rows] / best[name, rows] for rows in ROWS]
            share = outputs * inputs * BYTES[name] / best[name, 1] / reading
            cells.append(" / ".join(f"{ratio:.2g}" for ratio in times) + f" ({share:.0%})")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
