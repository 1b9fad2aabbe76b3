"""From a configuration and a verified folder to a model that has generated once.
Slow: call it in a thread."""

import logging
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llm_runtime.contract import EngineConfig, RuntimeConfig
from llm_runtime.engine.adapters import AdapterTable
from llm_runtime.engine.blocks import BlockPool
from llm_runtime.engine.budget import PrefillBudget
from llm_runtime.engine.client import EngineClient
from llm_runtime.engine.drafts import Drafter
from llm_runtime.engine.limits import RequestLimits
from llm_runtime.engine.local import start_local
from llm_runtime.engine.model import Model, ModelCodec, TellCodec
from llm_runtime.engine.recovery import Runner
from llm_runtime.engine.scheduler import Scheduler
from llm_runtime.errors import ConfigInvalid
from llm_runtime.files.fit import CPU_STEP_TOKENS
from llm_runtime.files.heads import embeds
from llm_runtime.files.sentence_files import describes_embeddings
from llm_runtime.files.tokenizer_files import read_json
from llm_runtime.loading.agreement import check_agreement, probe_tokens
from llm_runtime.loading.loaded import Loaded
from llm_runtime.loading.warm import warm_up
from llm_runtime.machine.steps import Steps
from llm_runtime.text.codec import Codec

if TYPE_CHECKING:
    from llm_runtime.compute.cache import CacheShape
    from llm_runtime.compute.runner import TransformersRunner

log = logging.getLogger(__name__)


def build_engine(config: RuntimeConfig, model_folder: Path) -> tuple[EngineClient, Codec]:
    """An engine on a thread of this process, for benchmarks and tests.
    Raises as `build_model` does."""
    engine = start_local(build_model(config, model_folder), build_model)
    codec = engine.codec
    assert isinstance(codec, Codec)
    return engine, codec


def _tell_nobody(codec: ModelCodec) -> None:
    pass


def build_model(config: RuntimeConfig, model_folder: Path, tell: TellCodec = _tell_nobody) -> Model:
    """Load, check and warm up the model. `tell` gets its codec before its layers are made ready.
    Raises errors.Fatal subclasses, whose message says what to change."""
    if _embeds(model_folder, config.engine):
        from llm_runtime.loading.embedder import build_embedder

        return build_embedder(config, model_folder)
    # Imported late: torch and Transformers take seconds,
    # and the HTTP process only passes this function on.
    from llm_runtime.loading.load import free_memory, load, used_device_bytes
    from llm_runtime.loading.runners import choose_runner

    started = time.monotonic()
    steps = Steps()
    loaded = load(model_folder, config.engine, config.model, steps)
    tell(loaded.codec)
    length = _model_length(config.engine, loaded)
    chosen = choose_runner(loaded, config.engine, length, partial(_batched, steps=steps))
    probe = probe_tokens(loaded.codec.vocabulary_size, length)
    # The warm-up has its own scheduler, so that it does not show in the counters of the one that
    # serves.
    trial = _scheduler(config.engine, chosen.pool, loaded.device)
    with steps.step("first tokens"):
        tokens = warm_up(trial, chosen.runner, loaded.codec, probe, length)
    guesses = config.engine.speculation == "promptLookup" and chosen.kind == "batched"
    drafter = Drafter() if guesses else None
    free_memory()  # Of what loading used, glibc would keep much.
    seconds = time.monotonic() - started
    log.info(
        "the model is warm",
        extra={"tokens": tokens, "seconds": round(seconds, 1), "slow_steps": steps.slow()},
    )
    return Model(
        scheduler=_scheduler(config.engine, chosen.pool, loaded.device, drafter),
        runner=chosen.runner,
        codec=loaded.codec,
        limits=RequestLimits(length, loaded.codec.vocabulary_size),
        device=loaded.device,
        adapters=_adapters(config, chosen.runner),
        kind=chosen.kind,
        load_seconds=seconds,
        load_peak_bytes=loaded.peak_bytes,
        memory_bytes=None if loaded.device == "cpu" else used_device_bytes,
        free=free_memory,
    )


def _embeds(folder: Path, engine: EngineConfig) -> bool:
    settings = read_json(folder / "config.json")
    return embeds(engine.task, settings, described=describes_embeddings(folder))


def _adapters(config: RuntimeConfig, runner: Runner) -> AdapterTable:
    most = config.engine.max_adapters
    if len(config.adapters) > most:
        raise ConfigInvalid(
            f"{len(config.adapters)} adapters are configured; engine.maxAdapters allows {most}:"
            " raise it"
        )
    table = AdapterTable(most)
    for adapter in config.adapters:
        runner.install_adapter(
            table.load(adapter.name).key, runner.read_adapter(Path(adapter.path))
        )
        log.info("adapter loaded", extra={"adapter": adapter.name, "folder": adapter.path})
    return table


def _model_length(engine: EngineConfig, loaded: Loaded) -> int:
    length = min(engine.max_model_length, loaded.max_positions or engine.max_model_length)
    if length < engine.max_model_length:
        log.warning(
            "maxModelLength exceeds the length that the model was made for",
            extra={"configured_tokens": engine.max_model_length, "used_tokens": length},
        )
    return length


def _scheduler(
    engine: EngineConfig, pool: BlockPool, device: str, drafter: Drafter | None = None
) -> Scheduler:
    tokens = (
        min(engine.max_batch_tokens, CPU_STEP_TOKENS)
        if device == "cpu"
        else engine.max_batch_tokens
    )
    tokens = max(tokens, engine.max_batch_size)
    budget = PrefillBudget(tokens, engine.inter_token_goal_seconds)
    return Scheduler(pool, engine.max_batch_size, tokens, engine.max_queue_length, budget, drafter)


def _batched(
    loaded: Loaded, engine: EngineConfig, length: int, steps: Steps | None = None
) -> "tuple[BlockPool, TransformersRunner]":
    from llm_runtime.compute.cache import KvCache
    from llm_runtime.compute.decoder import join_layers, joinable
    from llm_runtime.compute.embeddings import shrink_embeddings
    from llm_runtime.compute.fused import fuse
    from llm_runtime.compute.linears import pack_linears
    from llm_runtime.compute.logits.sampler import Sampler
    from llm_runtime.compute.lora import AdapterSet
    from llm_runtime.compute.runner import TransformersRunner
    from llm_runtime.loading.adapter import AdapterReader
    from llm_runtime.loading.load import reference_logits
    from llm_runtime.loading.runners import room_for

    steps = steps or Steps()
    probe = probe_tokens(loaded.codec.vocabulary_size, length)
    with steps.step("logits of the model itself"):
        shape = _cache_shape(loaded, engine.kv_cache_dtype)
        expected = reference_logits(loaded.model, probe)
    if loaded.device == "cpu":
        with steps.step("measuring and packing linear layers"):
            pack_linears(loaded.model, joinable=joinable(loaded.model))
            shrink_embeddings(loaded.model)
        with steps.step("CPU kernels"):
            fuse(loaded.model)
            join_layers(loaded.model)
    pool = room_for(shape.block_bytes, loaded, engine, length, sharing=engine.prefix_caching)
    # Before the runner, which replaces the model's attention:
    # AdapterSet runs the model once with its own.
    adapters = AdapterSet(loaded.model, AdapterReader(engine.max_adapter_rank))
    runner = TransformersRunner(
        loaded.model, KvCache(shape, pool.size, loaded.device), Sampler(), adapters
    )
    with steps.step("logit check"):
        check_agreement(runner, loaded, probe, expected)
    return pool, runner


def _cache_shape(loaded: Loaded, dtype: str) -> "CacheShape":
    """The shape of the model's own cache after a few tokens, with numbers of `dtype`.
    Raises ModelUnsupported unless it is keys and values."""
    import torch

    from llm_runtime.compute.cache import CacheShape, LayerShape
    from llm_runtime.loading.load import cached_shapes

    layers = tuple(
        LayerShape(heads, size, value_size)
        for heads, size, value_size in cached_shapes(loaded.model)
    )
    return CacheShape(layers, loaded.model.dtype if dtype == "auto" else getattr(torch, dtype))
