"""The forward pass: a batch of spans through a Transformers model, with attention over the slots of the KV cache.

All tokens of a step are packed into one row, [1, tokens], so linear layers see no padding. Attention is replaced
through Transformers' AttentionInterface: each layer writes its new keys and values into the cache, then single tokens
attend in one batched call over a slice of it, and longer spans one by one. The name is unknown to Transformers' mask
factory, which therefore makes no mask.
"""

import inspect
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from llm_runtime.engine.cache import KvCache
from llm_runtime.engine.lora import AdapterSet
from llm_runtime.engine.sampler import Sampler
from llm_runtime.engine.scheduler import Batch, Span
from llm_runtime.engine.sequence import Sampled
from llm_runtime.errors import ModelUnsupported

ATTENTION = "llm_runtime_slots"
_IGNORED = {"position_ids", "is_causal", "use_cache", "output_attentions", "cache_position", "logits_to_keep"}
"""Keyword arguments of attention functions that change nothing here."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A span of several tokens: rows [begin, end) of the packed step, `mask` None when nothing lies before it."""

    begin: int
    end: int
    slot: int
    length: int
    mask: Any


@dataclass(frozen=True, slots=True)
class _Step:
    """What attention must know of a step. Single tokens are the first `singles` rows and read slots [0, height)."""

    cache: KvCache
    slots: Any
    positions: Any
    singles: int
    height: int
    width: int
    rows: Any
    """Slot of each single token, None when they are 0, 1, 2, … (nearly always)."""
    mask: Any
    chunks: tuple[_Chunk, ...]


class TransformersRunner:
    """Runs batches through `model` (a causal language model of Transformers) and samples."""

    def __init__(self, model: Any, cache: KvCache, sampler: Sampler, adapters: AdapterSet | None = None) -> None:
        self.model, self.cache, self.sampler, self.adapters = model, cache, sampler, adapters
        model.set_attn_implementation(ATTENTION)
        self._selects_rows = "logits_to_keep" in inspect.signature(model.forward).parameters

    def forward(self, batch: Batch) -> list[Sampled]:
        """Compute a step and choose a token for each span that samples, in order."""
        with torch.inference_mode():
            for move in batch.moves:
                self.cache.move(move.source, move.target, move.length)
            logits = self.logits(batch)
            sequences = [span.sequence for span in batch.spans if span.samples]
            return self.sampler.sample(logits, sequences) if sequences else []

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load or replace an adapter, between steps. Raises errors.Fatal subclasses, with nothing changed."""
        if self.adapters is None:
            raise ModelUnsupported("this engine was built without adapters")
        self.adapters.load(name, folder)

    def drop_adapter(self, name: str) -> None:
        """Forget an adapter, between steps."""
        if self.adapters is not None:
            self.adapters.drop(name)

    def logits(self, batch: Batch) -> Any:
        """Logits after the last token of each sampling span, [sampling spans, vocabulary]."""
        device = self.model.device
        if self.adapters is not None:
            self.adapters.select((span.sequence.adapter, span.count) for span in batch.spans)
        ids = [token for span in batch.spans for token in _tokens(span)]
        rows = torch.tensor(_sampling_rows(batch.spans), dtype=torch.long, device=device)
        step = _step(batch.spans, self.cache, self.model.dtype, device)
        options = {"logits_to_keep": rows} if self._selects_rows else {}
        logits = self.model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=step.positions.unsqueeze(0),
            use_cache=False,
            slot_step=step,
            **options,
        ).logits[0]
        return logits if self._selects_rows else logits[rows]


def slot_attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None,
    dropout: float = 0.0, slot_step: _Step | None = None, **options: Any,
) -> tuple[Any, None]:  # fmt: skip
    """Attention of one layer. `query`: [1, heads, tokens, head_size]; returns [1, tokens, heads, head_size]."""
    strange = sorted(name for name, option in options.items() if _is_set(option) and name not in _IGNORED)
    if slot_step is None or strange:
        raise NotImplementedError(f"attention with {', '.join(strange) or 'no step'}")
    step, layer = slot_step, module.layer_idx
    query, key, value = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
    step.cache.write(layer, step.slots, step.positions, key, value)
    keys, values = step.cache.keys[layer], step.cache.values[layer]
    parts = [_attend_singles(step, query[: step.singles], keys, values, scaling)] if step.singles else []
    for chunk in step.chunks:
        rows = slice(chunk.begin, chunk.end)
        parts.append(_attend_chunk(chunk, query[rows], key[rows], value[rows], keys, values, scaling))
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).unsqueeze(0), None


def _is_set(option: Any) -> bool:
    return option is not None and option is not False


AttentionInterface.register(ATTENTION, slot_attention)


def _attend_singles(step: _Step, query: Any, keys: Any, values: Any, scaling: float | None) -> Any:
    """All single tokens at once, [singles, heads, head_size]."""
    _, heads, size = query.shape
    if step.rows is not None:
        spread = query.new_zeros(step.height, heads, size)
        spread[step.rows] = query
        query = spread
    # Query heads that share a key head lie along the query axis: no repeated copy of keys and values.
    grouped = query.reshape(step.height, keys.shape[1], heads // keys.shape[1], size)
    keys, values = keys[: step.height, :, : step.width], values[: step.height, :, : step.width]
    out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=step.mask, scale=scaling)
    out = out.reshape(step.height, heads, values.shape[-1])
    return out if step.rows is None else out[step.rows]


def _attend_chunk(
    chunk: _Chunk, query: Any, key: Any, value: Any, keys: Any, values: Any, scaling: float | None
) -> Any:
    """One span of several tokens, [tokens, heads, head_size]."""
    if chunk.mask is not None:
        key, value = keys[chunk.slot, :, : chunk.length], values[chunk.slot, :, : chunk.length]
    else:
        key, value = key.transpose(0, 1), value.transpose(0, 1)
    out = F.scaled_dot_product_attention(
        query.transpose(0, 1).unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0), attn_mask=chunk.mask,
        is_causal=chunk.mask is None, scale=scaling, enable_gqa=query.shape[1] != key.shape[0],
    )  # fmt: skip
    return out[0].transpose(0, 1)


def _tokens(span: Span) -> list[int]:
    return span.sequence.token_ids[span.start : span.start + span.count]


def _sampling_rows(spans: tuple[Span, ...]) -> list[int]:
    rows, end = [], 0
    for span in spans:
        end += span.count
        if span.samples:
            rows.append(end - 1)
    return rows


def _step(spans: tuple[Span, ...], cache: KvCache, dtype: Any, device: Any) -> _Step:
    slots = [span.slot for span in spans for _ in range(span.count)]
    positions = [position for span in spans for position in range(span.start, span.start + span.count)]
    # A prompt's last bit of budget may be one token too; behind a chunk it is one itself.
    singles = list(takewhile(lambda span: span.count == 1, spans))
    lengths = [0] * (max((span.slot for span in singles), default=-1) + 1)
    for span in singles:
        lengths[span.slot] = span.start + 1
    compact = len(lengths) == len(singles) and all(span.slot == row for row, span in enumerate(singles))
    return _Step(
        cache=cache,
        slots=torch.tensor(slots, device=device),
        positions=torch.tensor(positions, device=device),
        singles=len(singles),
        height=len(lengths),
        width=max(lengths, default=0),
        rows=None if compact else torch.tensor([span.slot for span in singles], device=device),
        mask=_length_mask(lengths, dtype, device) if singles else None,
        chunks=tuple(_chunks(spans[len(singles) :], len(singles), device)),
    )


def _length_mask(lengths: list[int], dtype: Any, device: Any) -> Any:
    """Additive, [slots, 1, 1, width]. A slot without a token keeps one position: an empty softmax would be NaN."""
    ends = torch.tensor(lengths, device=device).clamp_(min=1).view(-1, 1, 1, 1)
    beyond = torch.arange(max(lengths), device=device) >= ends
    return torch.zeros(beyond.shape, dtype=dtype, device=device).masked_fill_(beyond, float("-inf"))


def _chunks(spans: tuple[Span, ...], begin: int, device: Any) -> list[_Chunk]:
    chunks = []
    for span in spans:
        end, length = begin + span.count, span.start + span.count
        mask = torch.ones(span.count, length, dtype=torch.bool, device=device).tril_(span.start) if span.start else None
        chunks.append(_Chunk(begin, end, span.slot, length, mask))
        begin = end
    return chunks
