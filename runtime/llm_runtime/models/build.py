"""From a configuration and a verified folder to an engine that has answered once. Slow: call it in a thread."""

import itertools
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

from llm_runtime.contract import EngineConfig, RuntimeConfig
from llm_runtime.engine.limits import RequestLimits
from llm_runtime.engine.loop import ContinuousEngine
from llm_runtime.engine.memory import available_bytes, slots_that_fit
from llm_runtime.engine.scheduler import Batch, Scheduler, Span
from llm_runtime.engine.sequence import Sequence
from llm_runtime.errors import ModelUnsupported
from llm_runtime.models.codec import Codec
from llm_runtime.request import GenerationRequest, Sampling

if TYPE_CHECKING:
    from llm_runtime.engine.cache import CacheShape
    from llm_runtime.engine.runner import TransformersRunner
    from llm_runtime.models.load import Loaded

log = logging.getLogger(__name__)

KV_FRACTION = 0.8
"""Share of the memory that is free after loading which keys and values may take; activations need the rest."""

CPU_PREFILL_TOKENS = 256
"""Prompt tokens in a step that also decodes, on a CPU: more would stop running streams for seconds."""

PROBE_TOKENS = 24
TOLERANCE = {"float32": 0.01, "bfloat16": 0.1, "float16": 0.05}
"""Root-mean-square difference of logits, relative to theirs, that rounding explains."""


def build_engine(config: RuntimeConfig, model_folder: Path) -> tuple[ContinuousEngine, Codec]:
    """Load, check and start. Raises errors.Fatal subclasses, whose message says what to change."""
    # Importing torch and Transformers takes seconds: the HTTP port answers before that.
    from llm_runtime.models.load import load

    loaded = load(model_folder, config.engine, config.model)
    length = _model_length(config.engine, loaded)
    slots, runner = _runner(loaded, config.engine, length)
    scheduler = Scheduler(
        slots,
        config.engine.max_batch_tokens,
        config.engine.max_queue_length,
        CPU_PREFILL_TOKENS if loaded.device == "cpu" else None,
    )
    limits = RequestLimits(length, loaded.codec.vocabulary_size)
    return ContinuousEngine(scheduler, runner, loaded.codec, limits).start(), loaded.codec


def _model_length(engine: EngineConfig, loaded: "Loaded") -> int:
    length = min(engine.max_model_length, loaded.max_positions or engine.max_model_length)
    if length < engine.max_model_length:
        log.warning(
            "maxModelLength is more than the model was made for",
            extra={"configured_tokens": engine.max_model_length, "used_tokens": length},
        )
    return length


def _runner(loaded: "Loaded", engine: EngineConfig, length: int) -> "tuple[int, TransformersRunner]":
    from llm_runtime.engine.cache import KvCache
    from llm_runtime.engine.lora import AdapterSet
    from llm_runtime.engine.runner import TransformersRunner
    from llm_runtime.engine.sampler import Sampler
    from llm_runtime.models.adapter import AdapterReader
    from llm_runtime.models.load import reference_logits

    probe = [(7919 * i + 13) % loaded.codec.vocabulary_size for i in range(min(PROBE_TOKENS, length - 1))]
    expected = reference_logits(loaded.model, probe)
    shape = _cache_shape(loaded, length)
    slots = _slots(shape, engine, loaded)
    adapters = AdapterSet(loaded.model, AdapterReader(engine.max_adapter_rank))
    runner = TransformersRunner(loaded.model, KvCache(shape, slots, loaded.device), Sampler(), adapters)
    check_agreement(runner, loaded, probe, expected)
    return slots, runner


def _cache_shape(loaded: "Loaded", length: int) -> "CacheShape":
    from llm_runtime.engine.cache import CacheShape

    text = loaded.model.config.get_text_config()
    heads = text.num_attention_heads
    return CacheShape(
        layers=text.num_hidden_layers,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // heads,
        length=length,
        dtype=loaded.model.dtype,
    )


def _slots(shape: "CacheShape", engine: EngineConfig, loaded: "Loaded") -> int:
    from llm_runtime.models.load import free_device_bytes

    on_device = free_device_bytes(loaded.device)
    free = int(KV_FRACTION * (available_bytes() if on_device is None else on_device))
    wanted = min(engine.max_batch_size, engine.max_batch_tokens)
    slots = slots_that_fit(wanted, shape.slot_bytes, free)
    if slots < engine.max_batch_size:
        log.warning(
            "maxBatchSize does not fit into memory; fewer requests will run at once",
            extra={"configured": engine.max_batch_size, "used": slots, "mib_for_each": shape.slot_bytes >> 20},
        )
    return slots


def check_agreement(runner: "TransformersRunner", loaded: "Loaded", probe: list[int], expected: list[float]) -> None:
    """Warm up, and compare with the model's own attention, through the three ways a token can take.

    Raises ModelUnsupported when the logits differ by more than rounding: the model does something in its attention
    (a bias, sinks, a second kind of position) that the engine does not.
    """
    name = type(loaded.model).__name__
    try:
        actual = _probed(runner, loaded.codec, probe)
    except (NotImplementedError, RuntimeError, TypeError, AttributeError) as error:
        raise ModelUnsupported(f"{name} does not run with replaced attention: {error}") from error
    scale = math.sqrt(sum(value * value for value in expected)) or 1.0
    difference = math.sqrt(sum((a - b) ** 2 for a, b in zip(actual, expected, strict=True))) / scale
    log.info("engine agrees with the model", extra={"relative_difference": float(f"{difference:.2g}")})
    if not difference <= TOLERANCE[loaded.dtype]:
        raise ModelUnsupported(
            f"{name} computes its attention in a way of its own: the engine's logits differ by {difference:.1%}"
        )


def _probed(runner: "TransformersRunner", codec: Codec, probe: list[int]) -> list[float]:
    """Logits after the probe: its start as a first chunk, its middle as a later one, its end as a single token."""
    request = GenerationRequest("probe", tuple(probe), Sampling(max_tokens=1, temperature=0.0))
    sequence = Sequence(request, codec)
    borders = (0, len(probe) // 2, len(probe) - 1, len(probe))
    logits = None
    for start, end in itertools.pairwise(borders):
        logits = runner.logits(Batch((Span(sequence, 0, start, end - start, samples=end == len(probe)),)))
    return list(logits[0].float().tolist()) if logits is not None else []
