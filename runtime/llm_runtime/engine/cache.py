"""Keys and values of running sequences: one slot each, preallocated."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What one slot holds. `length` is in tokens."""

    layers: int
    kv_heads: int
    head_size: int
    length: int
    dtype: torch.dtype

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot: keys and values of `length` tokens in every layer."""
        return 2 * self.layers * self.kv_heads * self.head_size * self.length * int(self.dtype.itemsize)


class KvCache:
    """`keys[layer]` and `values[layer]` have shape [slots, kv_heads, length, head_size]."""

    def __init__(self, shape: CacheShape, slots: int, device: Any) -> None:
        self.shape, self.slots = shape, slots
        size = (slots, shape.kv_heads, shape.length, shape.head_size)
        # Zeros, not garbage: a masked score of NaN would stay NaN. On a CPU untouched pages of zeros take no memory.
        self.keys = [torch.zeros(size, dtype=shape.dtype, device=device) for _ in range(shape.layers)]
        self.values = [torch.zeros(size, dtype=shape.dtype, device=device) for _ in range(shape.layers)]

    def write(self, layer: int, slots: Any, positions: Any, keys: Any, values: Any) -> None:
        """Store token i's keys and values, [tokens, kv_heads, head_size], at (slots[i], positions[i])."""
        self.keys[layer][slots, :, positions] = keys
        self.values[layer][slots, :, positions] = values

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of slot `source` to slot `target`."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :length].copy_(tensor[source, :, :length])
