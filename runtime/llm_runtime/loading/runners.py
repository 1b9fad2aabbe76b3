"""Chooses the runner of a model: the batched one if it computes the model's own logits,
else the sequential one.

Batching is worth much, so it is tried with every model, but trusted only after the logit check. A
short probe can't show everything. What it can't show is read from the configuration (positions that
change with the length, states instead of keys) or made short enough to show (sliding windows).
"""

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from llm_runtime.compute.logits.sampler import Sampler
from llm_runtime.compute.lora import AdapterSet
from llm_runtime.compute.sequential import SequentialRunner
from llm_runtime.contract import EngineConfig
from llm_runtime.engine.blocks import BLOCK_TOKENS, BlockPool
from llm_runtime.engine.recovery import Runner
from llm_runtime.engine.scheduler import Batch, Span
from llm_runtime.engine.sequence import Sequence
from llm_runtime.errors import ModelUnsupported, OutOfMemory
from llm_runtime.files.fit import CACHE_FRACTION, SERVING_BYTES, activation_bytes
from llm_runtime.loading.adapter import AdapterReader
from llm_runtime.loading.agreement import check_agreement, difference, probe_tokens, tolerance
from llm_runtime.loading.load import free_device_bytes, reference_logits
from llm_runtime.loading.loaded import Loaded
from llm_runtime.machine.memory import available_bytes, blocks_that_fit, limit_bytes
from llm_runtime.request import GenerationRequest, Sampling

log = logging.getLogger(__name__)

PROBE_WINDOW = 5
"""Length of sliding windows during the probe:
less than its first chunk, so that every path crosses a window's edge."""

UNLIMITED_CACHE_BYTES = 4 << 30
"""Default bound of the cache on a CPU without a memory limit,
so that it does not take the whole machine."""

LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}
"""RoPE types whose frequencies change for the whole batch as soon as its longest sequence passes a
limit."""

_RUNNABLE = (ModelUnsupported, NotImplementedError, AttributeError, TypeError, ValueError, KeyError)
"""Errors that mean that an architecture does not fit the batched runner.
Running out of memory is not one."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A checked runner, and the blocks of its cache."""

    pool: BlockPool
    runner: Runner
    kind: Literal["batched", "sequential"]


BuildBatched = Callable[[Loaded, EngineConfig, int], tuple[BlockPool, Any]]
"""Builds the batched runner and its block pool.
Raises ModelUnsupported if its logits are not the model's."""


def choose_runner(
    loaded: Loaded, engine: EngineConfig, length: int, build_batched: BuildBatched
) -> Chosen:
    """The batched runner or, with a warning that says why, the sequential one.

    Raises ModelUnsupported if neither computes the model's logits,
    OutOfMemory if there is no room for one sequence.
    """
    own_attention = loaded.model.config._attn_implementation
    try:
        return _batched(loaded, engine, length, build_batched)
    except _RUNNABLE as error:
        if isinstance(error.__cause__, torch.OutOfMemoryError):
            raise OutOfMemory(
                f"no memory to run the model once: {error.__cause__}; lower engine.maxBatchSize"
            ) from error
        reason = str(error)
    loaded.model.set_attn_implementation(own_attention)
    chosen = _sequential(loaded, engine, length)
    log.warning(
        "the model is served by the slow path: its sequences are computed one after another, "
        "so a step of N sequences takes up to N times as long as in a batch",
        extra={
            "architecture": type(loaded.model).__name__,
            "reason": reason,
        },
    )
    return chosen


def _batched(
    loaded: Loaded, engine: EngineConfig, length: int, build_batched: BuildBatched
) -> Chosen:
    if reason := obstacle(loaded.model.config, length):
        raise ModelUnsupported(f"{type(loaded.model).__name__} {reason}")
    probe = probe_tokens(loaded.codec.vocabulary_size, length)
    windowed = any(window < length for window in _windows(loaded.model.config))
    expected = _short_sighted(loaded, probe) if windowed else []
    pool, runner = build_batched(loaded, engine, length)
    if windowed:
        with windows_of(loaded.model, PROBE_WINDOW):
            check_agreement(runner, loaded, probe, expected)
    return Chosen(pool, runner, "batched")


def obstacle(config: Any, length: int) -> str | None:
    """Why a model of this configuration can't be batched; None if the logit check may decide."""
    text = config.get_text_config(decoder=True)
    layers = {type(layer) for layer in DynamicCache(config=config).layers or ()}
    if others := sorted(
        kind.__name__ for kind in layers - {DynamicLayer, DynamicSlidingWindowLayer}
    ):
        return f"caches states other than plain keys and values ({', '.join(others)})"
    chunk = getattr(text, "attention_chunk_size", None)
    if chunk and chunk < length:
        return f"attends in chunks of {chunk} tokens"
    rope = getattr(text, "rope_parameters", None) or {}
    limit = rope.get("original_max_position_embeddings") or getattr(
        text, "max_position_embeddings", None
    )
    if rope.get("rope_type") in LENGTH_DEPENDENT_ROPE and limit and length > limit:
        return (
            f"changes its positions ({rope['rope_type']}) beyond {limit} tokens; "
            "with a maxModelLength up to that it may be batched"
        )
    return None


@contextmanager
def windows_of(model: Any, window: int) -> Iterator[None]:
    """Set all sliding windows of `model` to `window` tokens during the block."""
    owners = [model.config.get_text_config(decoder=True), *model.modules()]
    before = [
        (owner, owner.sliding_window)
        for owner in owners
        if _is_window(getattr(owner, "sliding_window", None))
    ]
    try:
        for owner, _ in before:
            owner.sliding_window = window
        yield
    finally:
        for owner, size in before:
            owner.sliding_window = size


def _is_window(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _windows(config: Any) -> list[int]:
    return [
        layer.sliding_window
        for layer in DynamicCache(config=config).layers
        if _is_window(_window(layer))
    ]


def _window(layer: Any) -> Any:
    return getattr(layer, "sliding_window", None)


def _short_sighted(loaded: Loaded, probe: list[int]) -> list[float]:
    """The model's own logits with short windows.
    Raises ModelUnsupported if those make no difference.

    In that case the windows are kept elsewhere, and agreement with them would prove nothing.
    """
    far = reference_logits(loaded.model, probe)
    with windows_of(loaded.model, PROBE_WINDOW):
        near = reference_logits(loaded.model, probe)
    if difference(near, far) <= tolerance(loaded):
        raise ModelUnsupported(
            f"{type(loaded.model).__name__} has sliding windows that the start-up check can't reach"
        )
    return near


def _sequential(loaded: Loaded, engine: EngineConfig, length: int) -> Chosen:
    probe = probe_tokens(loaded.codec.vocabulary_size, length)
    _refuse_looking_ahead(loaded, probe)
    expected = reference_logits(loaded.model, probe)
    whole = _reads_whole_prompts(loaded, probe, expected)
    sequence_bytes, takes_chunks = _measure(whole, loaded, probe, length)
    # The scheduler counts in blocks, so each gets a share of the sequence's cache.
    # Nothing is shared between sequences.
    block_bytes = max(sequence_bytes // BlockPool.needed(length), 1)
    pool = room_for(block_bytes, loaded, engine, length, sharing=False)
    if not takes_chunks:
        return Chosen(pool, _with_adapters(whole, engine), "sequential")
    runner = SequentialRunner(loaded.model, Sampler())
    check_agreement(runner, loaded, probe, expected, crowd=True)
    return Chosen(pool, _with_adapters(runner, engine), "sequential")


def _with_adapters(runner: SequentialRunner, engine: EngineConfig) -> SequentialRunner:
    runner.adapters = AdapterSet(runner.model, AdapterReader(engine.max_adapter_rank), tiled=False)
    return runner


def _reads_whole_prompts(
    loaded: Loaded, probe: list[int], expected: list[float]
) -> SequentialRunner:
    """A runner that reads a prompt in one step and passes the logit check,
    with a cache if possible."""
    runners = [SequentialRunner(loaded.model, Sampler(), whole_prompts=True)]
    borders = (0, len(probe) - 1, len(probe))
    check_agreement(runners[0], loaded, probe, expected, borders, crowd=True)
    sequence_bytes, _ = _measure(runners[0], loaded, probe, len(probe))
    if (
        sequence_bytes
        or "past_key_values" not in inspect.signature(loaded.model.forward).parameters
    ):
        return runners[0]
    try:
        runners.append(
            SequentialRunner(loaded.model, Sampler(), whole_prompts=True, brings_cache=True)
        )
        check_agreement(runners[1], loaded, probe, expected, borders, crowd=True)
    except ModelUnsupported as error:
        log.info(
            "the model has no cache: it reads the whole sequence again for each token",
            extra={"reason": str(error)},
        )
        return runners[0]
    return runners[1]


def _refuse_looking_ahead(loaded: Loaded, probe: list[int]) -> None:
    """Refuse a bidirectional model (BERT):
    Transformers would generate with it, but the text would be nonsense.

    In a causal model, later tokens can't change the logits at an earlier position.
    """
    half = len(probe) // 2
    changed = [*probe[:half], *reversed(probe[half:])]
    before, after = (
        reference_logits(loaded.model, tokens, half - 1) for tokens in (probe, changed)
    )
    if difference(before, after) > tolerance(loaded):
        raise ModelUnsupported(
            f"{type(loaded.model).__name__} reads ahead: it is not a causal language model"
        )


def _measure(
    runner: SequentialRunner, loaded: Loaded, probe: list[int], length: int
) -> tuple[int, bool]:
    """Cache bytes of one sequence of `length` tokens,
    and whether the cache accepts a prompt in chunks.

    Measures the cache before and after one more token and extrapolates each layer's growth.
    """
    request = GenerationRequest("probe", tuple(probe), Sampling(max_tokens=1, temperature=0.0))
    sequence = Sequence(request, loaded.codec)
    half = len(probe) // 2
    runner.logits(Batch((Span(sequence, 0, half, samples=True),)))
    before = runner.state_bytes(sequence)
    runner.logits(Batch((Span(sequence, half, 1, samples=True),)))
    growth = [
        max(now - then, 0) for now, then in zip(runner.state_bytes(sequence), before, strict=True)
    ]
    reach = runner.state_lengths(sequence, length)
    # A layer that does not grow keeps a state of fixed size;
    # one with a sliding window stops growing at its end.
    total = sum(
        size + grown * max(end - half, 0)
        for size, grown, end in zip(before, growth, reach, strict=True)
    )
    return total, runner.takes_chunks(sequence)


def room_for(
    block_bytes: int, loaded: Loaded, engine: EngineConfig, length: int, *, sharing: bool
) -> BlockPool:
    """A pool of blocks: enough for all sequences at full length, or as many as memory holds.
    Raises OutOfMemory."""
    one = BlockPool.needed(length)
    serving_bytes = SERVING_BYTES + activation_bytes(
        loaded.codec.vocabulary_size, engine.max_batch_size
    )
    free = _cache_room(loaded.device, engine, one * block_bytes, serving_bytes)
    blocks = blocks_that_fit(engine.max_batch_size * one, one, block_bytes, free)
    log.info(
        "key-value cache",
        extra={
            "tokens": blocks * BLOCK_TOKENS, "mib": blocks * block_bytes >> 20,
            "sequences_of_full_length": blocks // one,
        },
    )  # fmt: skip
    return BlockPool(blocks, sharing)


def _cache_room(device: str, engine: EngineConfig, one_sequence: int, serving_bytes: int) -> int:
    """Bytes that keys and values may take: as configured, or most of the free memory.

    `serving_bytes` is what the processes on a CPU will still take afterwards.
    """
    on_device = free_device_bytes(device)
    left = available_bytes() if on_device is None else on_device
    if engine.kv_cache_bytes is not None:
        return min(engine.kv_cache_bytes, left)
    most = int(CACHE_FRACTION * left)
    if on_device is not None:
        return most
    # With little memory, the usual share would leave too little for serving.
    # `fit` has promised room for one sequence.
    most = min(most, max(left - serving_bytes, one_sequence))
    if limit_bytes() is None:
        # Without a limit, nothing says how much of the machine is for this server.
        return min(most, max(UNLIMITED_CACHE_BYTES, one_sequence))
    return most
