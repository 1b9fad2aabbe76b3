"""How a checkpoint's weights are quantised, as its configuration says it. Unknown schemes are refused
here, by name and before a weight is read.

Three families are read: GPTQ and AWQ, which pack integers of 4 or 8 bits into 32, and
compressed-tensors, which packs them in another order or keeps plain int8. docs/models.md lists what
of each.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llm_runtime.errors import ConfigInvalid, ModelUnsupported

WHOLE_ROW = -1
"""As a group: all inputs of an output share one scale."""

Layout = Literal["gptq", "gptq_v2", "awq", "pack-quantized", "int-quantized"]
_OF_COMPRESSED_TENSORS: dict[object, Layout] = {
    "pack-quantized": "pack-quantized",
    "int-quantized": "int-quantized",
}


@dataclass(frozen=True, slots=True)
class Format:
    """The number format of a layer's weights. A weight is (integer - zero point) * scale;
    `group` inputs of an output share both."""

    layout: Layout
    bits: int
    group: int
    symmetric: bool = False
    """The zero point is the middle, and not in the file. Only of pack-quantized."""

    @property
    def per_word(self) -> int:
        """Integers in 32 bits."""
        return 32 // self.bits

    def __str__(self) -> str:
        return f"{self.layout} of {self.bits} bits"


@dataclass(frozen=True, slots=True)
class Quantisation:
    """The formats of a checkpoint's quantised layers.

    Which layers are quantised is read off the tensors: lists of exceptions in a configuration are
    written in many ways, and one that disagrees with the tensors is wrong anyhow.
    """

    formats: tuple[tuple[tuple[str, ...], Format], ...]
    """Formats with the layers that have them: names, `re:` and a pattern, or the class Linear."""

    def format_of(self, layer: str) -> Format:
        """The format of a quantised layer. A name goes before a pattern, and that before the class.
        Raises ModelUnsupported."""
        for matches in (_is_named, _is_matched, _is_of_class):
            for targets, number_format in self.formats:
                if any(matches(target, layer) for target in targets):
                    return number_format
        raise refused(f"{layer} is quantised, but config.json names no format for it")

    def __str__(self) -> str:
        return ", ".join(dict.fromkeys(str(number_format) for _, number_format in self.formats))


def quantisation_of(settings: Mapping[str, Any], beside: object) -> Quantisation | None:
    """What config.json says, or else quantize_config.json `beside` it; None if neither says that
    weights are quantised. Raises ModelUnsupported."""
    inner = settings.get("text_config")
    found = settings.get("quantization_config") or (
        inner.get("quantization_config") if isinstance(inner, Mapping) else None
    )
    if not found and isinstance(beside, Mapping) and beside:
        found = {"quant_method": "gptq", **beside}
    if not found:
        return None
    if not isinstance(found, Mapping):
        raise refused("quantization_config in config.json is not an object")
    method = found.get("quant_method")
    if method == "gptq":
        return _every_layer(_gptq(found))
    if method == "awq":
        return _every_layer(_awq(found))
    if method == "compressed-tensors":
        return _compressed_tensors(found)
    raise refused(f"it is quantised by the scheme {method!r}")


def refused(why: str) -> ModelUnsupported:
    """The error for a checkpoint that is quantised in a way that is not read."""
    return ModelUnsupported(
        f"the checkpoint can't be read: {why}. This runtime reads GPTQ and AWQ and compressed-tensors"
        " (pack-quantized, int-quantized), as docs/models.md says; use such a checkpoint or the"
        " unquantised one"
    )


def refuse_twice(quantisation: Quantisation | None, asked: str) -> None:
    """Raise ConfigInvalid if `engine.quantization` asks to quantise what is quantised."""
    if quantisation is not None and asked != "none":
        raise ConfigInvalid(
            f"engine.quantization is {asked}, but the checkpoint is quantised already"
            f" ({quantisation}), and is served as it is: set engine.quantization to none"
        )


def _every_layer(number_format: Format) -> Quantisation:
    return Quantisation(((("Linear",), number_format),))


def _gptq(found: Mapping[str, Any]) -> Format:
    # Newer tools write `checkpoint_format`, some of them `format` beside it.
    layout = _text(found.get("checkpoint_format") or found.get("format") or "gptq")
    if found.get("is_marlin_format") or layout not in ("gptq", "gptq_v2"):
        layout = "marlin" if found.get("is_marlin_format") else layout
        raise refused(f"its GPTQ weights are stored in the format {layout!r}")
    _refuse_filled(found, "adapter", "rotation")
    _refuse_other(found, "pack_dtype", "int32")
    dynamic = found.get("dynamic") or {}
    if not isinstance(dynamic, Mapping) or any(dynamic.values()):
        raise refused("GPTQ's `dynamic` gives some layers another format")
    return Format(
        "gptq_v2" if layout == "gptq_v2" else "gptq",
        _bits(found.get("bits"), (4, 8)),
        _group(found.get("group_size", WHOLE_ROW)),
    )


def _awq(found: Mapping[str, Any]) -> Format:
    layout = _text(found.get("version") or found.get("format") or "gemm")
    if layout != "gemm" or found.get("backend") == "llm-awq":
        layout = layout if layout != "gemm" else "llm-awq"
        raise refused(f"its AWQ weights are stored in the version {layout!r}, not gemm")
    _refuse_other(found, "pack_dtype", "int32")
    return Format(
        "awq",
        _bits(found.get("bits", found.get("w_bit")), (4,)),
        _group(found.get("group_size", found.get("q_group_size", WHOLE_ROW))),
    )


def _compressed_tensors(found: Mapping[str, Any]) -> Quantisation:
    _refuse_filled(found, "kv_cache_scheme", "transform_config")
    sparsity = found.get("sparsity_config") or {}
    if not isinstance(sparsity, Mapping) or sparsity.get("format", "dense") != "dense":
        raise refused("its weights are sparse (`sparsity_config`)")
    groups = found.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise refused("compressed-tensors' `config_groups` are missing")
    formats = []
    for name, group in groups.items():
        if not isinstance(group, Mapping):
            raise refused(f"config_groups.{name} is not an object")
        targets = group.get("targets") or ["Linear"]
        stored_as = group.get("format") or found.get("format")
        formats.append((tuple(map(str, targets)), _compressed_format(stored_as, group)))
    return Quantisation(tuple(formats))


def _compressed_format(stored_as: object, group: Mapping[str, Any]) -> Format:
    layout = _OF_COMPRESSED_TENSORS.get(stored_as)
    if layout is None:
        raise refused(f"its compressed-tensors weights are stored as {stored_as!r}")
    weights = group.get("weights")
    if not isinstance(weights, Mapping) or weights.get("type", "int") != "int":
        raise refused(f"a config group of {layout} has no weights of integers")
    activations = group.get("input_activations") or {}
    # How activations were to be rounded does not matter: products here round them less, or not.
    # Scales measured beforehand would be tensors that nobody reads.
    if (activations and activations.get("dynamic") is not True) or group.get("output_activations"):
        raise refused("its activations are quantised by stored scales, not dynamically")
    strategy = weights.get("strategy") or (
        "group" if _text(weights.get("group_size")) else "tensor"
    )
    if strategy not in ("group", "channel"):
        raise refused(f"its scales are for a {strategy}, not for an output or a group of inputs")
    if layout == "int-quantized" and strategy != "channel":
        raise refused("int-quantized weights have scales for groups, not for outputs")
    return Format(
        layout,
        _bits(weights.get("num_bits", 8), (4, 8) if layout == "pack-quantized" else (8,)),
        _group(weights.get("group_size")) if strategy == "group" else WHOLE_ROW,
        bool(weights.get("symmetric", True)),
    )


def _bits(found: object, read: Iterable[int]) -> int:
    for bits in read:
        if found == bits:
            return bits
    raise refused(f"its weights have {found!r} bits, not {' or '.join(map(str, read))}")


def _group(found: object) -> int:
    if not isinstance(found, int) or isinstance(found, bool) or (found < 1 and found != WHOLE_ROW):
        raise refused(f"its group size is {found!r}, not a number of inputs or -1")
    return found


def _text(found: object) -> str:
    return "" if found is None else str(found).lower()


def _refuse_filled(found: Mapping[str, Any], *fields: str) -> None:
    for field in fields:
        if found.get(field):
            raise refused(f"`{field}` in its quantization_config asks for more than weights")


def _refuse_other(found: Mapping[str, Any], field: str, value: str) -> None:
    if field in found and _text(found[field]).removeprefix("torch.") != value:
        raise refused(f"`{field}` in its quantization_config is {found[field]!r}, not {value}")


def _is_named(target: str, layer: str) -> bool:
    return target == layer


def _is_matched(target: str, layer: str) -> bool:
    return target.startswith("re:") and re.match(target.removeprefix("re:"), layer) is not None


def _is_of_class(target: str, _: str) -> bool:
    return target == "Linear"
