"""From a verified folder to a model that makes embeddings: weights without a head, and what
sentence-transformers' files say of pooling, prompts and lengths.

Slow: call it in a thread.
"""

import logging
import re
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, normalizers
from transformers import AutoModel

from llm_runtime.compute.embedder import EmbeddingRunner, difference, dimensions
from llm_runtime.compute.linears import pack_linears
from llm_runtime.contract import EngineConfig, RuntimeConfig
from llm_runtime.engine.adapters import AdapterTable
from llm_runtime.engine.limits import RequestLimits
from llm_runtime.engine.model import Model
from llm_runtime.engine.scheduler import EmbeddingScheduler
from llm_runtime.errors import ConfigInvalid, ModelCorrupt, ModelUnsupported
from llm_runtime.files.fit import embedding_tokens, most_positions, tensors_of
from llm_runtime.files.heads import refuse_quantised
from llm_runtime.files.locate import GPTQ_CONFIG
from llm_runtime.files.quantised import quantisation_of
from llm_runtime.files.sentence_files import Recipe, read_recipe
from llm_runtime.files.tokenizer_files import read_json
from llm_runtime.job import MAX_INPUTS
from llm_runtime.loading.agreement import TOLERANCE, probe_tokens
from llm_runtime.loading.load import (
    check_buildable,
    check_fits,
    check_report,
    device_of,
    dtype_of,
    free_memory,
    read_settings,
    read_tokenizer,
    read_weights,
    used_device_bytes,
    weight_faults,
)
from llm_runtime.loading.peak import PeakMemory
from llm_runtime.machine.steps import Steps
from llm_runtime.request import EmbeddingModel, EmbeddingPrompt
from llm_runtime.text.codec import Codec

log = logging.getLogger(__name__)

PROBE_LENGTHS = (24, 17, 3)
"""Tokens of the texts that are embedded together and one by one at the start."""
_SPARE = re.compile(
    r"(^|\.)(pooler|cls|lm_head|classifier|score|head|predictions|qa_outputs|vocab_transform|vocab_projector"
    r"|vocab_layer_norm|generator_lm_head|generator_predictions|discriminator_predictions|decoder)\.|"
    r"\.(position_ids|token_type_ids|inv_freq)$"
)
"""Weights of heads, which make no embedding, and what older versions of Transformers saved though
it is computed. A checkpoint may have more of them than the model, or fewer."""


def build_embedder(config: RuntimeConfig, folder: Path) -> Model:
    """Load, check and warm up a model that makes embeddings.
    Raises errors.Fatal subclasses, whose message says what to change."""
    started = time.monotonic()
    steps = Steps()
    engine = config.engine
    if config.adapters:
        raise ConfigInvalid("adapters are for models that generate; this one makes embeddings")
    settings = read_settings(folder)
    _refuse_unsupported(folder, engine, settings)
    recipe = read_recipe(folder)
    with steps.step("code of the architecture"):
        check_buildable(folder, settings, AutoModel)
    device = device_of(engine.device)
    dtype = dtype_of(engine.dtype, device, settings)
    name = str(dtype).removeprefix("torch.")
    check_fits(folder, settings, engine, device, dtype, tensors_of(folder), embeds=True)
    with steps.step("tokenizer"):
        tokenizer, special = read_tokenizer(folder)
    if recipe.lowercase:
        _lowercase(tokenizer)
    with PeakMemory() as peak, steps.step("weights"):
        model = _weights(folder, settings, device, dtype)
    pad_id = _pad_id(tokenizer, special, model)
    length = _length(engine, folder, recipe, model)
    vocabulary = model.get_input_embeddings().num_embeddings
    with steps.step("first embeddings"):
        runner, size = _checked(model, recipe, pad_id, probe_tokens(vocabulary, length + 1), name)
    free_memory()  # Of what loading used, glibc would keep much.
    seconds = time.monotonic() - started
    log.info(
        "the model is warm, and makes embeddings",
        extra={
            "folder": str(folder), "architecture": type(model).__name__, "dimensions": size,
            "pooling": ", ".join(recipe.poolings), "most_tokens": length, "device": device, "dtype": name,
            "seconds": round(seconds, 1), "slow_steps": steps.slow(),
        },
    )  # fmt: skip
    return Model(
        scheduler=EmbeddingScheduler(
            engine.max_batch_size,
            embedding_tokens(engine, device),
            # The texts of one request all wait, so the longest request must find room.
            engine.max_queue_length + MAX_INPUTS,
        ),
        runner=runner,
        codec=Codec(tokenizer, vocabulary, frozenset()),
        limits=RequestLimits(length, vocabulary, _told(folder, recipe, size, tokenizer, special)),
        device=device,
        adapters=AdapterTable(engine.max_adapters),
        load_seconds=seconds,
        load_peak_bytes=peak.peak_bytes - peak.before_bytes,
        memory_bytes=None if device == "cpu" else used_device_bytes,
        free=free_memory,
    )


def _refuse_unsupported(folder: Path, engine: EngineConfig, settings: Any) -> None:
    if settings.is_encoder_decoder:
        raise ModelUnsupported(
            f"{settings.model_type} is an encoder-decoder model; embeddings are made by encoders and"
            " decoder-only models here"
        )
    quantisation = quantisation_of(
        read_json(folder / "config.json"), read_json(folder / GPTQ_CONFIG)
    )
    refuse_quantised(engine.quantization, stored=quantisation is not None)


def _weights(folder: Path, settings: Any, device: str, dtype: Any) -> Any:
    with weight_faults(folder, dtype):
        model, report = read_weights(AutoModel, folder, settings, dtype)
        model.config.update({"use_cache": False})
        check_report(folder, report, lambda key: _SPARE.search(key) is not None)
        return model if device == "cpu" else model.to(device)


def _checked(
    model: Any, recipe: Recipe, pad_id: int, probe: list[int], dtype: str
) -> tuple[EmbeddingRunner, int]:
    """The runner, and the length of its vectors. Texts embedded together, by packed weights, must
    come out as they do one by one, by the model itself. Raises ModelUnsupported."""
    runner = EmbeddingRunner(model, recipe, pad_id=pad_id)
    size = dimensions(runner, probe)
    texts = [probe[:tokens] for tokens in PROBE_LENGTHS]
    alone = [runner.embed([text])[0] for text in texts]
    if model.device.type == "cpu":
        pack_linears(model)
    apart = max(map(difference, alone, runner.embed(texts)))
    log.info(
        "embeddings agree with the model", extra={"relative_difference": float(f"{apart:.2g}")}
    )
    if not apart <= TOLERANCE[dtype]:
        raise ModelUnsupported(
            f"the embeddings of {type(model).__name__} depend on what they are computed together with"
            f" (by {apart:.1%}): it does not mask padding"
        )
    return runner, size


def _length(engine: EngineConfig, folder: Path, recipe: Recipe, model: Any) -> int:
    """Longest text in tokens, as sentence-transformers would cut it, and not over the engine's."""
    positions = most_positions(model.config.get_text_config().to_dict()) - _first_position(model)
    said = read_json(folder / "tokenizer_config.json").get("model_max_length")
    own = recipe.max_tokens or (said if isinstance(said, int) and said > 0 else 0)
    return min(number for number in (engine.max_model_length, own, positions) if number > 0)


def _first_position(model: Any) -> int:
    """Where positions begin: RoBERTa and its kin count from behind their padding's."""
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        table = getattr(module, "position_embeddings", None)
        if isinstance(padding, int) and isinstance(table, torch.nn.Embedding):
            return padding + 1
    return 0


def _pad_id(tokenizer: Tokenizer, special: dict[str, str], model: Any) -> int:
    found = tokenizer.token_to_id(special["pad_token"]) if "pad_token" in special else None
    own = getattr(model.config, "pad_token_id", None)
    return next((number for number in (found, own) if isinstance(number, int)), 0)


def _lowercase(tokenizer: Tokenizer) -> None:
    before = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])


def _told(
    folder: Path, recipe: Recipe, size: int, tokenizer: Tokenizer, special: dict[str, str]
) -> EmbeddingModel:
    """What the API must know."""
    ends = {tokenizer.token_to_id(text) for text in special.values()}

    def unpooled(text: str) -> int:
        if recipe.include_prompt or not text:
            return 0
        ids = tokenizer.encode(text).ids
        return len(ids) - (bool(ids) and ids[-1] in ends)

    sizes = read_json(folder / "config.json").get("matryoshka_dimensions") or []
    if not isinstance(sizes, list) or not all(isinstance(each, int) for each in sizes):
        raise ModelCorrupt(
            f"matryoshka_dimensions in {folder}/config.json are not numbers; correct it"
        )
    return EmbeddingModel(
        dimensions=size,
        normalised=recipe.normalised,
        prompts={
            name: EmbeddingPrompt(text, unpooled(text)) for name, text in recipe.prompts.items()
        },
        default_prompt=recipe.default_prompt,
        matryoshka=tuple(each for each in sizes if 0 < each <= size),
    )
