"""The key-value cache: keys and values of running sequences and reusable prefixes,
in blocks of BLOCK_TOKENS tokens."""

import math
import mmap
from dataclasses import dataclass
from typing import Any

import torch

from llm_runtime.engine.blocks import BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What a layer caches for one token: a key of `head_size` and a value of `value_size` for each
    key head."""

    kv_heads: int
    head_size: int
    value_size: int


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What all layers cache for one token."""

    layers: tuple[LayerShape, ...]
    dtype: torch.dtype

    @property
    def block_bytes(self) -> int:
        """Bytes of one block: keys and values of BLOCK_TOKENS tokens in every layer."""
        numbers = sum(
            layer.kv_heads * (layer.head_size + layer.value_size) for layer in self.layers
        )
        return numbers * BLOCK_TOKENS * int(self.dtype.itemsize)


class KvCache:
    """A pair of tensors for each layer.

    `keys[layer]` is [blocks, kv_heads, head_size, BLOCK_TOKENS], transposed because the CPU kernel
    reads it that way. `values[layer]` is [blocks, kv_heads, BLOCK_TOKENS, value_size].
    """

    def __init__(self, shape: CacheShape, blocks: int, device: Any) -> None:
        self.shape = shape
        self.blocks = blocks
        options = {"dtype": shape.dtype, "device": device}
        self.keys = [
            _zeros((blocks, at.kv_heads, at.head_size, BLOCK_TOKENS), **options)
            for at in shape.layers
        ]
        self.values = [
            _zeros((blocks, at.kv_heads, BLOCK_TOKENS, at.value_size), **options)
            for at in shape.layers
        ]

    def write(self, layer: int, blocks: Any, offsets: Any, keys: Any, values: Any) -> None:
        """Store token i's keys and values, [tokens, kv_heads, head_size],
        at (blocks[i], offsets[i])."""
        self.keys[layer][blocks, :, :, offsets] = keys.to(self.shape.dtype)
        self.values[layer][blocks, :, offsets] = values.to(self.shape.dtype)

    def read(self, layer: int, blocks: Any, dtype: Any) -> tuple[Any, Any]:
        """Keys and values of block lists [rows, width],
        as two [rows, kv_heads, width * BLOCK_TOKENS, size] of `dtype`."""
        rows, width = blocks.shape
        at = self.shape.layers[layer]
        keys = self.keys[layer][blocks].permute(0, 2, 1, 4, 3)
        values = self.values[layer][blocks].permute(0, 2, 1, 3, 4)
        tokens = width * BLOCK_TOKENS
        return (
            keys.reshape(rows, at.kv_heads, tokens, at.head_size).to(dtype),
            values.reshape(rows, at.kv_heads, tokens, at.value_size).to(dtype),
        )


def _zeros(shape: tuple[int, ...], dtype: Any, device: Any) -> Any:
    """A tensor of zeros. Uninitialised memory would not do: a NaN stays NaN when it is masked.

    On a CPU the memory is mapped anonymously, so pages are allocated when they are first written,
    and a cache takes only as much memory as has been used. torch.zeros would write all pages.
    """
    size = math.prod(shape) * int(dtype.itemsize)
    if torch.device(device).type != "cpu" or not size:
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
