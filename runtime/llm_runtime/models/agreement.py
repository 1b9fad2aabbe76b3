"""The comparison at start-up: a runner's logits must be the model's own, whichever way a token takes."""

import itertools
import logging
import math
from typing import Any, Protocol

from llm_runtime.engine.blocks import BlockPool
from llm_runtime.engine.scheduler import Batch, Span
from llm_runtime.engine.sequence import Sequence, Vocabulary
from llm_runtime.errors import ModelUnsupported
from llm_runtime.models.loaded import Loaded
from llm_runtime.request import GenerationRequest, Sampling

log = logging.getLogger(__name__)

PROBE_TOKENS = 24
TOLERANCE = {"float32": 0.01, "bfloat16": 0.1, "float16": 0.05}
"""Root-mean-square difference of logits, relative to theirs, that rounding explains."""


class LogitsRunner(Protocol):
    """A runner that can be asked for logits."""

    def logits(self, batch: Batch) -> Any: ...


def probe_tokens(vocabulary_size: int, length: int = PROBE_TOKENS + 1) -> list[int]:
    """Tokens to compare with: no two alike, and no more than the engine's length has room for."""
    return [(7919 * i + 13) % vocabulary_size for i in range(min(PROBE_TOKENS, length - 1))]


def three_ways(probe: list[int]) -> tuple[int, ...]:
    """Borders that make of a probe a first chunk, a later chunk and a single token."""
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
    """Warm up, and compare with the model's own logits after `probe`; in a `crowd`, beside another sequence.

    Raises ModelUnsupported when they differ by more than rounding: the model does something (a bias, sinks, a second
    kind of position) that the runner does not.
    """
    name = type(loaded.model).__name__
    try:
        actual = probed(runner, loaded.codec, probe, borders or three_ways(probe), crowd)
    except (NotImplementedError, RuntimeError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise ModelUnsupported(f"{name} does not run in {type(runner).__name__}: {error}") from error
    apart = difference(actual, expected)
    log.info("engine agrees with the model", extra={"relative_difference": float(f"{apart:.2g}")})
    if not apart <= TOLERANCE[loaded.dtype]:
        raise ModelUnsupported(
            f"{name} computes its logits in a way of its own: those of {type(runner).__name__} differ by {apart:.1%}"
        )


def probed(
    runner: LogitsRunner, vocabulary: Vocabulary, probe: list[int], borders: tuple[int, ...], crowd: bool = False
) -> list[float]:
    """Logits after the probe, read in spans from border to border."""
    orders = [probe, probe[::-1]] if crowd else [probe]
    # The cache is empty yet: whatever is written into its first blocks now will be written over.
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
    """Root-mean-square difference relative to what was expected."""
    scale = math.sqrt(sum(value * value for value in expected)) or 1.0
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(actual, expected, strict=True))) / scale
