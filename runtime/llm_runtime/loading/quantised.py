"""Checkpoints that are quantised already: loaded as they are stored, then served by the products for
integers.

Transformers' own quantisers want a library for each scheme, and some unpack the whole model. Its
registry of quantisers is open, though: ours puts `StoredLinear` in the place of each layer that the
files hold quantised, and Transformers fills, maps and checks their tensors as all others.
"""

import copy
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from llm_runtime.compute import int4, native
from llm_runtime.compute.products import BlockLinear, int4_linear, int8_linear
from llm_runtime.compute.stored import StoredLinear
from llm_runtime.errors import ModelUnsupported
from llm_runtime.files.quantised import refused
from llm_runtime.files.stored_layers import StoredLayer, stores_head
from llm_runtime.loading.agreement import difference, probe_tokens
from llm_runtime.machine.heap import Replaced

log = logging.getLogger(__name__)

METHOD = "llm-runtime"
MAX_DIFFERENCE = 0.5
"""Largest relative change of a probe's logits by integers. Beyond it the model is broken, not
rounded."""


@register_quantization_config(METHOD)
class _StoredConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What Transformers hands to `_StoredQuantizer`: the layers by their names in the files."""

    dequantize = True
    """Afterwards the model is one like others: nothing of Transformers treats it as quantised."""

    def __init__(self, quant_method: str, layers: Mapping[str, StoredLayer]) -> None:
        self.quant_method = quant_method
        self.layers = layers


@register_quantizer(METHOD)
class _StoredQuantizer(HfQuantizer):  # type: ignore[misc]
    is_trainable = False

    def is_serializable(self) -> bool:
        return False

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        _put_stored(model, self.quantization_config.layers)


def with_stored(settings: Any, layers: Mapping[str, StoredLayer]) -> Any:
    """A copy of a model's configuration with which `from_pretrained` takes `layers` as stored."""
    settings = copy.deepcopy(settings)
    settings.quantization_config = {"quant_method": METHOD, "layers": dict(layers)}
    if stores_head(layers):
        settings.tie_word_embeddings = settings.get_text_config().tie_word_embeddings = False
    return settings


def serve_stored(model: Any, device: str, logits: Callable[[Any, list[int]], list[float]]) -> None:
    """Replace the stored layers of `model`, which is in host memory and will run on `device`, in
    place and one by one, and log the effect on `logits`.

    Raises ModelCorrupt for numbers that can't be right, and ModelUnsupported where the products do
    not compute what the stored layers do.
    """
    paths = [path for path, module in model.named_modules() if type(module) is StoredLinear]
    if not paths:
        return
    for path in paths:
        model.get_submodule(path).settle()
    probe = probe_tokens(model.get_input_embeddings().num_embeddings)
    expected = logits(model, probe)
    replaced = Replaced()
    kinds: dict[str, int] = {}
    for path in paths:
        stored = model.get_submodule(path)
        served = _served(stored, device)
        kinds[type(served).__name__] = kinds.get(type(served).__name__, 0) + 1
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, served)
        replaced.add(sum(buffer.nbytes for buffer in stored.buffers()))
    apart = difference(logits(model, probe), expected)
    log.info(
        "quantised weights are served as they are stored",
        extra={"layers": kinds, "relative_difference_of_logits": round(apart, 4)},
    )
    if not apart <= MAX_DIFFERENCE:
        raise ModelUnsupported(
            f"{type(model).__name__} does not tolerate products of integers: its logits change by"
            f" {apart:.0%} against those of the dequantised weights; use the unquantised checkpoint"
        )


class OrderedLinear(nn.Module):  # type: ignore[misc]
    """A linear layer whose inputs are put into another order first: that in which the inputs of a
    group lie together (GPTQ's act-order)."""

    def __init__(self, inner: Any, order: Any) -> None:
        super().__init__()
        self.in_features = inner.in_features
        self.out_features = inner.out_features
        self.bias = inner.bias
        self.inner = inner
        self.register_buffer("order", order, persistent=False)

    def forward(self, x: Any) -> Any:
        """[..., in_features] → [..., out_features]."""
        return self.inner(x.index_select(-1, self.order))


def _served(stored: StoredLinear, device: str) -> Any:
    """The layer that serves in the place of `stored`, which may be itself."""
    bits = stored.layer.format.bits
    size = stored.layer.group_size(stored.in_features)
    whole = size == stored.in_features
    served: Any = stored
    if bits == 4 and (whole or size % int4.GROUP == 0):
        weight = stored.unpacked()
        served = int4_linear(stored, weight.integers, weight.scales, weight.zeros, device)
    elif bits == 8 and whole and bool((stored.zeros() == 128).all()):
        weight = stored.unpacked()
        integers = (weight.integers ^ 128).view(torch.int8)
        served = int8_linear(stored, integers, weight.scales.flatten(), device)
    elif device == "cpu" and native.library() is not None:
        served = BlockLinear(stored, stored.dequantised(torch.bfloat16))
    order = stored.order
    return served if served is stored or order is None else OrderedLinear(served, order)


def _put_stored(model: Any, layers: Mapping[str, StoredLayer]) -> None:
    modules = dict(model.named_modules())
    for name, path in _paths(model, layers).items():
        linear = modules.get(path)
        if linear is None:
            continue  # Transformers reports its tensors as unexpected.
        if type(linear) is not nn.Linear:
            raise refused(
                f"{name} is stored quantised, but is no plain linear layer of"
                f" {type(model).__name__}"
            )
        parent, _, last = path.rpartition(".")
        setattr(modules[parent], last, StoredLinear(linear, layers[name]))


def _paths(model: Any, layers: Mapping[str, StoredLayer]) -> dict[str, str]:
    """The layers' paths in the model by their names in the files, as Transformers maps the names of
    weights. Raises ModelUnsupported for those that it joins with others."""
    conversions = get_model_conversion_mapping(model)
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    known = model.state_dict()
    paths = {}
    for name in layers:
        weight, joined = rename_source_key(
            f"{name}.weight", renamings, converters, model.base_model_prefix, known
        )
        if joined is not None:
            raise refused(
                f"{name} is stored quantised, and {type(model).__name__} joins it with others, as it"
                " does with experts"
            )
        paths[name] = weight.removesuffix(".weight")
    return paths
