"""Embeddings on a CPU in half the memory, where the checkpoint holds no more than that.

Most checkpoints are stored in bfloat16 and computed in float32. A row of the embedding is only
looked up, so it can stay as it was stored, and is widened when it is read: the same numbers, bit for
bit. Where the output layer shares the weight and is packed, the embedding is what is held twice.
"""

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llm_runtime.machine.heap import Replaced

log = logging.getLogger(__name__)

MODELS = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
"""Classes whose code was reviewed: it calls the embedding, and never asks for its weight."""
ROWS = 4096
"""Compared at a time: a whole copy in float32 would be the peak of loading."""


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


def shrink_embeddings(model: Any) -> int:
    """Store embeddings as bfloat16 where that loses nothing. Returns the bytes saved.
    Call it after `pack_linears`: a weight that a layer still shares stays as it is."""
    if type(model).__name__ not in MODELS or model.dtype is not torch.float32:
        return 0
    saved = 0
    replaced = Replaced()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Embedding or not _alone(model, child):
                continue
            weight = _as_stored(child.weight.detach())
            if weight is not None:
                size = child.weight.nbytes
                setattr(parent, name, StoredEmbedding(child, weight))
                del child
                saved += size - weight.nbytes
                replaced.add(size)
    if saved:
        log.info("embeddings stay as they were stored", extra={"mib_saved": saved >> 20})
    return saved


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


def _as_stored(weight: Any) -> Any:
    """`weight` as bfloat16; None where that would change a number."""
    narrow = torch.empty(weight.shape, dtype=torch.bfloat16)
    for start in range(0, len(weight), ROWS):
        rows = weight[start : start + ROWS]
        narrow[start : start + ROWS] = rows
        if not torch.equal(narrow[start : start + ROWS].float(), rows):
            return None
    return narrow
