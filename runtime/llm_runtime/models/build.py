"""From a configuration and a verified folder to an engine that has answered once. Slow: call it in a thread."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from llm_runtime.contract import EngineConfig, RuntimeConfig
from llm_runtime.engine.limits import RequestLimits
from llm_runtime.engine.loop import ContinuousEngine
from llm_runtime.engine.memory import available_bytes, slots_that_fit
from llm_runtime.engine.scheduler import Scheduler
from llm_runtime.models.agreement import check_agreement, probe_tokens
from llm_runtime.models.codec import Codec

if TYPE_CHECKING:
    from llm_runtime.engine.cache import CacheShape
    from llm_runtime.engine.runner import TransformersRunner
    from llm_runtime.models.load import Loaded

log = logging.getLogger(__name__)

KV_FRACTION = 0.8
"""Share of the memory that is free after loading which keys and values may take; activations need the rest."""

CPU_PREFILL_TOKENS = 256
"""Prompt tokens in a step that also decodes, on a CPU: more would stop running streams for seconds."""


def build_engine(config: RuntimeConfig, model_folder: Path) -> tuple[ContinuousEngine, Codec]:
    """Load, check and start. Raises errors.Fatal subclasses, whose message says what to change."""
    # Importing torch and Transformers takes seconds: the HTTP port answers before that.
    from llm_runtime.models.load import load
    from llm_runtime.models.runners import choose_runner

    loaded = load(model_folder, config.engine, config.model)
    length = _model_length(config.engine, loaded)
    chosen = choose_runner(loaded, config.engine, length, _batched)
    scheduler = Scheduler(
        chosen.slots,
        config.engine.max_batch_tokens,
        config.engine.max_queue_length,
        CPU_PREFILL_TOKENS if loaded.device == "cpu" else None,
    )
    limits = RequestLimits(length, loaded.codec.vocabulary_size)
    return ContinuousEngine(scheduler, chosen.runner, loaded.codec, limits).start(), loaded.codec


def _model_length(engine: EngineConfig, loaded: "Loaded") -> int:
    length = min(engine.max_model_length, loaded.max_positions or engine.max_model_length)
    if length < engine.max_model_length:
        log.warning(
            "maxModelLength is more than the model was made for",
            extra={"configured_tokens": engine.max_model_length, "used_tokens": length},
        )
    return length


def _batched(loaded: "Loaded", engine: EngineConfig, length: int) -> "tuple[int, TransformersRunner]":
    from llm_runtime.engine.cache import KvCache
    from llm_runtime.engine.runner import TransformersRunner
    from llm_runtime.engine.sampler import Sampler
    from llm_runtime.models.load import reference_logits

    probe = probe_tokens(loaded.codec.vocabulary_size, length)
    expected = reference_logits(loaded.model, probe)
    shape = _cache_shape(loaded, length)
    slots = _slots(shape, engine, loaded)
    runner = TransformersRunner(loaded.model, KvCache(shape, slots, loaded.device), Sampler())
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
