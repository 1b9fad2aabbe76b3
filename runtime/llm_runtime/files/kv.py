"""Size of the keys and values that a token adds to the cache, computed from config.json.
Needs no torch."""

from collections.abc import Mapping
from typing import Any

_NO_CACHE = {"mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm", "recurrent_gemma", "openai-gpt"}
"""Model types whose cache does not grow with the length: states of a fixed size, or nothing."""
_ATTENDING = {"full_attention", "sliding_attention", "attention", "global", "local"}


def token_numbers(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Cached numbers per token in layers that keep all tokens, and in those that keep one chunk;
    (0, 0) if unknown.

    Sliding windows count as full layers, because the batched runner's blocks keep every token of
    every layer.
    """
    layers = first_number(settings, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    if not layers or settings.get("model_type") in _NO_CACHE:
        return 0, 0
    numbers = _layer_numbers(settings)
    kinds = _kinds(settings, layers)
    return numbers * sum(kind in _ATTENDING for kind in kinds), numbers * kinds.count(
        "chunked_attention"
    )


def _layer_numbers(settings: Mapping[str, Any]) -> int:
    heads = first_number(
        settings, "num_attention_heads", "n_head", "n_heads", "attention_heads", "num_heads"
    )
    hidden = first_number(settings, "hidden_size", "n_embd", "d_model", "word_embed_proj_dim")
    if not heads:
        return 0
    if latent := first_number(settings, "kv_lora_rank"):
        # Multi-head latent attention (DeepSeek-V2): all heads read the same compressed vector.
        return latent + first_number(settings, "qk_rope_head_dim")
    size = first_number(settings, "head_dim") or hidden // heads
    return 2 * size * _key_heads(settings, heads)


def _key_heads(settings: Mapping[str, Any], heads: int) -> int:
    if settings.get("multi_query") and not settings.get("new_decoder_architecture"):
        return 1
    return first_number(settings, "num_key_value_heads", "num_kv_heads") or heads


def _kinds(settings: Mapping[str, Any], layers: int) -> list[str]:
    if isinstance(kinds := settings.get("layer_types"), list):
        return kinds
    if period := first_number(settings, "attn_layer_period"):
        offset = first_number(settings, "attn_layer_offset")
        return ["full_attention" if i % period == offset else "state" for i in range(layers)]
    if isinstance(indices := settings.get("attn_layer_indices"), list):
        return ["full_attention"] * len(indices)
    return ["full_attention"] * layers


def first_number(settings: Mapping[str, Any], *names: str) -> int:
    """The first of the fields `names` that is an integer, else 0.
    Architectures name the same thing differently."""
    values = (settings.get(name) for name in names)
    return next(
        (value for value in values if isinstance(value, int) and not isinstance(value, bool)), 0
    )
