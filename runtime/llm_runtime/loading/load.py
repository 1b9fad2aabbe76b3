"""From a verified folder to weights in memory. Refuses models that this engine would serve wrongly.

Loads safetensors only, runs no remote code and uses no network. Missing, unexpected or misshapen
weights are fatal: Transformers would only log them and continue with random ones.
"""

import gc
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers import __version__ as transformers_version
from transformers.utils import logging as transformers_logging

from llm_runtime.compute.quantised import Kind, quantize
from llm_runtime.contract import EngineConfig, ModelConfig
from llm_runtime.errors import (
    ConfigInvalid,
    Fatal,
    ModelCorrupt,
    ModelNotFound,
    ModelUnsupported,
    OutOfMemory,
)
from llm_runtime.files.fit import Sizing, check_fit, most_positions, tensors_of
from llm_runtime.files.heads import refuse_other_heads
from llm_runtime.files.locate import GPTQ_CONFIG
from llm_runtime.files.quantised import quantisation_of, refuse_twice
from llm_runtime.files.stored_layers import StoredLayer, Tensors, plain_tensors, stored_layers
from llm_runtime.files.template_files import folder_templates
from llm_runtime.files.tokenizer_files import (
    SPECIAL_TOKENS,
    check_made,
    file_tokenizer,
    first_difference,
    no_tokenizer,
    read_json,
    special_texts,
)
from llm_runtime.loading.agreement import difference, probe_tokens
from llm_runtime.loading.calibration import tokens
from llm_runtime.loading.lean import whole_meta
from llm_runtime.loading.loaded import Loaded
from llm_runtime.loading.peak import PeakMemory
from llm_runtime.loading.quantised import serve_stored, with_stored
from llm_runtime.machine.heap import give_back
from llm_runtime.machine.memory import available_bytes, check_room, limit_bytes
from llm_runtime.machine.steps import Steps
from llm_runtime.text.codec import Codec, eos_token_ids, sampling_defaults

log = logging.getLogger(__name__)
transformers_logging.disable_progress_bar()

MIB = 1 << 20
_KEYS_SHOWN = 5
MAX_DIFFERENCE = {"int8": 0.5, "int4": 0.8}
"""Largest relative change of a probe's logits by quantisation.
Beyond it the model is broken, not rounded."""


def load(
    folder: Path, engine: EngineConfig, model: ModelConfig, steps: Steps | None = None
) -> Loaded:
    """Load model and tokenizer from `folder`.
    Raises ModelCorrupt, ModelUnsupported, OutOfMemory or ConfigInvalid."""
    started = time.monotonic()
    steps = steps or Steps()
    with steps.step("code of the architecture"):
        settings = read_settings(folder)
        refuse_unsupported(settings)
        tensors = tensors_of(folder)
        stored = _stored(folder, tensors, engine.quantization)
        if stored is not None:
            settings = with_stored(settings, stored)
        check_buildable(folder, settings)
    device = device_of(engine.device)
    dtype = dtype_of(engine.dtype, device, settings)
    check_fits(folder, settings, engine, device, dtype, tensors, stored)
    # Before the weights: faults of these files should fail early,
    # and not be reported as faults of the weights.
    eos_token_ids(read_json(folder / "generation_config.json"))
    with steps.step("tokenizer"):
        tokenizer, special = read_tokenizer(folder)
    with PeakMemory() as peak, steps.step("weights"):
        weights = _weights(folder, settings, device, dtype, engine.quantization, tokenizer)
    codec = _codec(folder, model.chat_template, weights, tokenizer, special)
    parameters = sum(parameter.numel() for parameter in weights.parameters())
    log.info(
        "model loaded",
        extra={
            "folder": str(folder), "architecture": type(weights).__name__, "parameters": parameters,
            "device": device, "dtype": str(dtype).removeprefix("torch."),
            "seconds": round(time.monotonic() - started, 1),
            "peak_bytes": peak.peak_bytes, "before_bytes": peak.before_bytes,
        },
    )  # fmt: skip
    max_positions = most_positions(settings.get_text_config().to_dict())
    return Loaded(
        weights, codec, device, str(dtype).removeprefix("torch."), max_positions, parameters,
        peak.peak_bytes - peak.before_bytes, bool(stored) or engine.quantization != "none",
    )  # fmt: skip


def refuse_unsupported(settings: Any) -> None:
    """Raise ModelUnsupported for a configuration that no runner of this engine can serve.

    For the others, the logit check at start-up decides how they are served:
    `runners.choose_runner`.
    """
    architectures = getattr(settings, "architectures", None)
    name = ", ".join(architectures or [settings.model_type])
    if settings.is_encoder_decoder:
        raise ModelUnsupported(
            f"{name} is an encoder-decoder model; this runtime serves decoder-only language models"
        )
    refuse_other_heads(architectures, settings.model_type, getattr(settings, "is_decoder", False))


def cached_shapes(model: Any) -> list[tuple[int, int, int]]:
    """(key heads, size of a key, size of a value)
    of each layer, taken from a cache that the model itself creates.

    Raises ModelUnsupported if that cache is not one of plain keys and values.
    """
    with torch.inference_mode():
        cache = model(torch.tensor([[0, 1]], device=model.device), use_cache=True).get(
            "past_key_values"
        )
    shapes = []
    for layer in getattr(cache, "layers", None) or ():
        keys = getattr(layer, "keys", None)
        values = getattr(layer, "values", None)
        if keys is None or values is None or keys.dim() != 4 or keys.shape[:3] != values.shape[:3]:
            raise ModelUnsupported(
                f"{type(model).__name__} caches something other than keys and values"
            )
        shapes.append((keys.shape[1], keys.shape[3], values.shape[3]))
    if not shapes:
        raise ModelUnsupported(f"{type(model).__name__} has no cache of keys and values")
    return shapes


def reference_logits(model: Any, token_ids: list[int], position: int = -1) -> list[float]:
    """The model's own logits at a position of `token_ids`,
    computed in one pass with its own attention."""
    try:
        with torch.inference_mode():
            ids = torch.tensor([token_ids], device=model.device)
            return list(model(input_ids=ids, use_cache=False).logits[0, position].float().tolist())
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise ModelUnsupported(
            f"{type(model).__name__} does not run in Transformers as configured: {error}"
        ) from error


def free_device_bytes(device: str) -> int | None:
    """Free memory of the GPU in bytes, None for a CPU."""
    return int(torch.cuda.mem_get_info()[0]) if device.startswith("cuda") else None


def used_device_bytes() -> int:
    """GPU memory that this process holds, in bytes, including free blocks of its allocator."""
    return int(torch.cuda.memory_reserved())


def free_memory() -> None:
    """Return unreferenced memory to the system.
    Models contain reference cycles, so the collector must run first."""
    gc.collect()
    give_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def read_settings(folder: Path) -> Any:
    """The configuration in config.json. Raises ModelNotFound, ModelCorrupt or ModelUnsupported."""
    if not (folder / "config.json").is_file():
        raise ModelNotFound(f"{folder} has no config.json, so it holds no Transformers model")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except OSError as error:
        raise ModelCorrupt(f"{folder}/config.json can't be read: {error}") from error
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ModelUnsupported(
                f"the model in {folder} needs code of its own (auto_map), which this runtime never runs; "
                "use a model whose architecture is part of Transformers"
            ) from error
        raise ModelUnsupported(
            f"Transformers {transformers_version} does not accept {folder}/config.json: {error}; "
            "correct config.json, or use a runtime with a newer Transformers"
        ) from error


def check_buildable(folder: Path, settings: Any, kind: Any = AutoModelForCausalLM) -> None:
    """Build the model without weights, so that a fault of the configuration is reported as one.
    `kind` is Transformers' class that chooses the architecture's.

    Raises ModelUnsupported.
    """
    try:
        try:
            _build_empty(settings, kind)
        except Exception:
            if not whole_meta():
                raise
            _build_empty(settings, kind)
    except Exception as error:
        raise ModelUnsupported(
            f"Transformers {transformers_version} can't build {folder}/config.json: {_cause(settings, error)}; "
            "correct config.json, or use a runtime with a newer Transformers"
        ) from error


def _build_empty(settings: Any, kind: Any) -> None:
    with torch.device("meta"):
        kind.from_config(settings, trust_remote_code=False)


def _cause(settings: Any, error: Exception) -> str:
    """The error as text. A KeyError's text is only the key,
    so the setting with that value is named, too."""
    if not isinstance(error, KeyError):
        return f"{type(error).__name__}: {error}"
    word = str(error.args[0]) if error.args else ""
    text = settings.get_text_config(decoder=True).to_dict()
    rope = text.get("rope_parameters") or {}
    fields = {f"rope {key}": value for key, value in rope.items()} if isinstance(rope, dict) else {}
    named = [
        name.removeprefix("rope ") for name, value in {**text, **fields}.items() if value == word
    ]
    return f"it does not know the {named[-1]} {word!r}" if named else f"it does not find {word!r}"


def _stored(folder: Path, tensors: Tensors, asked: str) -> dict[str, StoredLayer] | None:
    """The layers that the checkpoint holds quantised; None if it is not a quantised one.

    Raises ModelUnsupported, ModelCorrupt, and ConfigInvalid if `engine.quantization` asks for more.
    """
    quantisation = quantisation_of(
        read_json(folder / "config.json"), read_json(folder / GPTQ_CONFIG)
    )
    refuse_twice(quantisation, asked)
    layers = stored_layers(quantisation, tensors)
    return None if quantisation is None else layers


def device_of(wanted: str) -> str:
    """Resolve `auto`. Raises ConfigInvalid for a GPU that is not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigInvalid(
            "engine.device is cuda, but PyTorch sees no GPU: check nvidia.com/gpu in resources, or use cpu"
        )
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def dtype_of(wanted: str, device: str, settings: Any) -> Any:
    """Resolve `auto`: the checkpoint's own dtype on a GPU;
    float32 on a CPU, as bfloat16 is fast on few CPUs."""
    if wanted != "auto":
        return getattr(torch, wanted)
    return (
        (getattr(settings, "dtype", None) or torch.float32) if device == "cuda" else torch.float32
    )


def check_fits(
    folder: Path,
    settings: Any,
    engine: EngineConfig,
    device: str,
    dtype: Any,
    tensors: Tensors,
    stored: Mapping[str, StoredLayer] | None = None,
    *,
    embeds: bool = False,
) -> None:
    """Check that the model fits before anything large is read.
    Raises OutOfMemory that says what would fit."""
    text = settings.get_text_config(decoder=True).to_dict()
    text["tie_word_embeddings"] = getattr(settings, "tie_word_embeddings", False)
    free = free_device_bytes(device)
    limit = limit_bytes() if free is None else None
    layers = tuple((stored or {}).values())
    sizing = Sizing(
        plain_tensors(tensors, layers), text, engine, str(dtype).removeprefix("torch."), device,
        limit, layers, embeds,
    )  # fmt: skip
    need = check_fit(sizing, available_bytes() if free is None else free)
    log.info(
        "the model fits",
        extra={
            "weights_bytes": need.weights,
            "sequence_cache_bytes": need.cache,
            "reserve_bytes": need.reserve,
        },
    )
    if device == "cuda" and engine.quantization != "none":
        check_room(
            folder, available_bytes()
        )  # Weights are quantised in host memory before they go to the GPU.


def _weights(
    folder: Path,
    settings: Any,
    device: str,
    dtype: Any,
    quantization: Kind | Literal["none"],
    tokenizer: Tokenizer,
) -> Any:
    with weight_faults(folder, dtype):
        model, report = read_weights(AutoModelForCausalLM, folder, settings, dtype)
        check_report(folder, report)
        if quantization != "none":
            _quantize(model, device, quantization, tokenizer)
        serve_stored(model, device, reference_logits)
        return model if device == "cpu" else model.to(device)


def read_weights(kind: Any, folder: Path, settings: Any, dtype: Any) -> tuple[Any, dict[str, Any]]:
    """A model by Transformers' class `kind`, from safetensors only and without code of its own; and
    what Transformers reports of its weights, for `check_report`."""
    model, report = kind.from_pretrained(
        folder, config=settings, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True,
        output_loading_info=True,
    )  # fmt: skip
    model.requires_grad_(False)
    return model, report


@contextmanager
def weight_faults(folder: Path, dtype: Any) -> Iterator[None]:
    """Errors of loading weights in the block as errors.Fatal, which say what to change."""
    try:
        yield
    except Fatal:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemory(
            f"no memory for the weights in {folder} as {dtype}: {error}; raise the memory limit"
        ) from error
    except ValueError as error:
        raise ModelUnsupported(
            f"Transformers does not load {folder} as a language model: {error}"
        ) from error
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelCorrupt(f"the weights in {folder} can't be loaded: {error}") from error
    except Exception as error:
        raise ModelUnsupported(
            f"Transformers {transformers_version} does not load {folder}: {type(error).__name__}: {error}"
        ) from error


def _quantize(model: Any, device: str, kind: Kind, tokenizer: Tokenizer) -> None:
    """Quantise the weights in host memory and log the effect.
    Raises ModelUnsupported if it breaks the model, ModelCorrupt if weights are not finite."""
    vocabulary = model.get_input_embeddings().num_embeddings
    probe = probe_tokens(vocabulary)
    most = most_positions(model.config.get_text_config(decoder=True).to_dict())
    sample = tokens(tokenizer, vocabulary, most) or probe
    whole_bytes = sum(parameter.nbytes for parameter in model.parameters())
    before = reference_logits(model, probe)
    saved = quantize(model, lambda: reference_logits(model, sample), device, kind)
    try:
        apart = difference(reference_logits(model, probe), before)
    except ModelUnsupported as error:
        raise ModelUnsupported(f"{error}; with engine.quantization none it may run") from error
    facts = {
        "mib_before": whole_bytes // MIB,
        "mib_saved": saved // MIB,
        "relative_difference_of_logits": round(apart, 4),
    }
    if not apart <= MAX_DIFFERENCE[kind]:
        raise ModelUnsupported(
            f"{type(model).__name__} does not tolerate {kind} weights: its logits change by {apart:.0%}; "
            "set engine.quantization to none"
        )
    if not saved:
        log.warning("quantisation has no effect: the model has no plain linear layers", extra=facts)
    else:
        log.info("linear weights are stored as %s", kind, extra=facts)


def check_report(
    folder: Path, report: dict[str, Any], spare: Callable[[str], bool] = lambda key: False
) -> None:
    """Raise ModelCorrupt for weights that the model lacks, or has no place for, unless `spare` says
    of their names that nothing is made with them."""
    faults = []
    for kind in ("missing", "unexpected", "mismatched"):
        named = (
            key[0] if isinstance(key, tuple) else key for key in report.get(f"{kind}_keys", ())
        )
        keys = sorted(key for key in map(str, named) if not spare(key))
        if keys:
            more = f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else ""
            faults.append(f"{len(keys)} {kind}: {', '.join(keys[:_KEYS_SHOWN])}{more}")
    if faults:
        raise ModelCorrupt(
            f"the weights in {folder} do not belong to its config.json ({'; '.join(faults)}); "
            "save model and configuration together with save_pretrained and register a new version"
        )


def read_tokenizer(folder: Path) -> tuple[Tokenizer, dict[str, str]]:
    """The folder's tokenizer, and its special tokens by role (`eos_token`, …).

    A tokenizer.json is used as it is. Transformers would copy it into a class of its own choice,
    which may tokenize differently.
    """
    own = file_tokenizer(folder)
    try:
        made = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        if own is None:
            raise no_tokenizer(folder, error) from error
        log.info(
            "Transformers can't load this folder's tokenizer: its tokenizer.json is used",
            exc_info=error,
        )
        return own, special_texts(folder)
    special = {name: str(token) for name in SPECIAL_TOKENS if (token := getattr(made, name, None))}
    if own is None:
        if not made.is_fast:
            raise no_tokenizer(folder, f"{type(made).__name__} has no fast form")
        check_made(folder, made.backend_tokenizer)
        made.backend_tokenizer.no_padding()
        made.backend_tokenizer.no_truncation()
        return made.backend_tokenizer, special
    if made.is_fast and (
        text := first_difference(own, made.backend_tokenizer, special.get("eos_token", ""))
    ):
        log.warning(
            "Transformers' %s tokenizes differently from this folder's tokenizer.json, which is used",
            type(made).__name__, extra={"text": text},
        )  # fmt: skip
    return own, special


def _codec(
    folder: Path, chat_template: str, model: Any, tokenizer: Tokenizer, special: dict[str, str]
) -> Codec:
    end = tokenizer.token_to_id(special["eos_token"]) if "eos_token" in special else None
    ids = {end} if end is not None else set()
    ids |= eos_token_ids(model.generation_config.to_dict()) or eos_token_ids(model.config.to_dict())
    templates = folder_templates(folder, read_json(folder / "tokenizer_config.json"), chat_template)
    defaults = sampling_defaults(read_json(folder / "generation_config.json"))
    return Codec(
        tokenizer,
        model.get_input_embeddings().num_embeddings,
        frozenset(ids),
        templates,
        special,
        defaults,
    )
