"""Embeddings on a CPU in half the memory, or none, where that changes no number.

Most checkpoints are stored in bfloat16 and computed in float32. A row of the embedding is only
looked up, so it can stay as it was stored, and is widened when it is read: the same numbers, bit for
bit. Where the output layer shares the weight and has it in blocks (`products`), rows are read from
there, and the embedding goes; so it does where that layer was quantised (`quantised`).
"""

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llm_runtime.compute.products import ROWS, BlockLinear, as_stored
from llm_runtime.machine.heap import Replaced

log = logging.getLogger(__name__)

MODELS = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
"""Classes whose code was reviewed: it calls the embedding, and never asks for its weight."""


class StoredEmbedding(nn.Module):  # type: ignore[misc]
    """An `nn.Embedding` whose rows are bfloat16 in memory and float32 when they are looked up."""

    def __init__(self, embedding: Any, weight: Any) -> None:
        super().__init__()
        self.num_embeddings = embedding.num_embeddings
        self.embedding_dim = embedding.embedding_dim
        # Not a parameter: of those the model's number format is read.
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, ids: Any) -> Any:
        return F.embedding(ids, self.weight).float()


class SharedEmbedding(nn.Module):  # type: ignore[misc]
    """An `nn.Embedding` whose rows are those of the output layer's weight, whose class has `rows`."""

    def __init__(self, embedding: Any, layer: Any) -> None:
        super().__init__()
        self.num_embeddings = embedding.num_embeddings
        self.embedding_dim = embedding.embedding_dim
        self._dtype = embedding.weight.dtype
        self._rows = layer.rows  # A bound method: the layer is not a part of this module.

    def forward(self, ids: Any) -> Any:
        return self._rows(ids).to(self._dtype)


def shrink_embeddings(model: Any) -> int:
    """Store embeddings once and as bfloat16 where that loses nothing. Returns the bytes saved.
    Call it after `pack_linears`: a weight that a layer still shares stays as it is."""
    if type(model).__name__ not in MODELS or model.dtype not in (torch.float32, torch.bfloat16):
        return 0
    output = model.get_output_embeddings()
    saved = 0
    replaced = Replaced()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Embedding or not _alone(model, child):
                continue
            smaller = _smaller(child, output)
            if smaller is not None:
                size = child.weight.nbytes
                setattr(parent, name, smaller)
                del child
                saved += size - sum(buffer.nbytes for buffer in smaller.buffers())
                replaced.add(size)
    if saved:
        log.info("embeddings take less memory", extra={"mib_saved": saved >> 20})
    return saved


def _smaller(embedding: Any, output: Any) -> Any:
    """The embedding that takes `embedding`'s place; None where there is no smaller one."""
    weight = embedding.weight.detach()
    if isinstance(output, BlockLinear) and output.scale is None and _has_rows(output, weight):
        return SharedEmbedding(embedding, output)
    narrow = as_stored(weight) if weight.dtype is torch.float32 else None
    return None if narrow is None else StoredEmbedding(embedding, narrow)


def _has_rows(layer: BlockLinear, weight: Any) -> bool:
    """Whether the layer's weight is `weight`, to the last bit."""
    if (layer.out_features, layer.in_features) != tuple(weight.shape):
        return False
    return all(
        torch.equal(
            layer.rows(torch.arange(start, min(start + ROWS, len(weight)))).to(weight.dtype),
            weight[start : start + ROWS],
        )
        for start in range(0, len(weight), ROWS)
    )


def _alone(model: Any, embedding: Any) -> bool:
    """Whether it is a plain look-up in host memory of a weight that no other layer uses."""
    if embedding.weight.device.type != "cpu" or embedding.max_norm is not None:
        return False
    place = embedding.weight.data_ptr()
    owners = [
        module
        for module in model.modules()
        for own in module.parameters(recurse=False)
        if own.data_ptr() == place
    ]
    return owners == [embedding]
