"""Operator fusion on a CPU: norms, gated activations,
and attention with its rotation become one call each.

A layer of a small model spends a third of its time between the matrix products, in operations of a
few microseconds that Python starts one by one. Modules keep their place, names and weights. Only
`forward` is replaced, and only where it is known what it computes. Norms and gates are compared
with the original on random input; attention is replaced only in classes whose code was reviewed.
The runner's logit check comes after all of it.
"""

import logging
from collections import Counter
from functools import partial
from typing import Any

import torch

from llm_runtime.compute import native
from llm_runtime.compute.attention import Rule, attend_native
from llm_runtime.compute.native import KERNELS
from llm_runtime.compute.products import Together

log = logging.getLogger(__name__)

ATTENTIONS = {"LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention"}
"""Classes whose forward is: projections, optional norms of heads,
RoPE by halves, attention, output projection."""
_ROWS = 3


def fuse(model: Any) -> Counter[str]:
    """Replace every `forward` that can be fused.
    Returns counts by kind; none without the compiled kernels."""
    done: Counter[str] = Counter()
    if model.device.type != "cpu" or model.dtype not in KERNELS or native.library() is None:
        return done
    with torch.inference_mode():
        for module in model.modules():
            done["norms"] += _fuse_norm(module, model.dtype)
            done["gates"] += _fuse_gate(module, model.dtype)
            done["attentions"] += _fuse_attention(module)
    log.info("operations fused", extra=dict(done))
    return done


def _fuse_norm(module: Any, dtype: Any) -> bool:
    weight: Any = getattr(module, "weight", None)
    epsilon: Any = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or weight is None or epsilon is None:
        return False
    if weight.dim() != 1 or weight.dtype != dtype:
        return False
    # Gemma's norms store weight - 1.
    ways = (partial(norm, module, float(epsilon), offset) for offset in (0.0, 1.0))
    return any(_try(module, way, len(weight), dtype) for way in ways)


def _fuse_gate(module: Any, dtype: Any) -> bool:
    gate: Any = getattr(module, "gate_proj", None)
    if not hasattr(gate, "in_features") or not all(
        hasattr(module, name) for name in ("up_proj", "down_proj")
    ):
        return False
    both = Together((gate, module.up_proj))
    return _try(module, partial(gated, module, both), gate.in_features, dtype)


def _fuse_attention(module: Any) -> bool:
    if (
        type(module).__name__ not in ATTENTIONS
        or module.head_dim % 16
        or module.head_dim > native.limit("most_head")
    ):
        return False
    projections = Together((module.q_proj, module.k_proj, module.v_proj))
    module.forward = partial(attention, module, projections)
    return True


def _try(module: Any, forward: Any, size: int, dtype: Any) -> bool:
    """Use `forward` if, on a random [1, _ROWS, size],
    it computes the same as the module up to rounding."""
    sample = torch.randn(1, _ROWS, size).to(dtype)
    try:
        expected = module(sample).float()
        actual = forward(sample).float()
    except (RuntimeError, TypeError, AttributeError):
        return False
    tolerance = 2e-2 if dtype is torch.bfloat16 else 1e-5
    if expected.shape != actual.shape or (expected - actual).norm() > tolerance * expected.norm():
        return False
    module.forward = forward
    return True


def window_of(module: Any) -> int:
    """The sliding window of one of ATTENTIONS; 0 for none."""
    # Mistral's modules read it from the configuration at each call,
    # the others keep it as an attribute.
    holder = module.config if type(module).__name__ == "MistralAttention" else module
    return getattr(holder, "sliding_window", None) or 0


def norm(module: Any, epsilon: float, offset: float, hidden_states: Any) -> Any:
    """The forward of a fused RMSNorm."""
    hidden_states = hidden_states.contiguous()
    out = torch.empty_like(hidden_states)
    size = hidden_states.shape[-1]
    native.call(
        "llm_rms_norm", KERNELS[out.dtype], hidden_states.data_ptr(), module.weight.data_ptr(), out.data_ptr(),
        out.numel() // size, size, torch.get_num_threads(), epsilon, offset,
    )  # fmt: skip
    return out


def gated(module: Any, both: Together, hidden_states: Any) -> Any:
    """The forward of a fused MLP with a gate."""
    gate, up = both(hidden_states)
    native.call(
        "llm_gate_silu", KERNELS[gate.dtype], gate.data_ptr(), up.data_ptr(), gate.data_ptr(),
        gate.numel(), torch.get_num_threads(),
    )  # fmt: skip
    return module.down_proj(gate)


def attention(
    module: Any, projections: Together, hidden_states: Any, position_embeddings: Any = None,
    attention_mask: Any = None, past_key_values: Any = None, paged_step: Any = None, **options: Any,
) -> tuple[Any, None]:  # fmt: skip
    """The forward of fused attention; without `paged_step`, the module's own."""
    if paged_step is None:
        result: tuple[Any, None] = type(module).forward(
            module, hidden_states, position_embeddings, attention_mask, past_key_values, **options
        )
        return result
    shape = (hidden_states.shape[1], -1, module.head_dim)
    query, key, value = (part.view(shape) for part in projections(hidden_states))
    if hasattr(module, "q_norm"):
        query = module.q_norm(query)
        key = module.k_norm(key)
    rule = Rule(module.scaling, window_of(module))
    query, key, value = (part.transpose(0, 1) for part in (query, key, value))
    out = attend_native(paged_step, module.layer_idx, rule, query, key, value, position_embeddings)
    return module.o_proj(out.view(1, shape[0], -1)), None
