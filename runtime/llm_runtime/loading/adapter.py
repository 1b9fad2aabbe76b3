"""From a folder in PEFT's format to a checked LoRA adapter:
adapter_config.json and adapter_model.safetensors.

PEFT itself parses the configuration and matches module names, so they mean here what they meant in
training. A configuration that asks for more than plain LoRA on linear layers is refused with the
field's name, never ignored.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from llm_runtime.compute.lora import Adapter, LinearShape, LoraWeights, Shapes
from llm_runtime.errors import ModelCorrupt, ModelNotFound, ModelUnsupported
from llm_runtime.files.locate import UNTIE_FIRST
from llm_runtime.files.package import (
    ADAPTER_CONFIG,
    ADAPTER_PICKLE,
    ADAPTER_WEIGHTS,
    without_weights,
)
from llm_runtime.files.verify import safetensors_keys

MAX_CONFIG_BYTES = 1 << 20
_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_FORMATS = ("F32", "F16", "BF16")
_SHOWN = 3

_HONOURED = {
    "task_type", "peft_type", "r", "target_modules", "exclude_modules", "lora_alpha", "use_rslora", "bias",
    "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
}  # fmt: skip
_NO_MATTER = {
    "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout",
    "fan_in_fan_out", "megatron_core", "runtime_config", "qalora_group_size",
}  # fmt: skip
"""Fields without effect here: they concern training or merging,
or belong to a feature that another field turns on."""

_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base's weights as they are.
PiSSA, OLoRA, CorDA and LoftQ change them."""


@dataclass(frozen=True, slots=True)
class AdapterReader:
    """Reads adapters for one base model."""

    max_rank: int
    """Highest rank that a module of an adapter may have."""

    def __call__(self, folder: Path, shapes: Shapes) -> Adapter:
        """Read and check the adapter in `folder` against the base's linear layers.

        Raises ModelNotFound (a file is missing), ModelCorrupt (a file is incomplete, or a value is
        not finite) or ModelUnsupported (another base, too high a rank, more than plain LoRA). The
        message says what to do.
        """
        config = _config(folder)
        targets = self._targets(folder, config, shapes)
        file = _weights_file(folder)
        names = _sides(folder, safetensors_keys(file), shapes)
        _check_complete(folder, names, targets)
        with safe_open(file, framework="pt") as tensors:
            for module, target in targets.items():
                _check_shapes(folder, module, tensors, names[module], shapes[module], target.rank)
            weights = {
                module: _weights(folder, module, tensors, names[module], target.scaling)
                for module, target in targets.items()
            }
        return Adapter(max(target.rank for target in targets.values()), weights)

    def _targets(self, folder: Path, config: Any, shapes: Shapes) -> "dict[str, _Target]":
        targets = {
            module: _target(config, module) for module in shapes if _is_targeted(config, module)
        }
        if not targets:
            raise _other_base(
                folder,
                f"none of this model's linear layers is among target_modules {_listed(config)}",
            )
        module, highest = max(targets.items(), key=lambda item: item[1].rank)
        if not all(target.rank >= 1 for target in targets.values()):
            raise ModelUnsupported(f"the adapter in {folder} has a rank below 1")
        if highest.rank > self.max_rank:
            raise ModelUnsupported(
                f"the adapter in {folder} has rank {highest.rank} at {module}; at most {self.max_rank} is allowed "
                "(engine.maxAdapterRank)"
            )
        return targets


@dataclass(frozen=True, slots=True)
class _Target:
    rank: int
    scaling: float


def _config(folder: Path) -> Any:
    """Parse the folder's LoraConfig.
    Raises ModelUnsupported for any field that this runtime would not honour."""
    # Imported late: it takes seconds, and most deployments have no adapter.
    from peft import LoraConfig

    entries = _entries(folder)
    kind = entries.get("peft_type")
    if kind != "LORA":
        raise ModelUnsupported(
            f"the adapter in {folder} is of PEFT type {kind}; only LORA is supported"
        )
    known = {field.name for field in fields(LoraConfig)}
    try:
        config = LoraConfig(
            **{name: value for name, value in entries.items() if name in known - {"runtime_config"}}
        )
    except (ValueError, TypeError, ImportError) as error:
        raise ModelUnsupported(
            f"PEFT does not accept {folder / ADAPTER_CONFIG}: {error}"
        ) from error
    strange = [name for name in entries.keys() - known if entries[name]]
    plain = LoraConfig()
    strange += [
        name
        for name in known - _HONOURED - _NO_MATTER
        if getattr(config, name) != getattr(plain, name)
    ]
    _refuse(folder, config, strange)
    return config


def _refuse(folder: Path, config: Any, strange: list[str]) -> None:
    if config.bias != "none":
        strange = [*strange, "bias"]
    if config.init_lora_weights not in _PLAIN_STARTS:
        strange = [*strange, "init_lora_weights"]
    if config.task_type not in (None, "CAUSAL_LM"):
        strange = [*strange, "task_type"]
    if strange:
        asked = ", ".join(f"{name}={getattr(config, name, '?')!s:.60}" for name in sorted(strange))
        raise ModelUnsupported(
            f"the adapter in {folder} asks for {asked}; only plain LoRA on linear layers of a causal language model is "
            f"supported: train without it, or merge the adapter into its base and serve that; {UNTIE_FIRST}"
        )


def _entries(folder: Path) -> dict[str, Any]:
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        raise ModelNotFound(
            f"{folder} holds no {ADAPTER_CONFIG}; give the folder that PEFT's save_pretrained wrote"
        )
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise ModelCorrupt(f"{file} is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelCorrupt(f"{file} is not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise ModelCorrupt(f"{file} is not a JSON object")
    return entries


def _is_targeted(config: Any, module: str) -> bool:
    from peft.tuners.tuners_utils import check_target_module_exists

    if isinstance(config.target_modules, str) and config.target_modules.lower() == "all-linear":
        config.target_modules = r".*"
    try:
        # For an excluded module PEFT returns a falsy object instead of False.
        return bool(check_target_module_exists(config, module))
    except (re.error, TypeError) as error:
        raise ModelUnsupported(
            f"target_modules {_listed(config)} can't be matched: {error}"
        ) from error


def _target(config: Any, module: str) -> _Target:
    """Rank and scale as PEFT's LoraModel computes them:
    a matching pattern wins over `r` and `lora_alpha`.

    LoRA scales by alpha / r, rsLoRA (Kalajdzievski 2023) by alpha / √r.
    """
    rank = int(_by_pattern(config.rank_pattern, module, config.r))
    alpha = float(_by_pattern(config.alpha_pattern, module, config.lora_alpha))
    return _Target(rank, alpha / (math.sqrt(max(rank, 1)) if config.use_rslora else max(rank, 1)))


def _by_pattern(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    from peft.utils.other import get_pattern_key

    return pattern.get(get_pattern_key(tuple(pattern), module), default)


def _weights_file(folder: Path) -> Path:
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise without_weights(str(folder), pickled=(folder / ADAPTER_PICKLE).exists())
    return file


def _sides(folder: Path, keys: frozenset[str], shapes: Shapes) -> dict[str, dict[str, str]]:
    """Tensor names as {module: {"A": name, "B": name}}.

    Raises ModelUnsupported if the file holds anything but A and B of this base's linear layers.
    """
    sides: dict[str, dict[str, str]] = {}
    for key in sorted(keys):
        match = _TENSOR.fullmatch(key)
        if match is None:
            raise ModelUnsupported(
                f"the adapter in {folder} holds {key}: only lora_A and lora_B of linear layers are supported "
                f"(no DoRA, no embeddings, no whole modules): merge it into its base and serve that; {UNTIE_FIRST}"
            )
        if match["module"] not in shapes:
            raise _other_base(
                folder,
                f"it adapts {match['module']}, which is no linear layer that can be adapted here",
            )
        sides.setdefault(match["module"], {})[match["side"]] = key
    return sides


def _check_complete(
    folder: Path, sides: Mapping[str, Mapping[str, str]], targets: Mapping[str, _Target]
) -> None:
    missing = [module for module in targets if len(sides.get(module, ())) != 2]
    unexpected = [module for module in sides if module not in targets]
    faults = [
        f"{len(modules)} {kind}: {', '.join(modules[:_SHOWN])}"
        for kind, modules in (("missing", missing), ("unexpected", unexpected))
        if modules
    ]
    if faults:
        raise _other_base(
            folder,
            f"by {ADAPTER_CONFIG} its tensors are not those of this model ({'; '.join(faults)})",
        )


def _check_shapes(
    folder: Path, module: str, tensors: Any, names: Mapping[str, str], shape: LinearShape, rank: int
) -> None:
    """Check shapes and formats in the header, before any data is read:
    no adapter takes more memory than its rank."""
    expected = ([rank, shape.inputs], [shape.outputs, rank])
    slices = [tensors.get_slice(names[side]) for side in "AB"]
    actual = tuple(list(part.get_shape()) for part in slices)
    if actual != expected:
        raise _other_base(
            folder,
            f"at {module} its A and B have the shapes {actual[0]} and {actual[1]}; "
            f"this model needs {expected[0]} and {expected[1]}",
        )
    if any(part.get_dtype() not in _FORMATS for part in slices):
        raise ModelUnsupported(
            f"the adapter in {folder} holds {slices[0].get_dtype()} and {slices[1].get_dtype()} at {module}; "
            f"save it as one of {', '.join(_FORMATS)}"
        )


def _weights(
    folder: Path, module: str, tensors: Any, names: Mapping[str, str], scaling: float
) -> LoraWeights:
    """A and the scaled B in float32.
    They are rounded to the base's format later, so that B is rounded only once."""
    a, b = (tensors.get_tensor(names[side]).float() for side in "AB")
    b = b * scaling
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ModelCorrupt(
            f"the adapter in {folder} holds values at {module} that are not finite; train it again"
        )
    return LoraWeights(a, b)


def _other_base(folder: Path, what: str) -> ModelUnsupported:
    return ModelUnsupported(f"the adapter in {folder} is not one of this base model: {what}")


def _listed(config: Any) -> str:
    modules = config.target_modules
    return str(modules if isinstance(modules, str) else sorted(modules or ()))[:120]
