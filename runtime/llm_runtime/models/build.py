"""From a configuration and a verified folder to a model that has answered once. Slow: call it in a thread."""

import itertools
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

from llm_runtime.contract import EngineConfig, RuntimeConfig
from llm_runtime.engine.adapters import AdapterTable
from llm_runtime.engine.blocks import BLOCK_TOKENS, BlockPool
from llm_runtime.engine.budget import PrefillBudget
from llm_runtime.engine.client import EngineClient
from llm_runtime.engine.limits import RequestLimits
from llm_runtime.engine.local import start_local
from llm_runtime.engine.loop import Model
from llm_runtime.engine.memory import available_bytes, blocks_that_fit
from llm_runtime.engine.recovery import Runner
from llm_runtime.engine.scheduler import Batch, Scheduler, Span
from llm_runtime.engine.sequence import Sequence
from llm_runtime.errors import ConfigInvalid, ModelUnsupported
from llm_runtime.models.codec import Codec
from llm_runtime.request import GenerationRequest, Sampling

if TYPE_CHECKING:
    from llm_runtime.engine.cache import CacheShape
    from llm_runtime.engine.runner import TransformersRunner
    from llm_runtime.models.load import Loaded

log = logging.getLogger(__name__)

KV_FRACTION = 0.8
"""Share of the memory that is free after loading which keys and values may take; activations need the rest."""

CPU_STEP_TOKENS = 512
"""Tokens of a step on a CPU, at most: more rows at once are no faster, and nobody can join or leave during a step."""

PROBE_TOKENS = 24
TOLERANCE = {"float32": 0.01, "bfloat16": 0.1, "float16": 0.05}
"""Root-mean-square difference of logits, relative to theirs, that rounding explains."""


def build_engine(config: RuntimeConfig, model_folder: Path) -> tuple[EngineClient, Codec]:
    """An engine on a thread of this process, as benchmarks and tests want it. Raises as `build_model` does."""
    engine = start_local(build_model(config, model_folder), build_model)
    codec = engine.codec
    assert isinstance(codec, Codec)
    return engine, codec


def build_model(config: RuntimeConfig, model_folder: Path) -> Model:
    """Load and check. Raises errors.Fatal subclasses, whose message says what to change."""
    # Importing torch and Transformers takes seconds: who only names this function need not wait for it.
    from llm_runtime.models.load import free_memory, load, used_device_bytes

    loaded = load(model_folder, config.engine, config.model)
    length = _model_length(config.engine, loaded)
    pool, runner = _runner(loaded, config.engine, length)
    return Model(
        scheduler=_scheduler(config.engine, pool, loaded.device),
        runner=runner,
        codec=loaded.codec,
        limits=RequestLimits(length, loaded.codec.vocabulary_size),
        device=loaded.device,
        adapters=_adapters(config, runner),
        memory_bytes=None if loaded.device == "cpu" else used_device_bytes,
        free=free_memory,
    )


def _adapters(config: RuntimeConfig, runner: Runner) -> AdapterTable:
    most = config.engine.max_adapters
    if len(config.adapters) > most:
        raise ConfigInvalid(
            f"{len(config.adapters)} adapters are configured; engine.maxAdapters allows {most}: raise it"
        )
    table = AdapterTable(most)
    for adapter in config.adapters:
        runner.install_adapter(table.load(adapter.name).key, runner.read_adapter(Path(adapter.path)))
        log.info("adapter loaded", extra={"adapter": adapter.name, "folder": adapter.path})
    return table


def _model_length(engine: EngineConfig, loaded: "Loaded") -> int:
    length = min(engine.max_model_length, loaded.max_positions or engine.max_model_length)
    if length < engine.max_model_length:
        log.warning(
            "maxModelLength is more than the model was made for",
            extra={"configured_tokens": engine.max_model_length, "used_tokens": length},
        )
    return length


def _scheduler(engine: EngineConfig, pool: BlockPool, device: str) -> Scheduler:
    tokens = min(engine.max_batch_tokens, CPU_STEP_TOKENS) if device == "cpu" else engine.max_batch_tokens
    tokens = max(tokens, engine.max_batch_size)
    budget = PrefillBudget(tokens, engine.inter_token_goal_seconds)
    return Scheduler(pool, engine.max_batch_size, tokens, engine.max_queue_length, budget)


def _runner(loaded: "Loaded", engine: EngineConfig, length: int) -> "tuple[BlockPool, TransformersRunner]":
    from llm_runtime.engine.cache import KvCache
    from llm_runtime.engine.fused import fuse
    from llm_runtime.engine.linears import pack_linears
    from llm_runtime.engine.lora import AdapterSet
    from llm_runtime.engine.runner import TransformersRunner
    from llm_runtime.engine.sampler import Sampler
    from llm_runtime.models.adapter import AdapterReader
    from llm_runtime.models.load import reference_logits

    probe = [(7919 * i + 13) % loaded.codec.vocabulary_size for i in range(min(PROBE_TOKENS, length - 1))]
    expected = reference_logits(loaded.model, probe)
    if loaded.device == "cpu":
        pack_linears(loaded.model)
        fuse(loaded.model)
    shape = _cache_shape(loaded)
    pool = BlockPool(_blocks(shape, engine, loaded, length), engine.prefix_caching)
    # Before the runner: it runs the model once with the attention it came with.
    adapters = AdapterSet(loaded.model, AdapterReader(engine.max_adapter_rank))
    runner = TransformersRunner(loaded.model, KvCache(shape, pool.size, loaded.device), Sampler(), adapters)
    check_agreement(runner, pool, loaded, probe, expected)
    return pool, runner


def _cache_shape(loaded: "Loaded") -> "CacheShape":
    from llm_runtime.engine.cache import CacheShape

    text = loaded.model.config.get_text_config()
    heads = text.num_attention_heads
    return CacheShape(
        layers=text.num_hidden_layers,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // heads,
        dtype=loaded.model.dtype,
    )


def _blocks(shape: "CacheShape", engine: EngineConfig, loaded: "Loaded", length: int) -> int:
    from llm_runtime.models.load import free_device_bytes

    on_device = free_device_bytes(loaded.device)
    left = available_bytes() if on_device is None else on_device
    free = int(KV_FRACTION * left)
    if engine.kv_cache_bytes is not None:
        free = min(engine.kv_cache_bytes, left)
    one = BlockPool.needed(length)
    blocks = blocks_that_fit(engine.max_batch_size * one, one, shape.block_bytes, free)
    log.info(
        "key-value cache",
        extra={
            "tokens": blocks * BLOCK_TOKENS, "mib": blocks * shape.block_bytes >> 20,
            "sequences_of_full_length": blocks // one,
        },
    )  # fmt: skip
    return blocks


def check_agreement(
    runner: "TransformersRunner", pool: BlockPool, loaded: "Loaded", probe: list[int], expected: list[float]
) -> None:
    """Warm up, and compare with the model's own attention, through the three ways a token can take.

    Raises ModelUnsupported when the logits differ by more than rounding: the model does something in its attention
    (a bias, sinks, a second kind of position) that the engine does not.
    """
    name = type(loaded.model).__name__
    try:
        actual = _probed(runner, pool, loaded.codec, probe)
    except (NotImplementedError, RuntimeError, TypeError, AttributeError) as error:
        raise ModelUnsupported(f"{name} does not run with replaced attention: {error}") from error
    scale = math.sqrt(sum(value * value for value in expected)) or 1.0
    difference = math.sqrt(sum((a - b) ** 2 for a, b in zip(actual, expected, strict=True))) / scale
    log.info("engine agrees with the model", extra={"relative_difference": float(f"{difference:.2g}")})
    if not difference <= TOLERANCE[loaded.dtype]:
        raise ModelUnsupported(
            f"{name} computes its attention in a way of its own: the engine's logits differ by {difference:.1%}"
        )


def _probed(runner: "TransformersRunner", pool: BlockPool, codec: Codec, probe: list[int]) -> list[float]:
    """Logits after the probe: its start as a first chunk, its middle as a later one, its end as a single token."""
    request = GenerationRequest("probe", tuple(probe), Sampling(max_tokens=1, temperature=0.0))
    sequence = Sequence(request, codec)
    sequence.blocks = pool.take(len(probe), pool.new_root()) or sequence.blocks
    borders = (0, len(probe) // 2, len(probe) - 1, len(probe))
    logits = None
    for start, end in itertools.pairwise(borders):
        logits = runner.logits(Batch((Span(sequence, start, end - start, samples=end == len(probe)),)))
    pool.give_back(sequence.blocks)
    return list(logits[0].float().tolist()) if logits is not None else []
