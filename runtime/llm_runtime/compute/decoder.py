"""All decoder layers of a model in one native call (decoder.cpp), for a step without adapters.

Between two kernels of a step with one row, Python takes as long as the kernels do. Only models of
reviewed classes are run so, and only where every part of every layer is a kernel of ours: fused
norms, gates and attention (`fused`), and linear layers in blocks (`products`).
"""

import ctypes
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from transformers.modeling_outputs import BaseModelOutputWithPast

from llm_runtime.compute import fused, native
from llm_runtime.compute.attention import AttentionMetadata
from llm_runtime.compute.cache import KvCache
from llm_runtime.compute.products import BlockLinear, Product

log = logging.getLogger(__name__)

MODELS = {"LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model"}
"""Classes whose forward is: embedding, layers, norm; and whose layers are as decoder.cpp says."""


class NotJoined(Exception):
    """A part of a layer is not a kernel of ours."""


def joinable(model: Any) -> bool:
    """Whether all layers of `model` run in one call if each of their parts is a kernel."""
    return type(getattr(model, "model", None)).__name__ in MODELS and native.library() is not None


def join_layers(model: Any) -> bool:
    """Run all layers of `model` in one call from now on, where every part of them is a kernel.
    Call it after `fuse`. Returns whether it is so."""
    if not joinable(model):
        return False
    inner = model.model
    try:
        decoder = Decoder(inner)
    except NotJoined as reason:
        log.info("layers run one by one", extra={"reason": str(reason)})
        return False
    inner.forward = partial(_forward, inner, decoder)
    return True


class Decoder:
    """The kernels of all layers of a model, with the addresses of its weights. Raises NotJoined."""

    def __init__(self, inner: Any) -> None:
        layers = list(inner.layers)
        first = layers[0].self_attn
        self._kept = list[Any]()
        """What the kernels know by address."""
        self._dtype = inner.dtype
        self._format = native.KERNELS[inner.dtype]
        self._epsilons = set[float]()
        self._layers = (native.DecoderLayerArguments * len(layers))(*map(self._layer, layers))
        if len(self._epsilons) != 1:
            raise NotJoined("norms differ in epsilon")
        self._cache: KvCache | None = None
        self._group = first.num_key_value_groups
        self._arguments = native.DecoderArguments(
            layers=ctypes.addressof(self._layers),
            count=len(layers),
            hidden=inner.config.hidden_size,
            gates=layers[0].mlp.gate_proj.out_features,
            heads=first.q_proj.out_features // first.head_dim,
            kv_heads=first.k_proj.out_features // first.head_dim,
            head_size=first.head_dim,
            epsilon=self._epsilons.pop(),
            scale=first.scaling,
        )

    def run(self, x: Any, step: AttentionMetadata, rotation: tuple[Any, Any]) -> None:
        """Put `x` [1, rows, hidden] through all layers, in place. The last norm comes after.
        `rotation`: cosines and sines of RoPE, [1, rows, head_size]."""
        if step.cache is not self._cache:
            self._attach(step.cache)
        spans = step.native.arguments
        spans.span_tiles = step.native.tiles(self._group).data_ptr()
        spans.cosines, spans.sines = (part.data_ptr() for part in step.native.rotation(rotation))
        native.call(
            "llm_decode", self._format, ctypes.addressof(self._arguments), ctypes.addressof(spans), x.data_ptr(),
        )  # fmt: skip

    def _attach(self, cache: KvCache) -> None:
        for layer, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
            layer.keys = keys.data_ptr()
            layer.values = values.data_ptr()
        formats = native.ATTENTION[self._dtype, cache.shape.dtype]
        self._arguments.attention = native.address("llm_attention", formats)
        self._cache = cache

    def _layer(self, layer: Any) -> native.DecoderLayerArguments:
        attention = layer.self_attn
        (query_key_value,) = _parts(attention, fused.attention)
        (gate_up,) = _parts(layer.mlp, fused.gated)
        return native.DecoderLayerArguments(
            attention_norm=self._norm(layer.input_layernorm),
            query_norm=self._norm(getattr(attention, "q_norm", None)),
            key_norm=self._norm(getattr(attention, "k_norm", None)),
            gate_norm=self._norm(layer.post_attention_layernorm),
            attention_in=self._projection(query_key_value.product),
            attention_out=self._projection(_product(attention.o_proj)),
            gate_in=self._projection(gate_up.product),
            gate_out=self._projection(_product(layer.mlp.down_proj)),
            window=fused.window_of(attention),
        )

    def _norm(self, module: Any) -> int | None:
        if module is None:
            return None
        epsilon, offset = _parts(module, fused.norm)
        if offset:
            raise NotJoined("a norm has an offset")
        self._epsilons.add(epsilon)
        self._kept.append(module.weight)
        address: int = module.weight.data_ptr()
        return address

    def _projection(self, product: Product | None) -> native.ProjectionArguments:
        if product is None or self._format not in product.formats.values():
            raise NotJoined("a linear layer is not in blocks")
        self._kept.append(product)
        return native.ProjectionArguments(
            product=native.address(product.name, self._format),
            layers=ctypes.addressof(product.layers),
            count=len(product.layers),
            inputs=product.inputs,
        )


def _product(linear: Any) -> Product | None:
    return linear.product if isinstance(linear, BlockLinear) else None


def _parts(module: Any, function: Any) -> Sequence[Any]:
    """What `function` is bound to beside `module`, whose forward it must be."""
    forward = vars(module).get("forward")
    if not isinstance(forward, partial) or forward.func is not function:
        raise NotJoined(f"{type(module).__name__} is not fused")
    return forward.args[1:]


def _forward(
    inner: Any,
    decoder: Decoder,
    input_ids: Any = None,
    position_ids: Any = None,
    paged_step: Any = None,
    **options: Any,
) -> Any:
    if paged_step is None or paged_step.adapted:
        if paged_step is not None:
            options["paged_step"] = paged_step
        return type(inner).forward(inner, input_ids=input_ids, position_ids=position_ids, **options)
    x = inner.embed_tokens(input_ids)
    decoder.run(x, paged_step, inner.rotary_emb(x, position_ids=position_ids))
    return BaseModelOutputWithPast(last_hidden_state=inner.norm(x))
