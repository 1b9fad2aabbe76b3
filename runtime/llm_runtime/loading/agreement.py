"""The logit check at start-up: a runner must compute the logits that the model itself computes.

A probe of a few tokens is read as a first chunk, a later chunk and a single token, because prefill,
chunked prefill and decode take different paths through the runner.
"""

import itertools
import logging
import math
from typing import Any, Protocol

from llm_runtime.engine.blocks import BlockPool
from llm_runtime.engine.scheduler import Batch, Span
from llm_runtime.engine.sequence import Sequence, Vocabulary
from llm_runtime.errors import ModelUnsupported
from llm_runtime.loading.loaded import Loaded
from llm_runtime.request import GenerationRequest, Sampling

log = logging.getLogger(__name__)

PROBE_TOKENS = 24
TOLERANCE = {"float32": 0.01, "bfloat16": 0.1, "float16": 0.05}
"""Largest relative root-mean-square difference of logits that rounding explains, by dtype."""


def tolerance(loaded: Loaded) -> float:
    """The largest difference of logits that rounding explains. Activations of 8 bits are rounded like
    bfloat16, which has 8: where two runners differ in the last bit of float32, some of them round to
    the next integer."""
    rounding = TOLERANCE["bfloat16"] if loaded.quantised else 0.0
    return max(TOLERANCE[loaded.dtype], rounding)


class LogitsRunner(Protocol):
    """A runner that can return logits instead of sampled tokens."""

    def logits(self, batch: Batch) -> Any: ...


def probe_tokens(vocabulary_size: int, length: int = PROBE_TOKENS + 1) -> list[int]:
    """Tokens of the probe: all different where the vocabulary allows,
    and fewer than the engine's `length`."""
    return [(7919 * i + 13) % vocabulary_size for i in range(min(PROBE_TOKENS, length - 1))]


def three_ways(probe: list[int]) -> tuple[int, ...]:
    """Borders that split a probe into a first chunk, a later chunk and a single token."""
    return (0, len(probe) // 2, len(probe) - 1, len(probe))


def check_agreement(
    runner: LogitsRunner,
    loaded: Loaded,
    probe: list[int],
    expected: list[float],
    borders: tuple[int, ...] | None = None,
    *,
    crowd: bool = False,
) -> None:
    """Run the probe through `runner` and compare its logits with `expected`, the model's own.

    With `crowd`, a second sequence is in the batch. Raises ModelUnsupported when they differ by
    more than rounding: the model then does something (a bias, sinks, a second kind of position)
    that the runner does not.
    """
    name = type(loaded.model).__name__
    try:
        actual = probed(runner, loaded.codec, probe, borders or three_ways(probe), crowd)
    except (
        NotImplementedError,
        RuntimeError,
        TypeError,
        AttributeError,
        ValueError,
        IndexError,
    ) as error:
        raise ModelUnsupported(
            f"{name} does not run in {type(runner).__name__}: {error}"
        ) from error
    apart = difference(actual, expected)
    log.info("engine agrees with the model", extra={"relative_difference": float(f"{apart:.2g}")})
    if not apart <= tolerance(loaded):
        raise ModelUnsupported(
            f"the logits of {name} and {type(runner).__name__} differ by {apart:.1%}"
        )


def probed(
    runner: LogitsRunner,
    vocabulary: Vocabulary,
    probe: list[int],
    borders: tuple[int, ...],
    crowd: bool = False,
) -> list[float]:
    """Logits after the probe, which is read in spans from border to border."""
    orders = [probe, probe[::-1]] if crowd else [probe]
    # The cache is still empty, so the probe may use its first blocks:
    # requests overwrite them later.
    pool = BlockPool(len(orders) * BlockPool.needed(len(probe)), sharing=False)
    sequences = [_sequence(tokens, vocabulary, pool) for tokens in orders]
    rows: list[list[float]] = []
    for start, end in itertools.pairwise(borders):
        spans = (Span(sequence, start, end - start, samples=True) for sequence in sequences)
        rows = runner.logits(Batch(tuple(spans))).float().tolist()
    return rows[0]


def _sequence(tokens: list[int], vocabulary: Vocabulary, pool: BlockPool) -> Sequence:
    request = GenerationRequest("probe", tuple(tokens), Sampling(max_tokens=1, temperature=0.0))
    sequence = Sequence(request, vocabulary)
    sequence.blocks = pool.take(len(tokens), root=0) or sequence.blocks
    return sequence


def difference(actual: list[float], expected: list[float]) -> float:
    """Root-mean-square difference, relative to `expected`."""
    scale = math.sqrt(sum(value * value for value in expected)) or 1.0
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(actual, expected, strict=True))) / scale
