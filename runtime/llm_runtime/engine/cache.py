"""Keys and values of running sequences, and of beginnings worth keeping: blocks of a fixed number of tokens."""

from dataclasses import dataclass
from typing import Any

import torch

from llm_runtime.engine.blocks import BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What one token leaves behind in every layer."""

    layers: int
    kv_heads: int
    head_size: int
    dtype: torch.dtype

    @property
    def block_bytes(self) -> int:
        """Bytes of one block: keys and values of BLOCK_TOKENS tokens in every layer."""
        return 2 * self.layers * self.kv_heads * self.head_size * BLOCK_TOKENS * int(self.dtype.itemsize)


class KvCache:
    """One pair of tensors for each layer.

    `keys[layer]` is [blocks, kv_heads, head_size, BLOCK_TOKENS], transposed as the CPU kernel reads it; `values[layer]`
    is [blocks, kv_heads, BLOCK_TOKENS, head_size].
    """

    def __init__(self, shape: CacheShape, blocks: int, device: Any) -> None:
        self.shape, self.blocks = shape, blocks
        keys = (blocks, shape.kv_heads, shape.head_size, BLOCK_TOKENS)
        values = (blocks, shape.kv_heads, BLOCK_TOKENS, shape.head_size)
        # Zeros, not garbage: a masked score of NaN would stay NaN. On a CPU untouched pages of zeros take no memory.
        self.keys = [torch.zeros(keys, dtype=shape.dtype, device=device) for _ in range(shape.layers)]
        self.values = [torch.zeros(values, dtype=shape.dtype, device=device) for _ in range(shape.layers)]

    def write(self, layer: int, blocks: Any, offsets: Any, keys: Any, values: Any) -> None:
        """Store token i's keys and values, [tokens, kv_heads, head_size], at (blocks[i], offsets[i])."""
        self.keys[layer][blocks, :, :, offsets] = keys
        self.values[layer][blocks, :, offsets] = values

    def read(self, layer: int, blocks: Any) -> tuple[Any, Any]:
        """Keys and values of block lists [rows, width], as two [rows, kv_heads, width * BLOCK_TOKENS, head_size]."""
        rows, width = blocks.shape
        keys = self.keys[layer][blocks].permute(0, 2, 1, 4, 3)
        values = self.values[layer][blocks].permute(0, 2, 1, 3, 4)
        size = (rows, self.shape.kv_heads, width * BLOCK_TOKENS, self.shape.head_size)
        return keys.reshape(size), values.reshape(size)
