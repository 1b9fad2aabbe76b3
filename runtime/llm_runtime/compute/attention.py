"""Paged attention over the blocks of the KV cache (Kwon et al. 2023, vLLM), in place of
Transformers' own attention.

Transformers' AttentionInterface passes each layer's queries, keys and values to `paged_attention`.
It is registered under a name that Transformers' mask factory does not know, so no mask is built. On
a CPU, one call of the compiled kernel computes a layer. Elsewhere, and without the kernel, torch
gathers the blocks: spans of a single token (decode) are computed together, longer spans (prefill)
one after another.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from llm_runtime.compute import native
from llm_runtime.compute.cache import KvCache
from llm_runtime.engine.blocks import BLOCK_TOKENS, BlockPool
from llm_runtime.engine.scheduler import Span

ATTENTION = "llm_runtime_paged"
_IGNORED = {
    "position_ids",
    "is_causal",
    "use_cache",
    "output_attentions",
    "cache_position",
    "logits_to_keep",
}
"""Keyword arguments of attention functions that have no effect here."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How a layer's attention differs from a plain softmax of scaled products."""

    scale: float
    window: int = 0
    """Sliding window: a token attends to itself and the `window - 1` tokens before it.
    0 means to all before it."""
    softcap: float = 0.0
    """Scores become cap * tanh(score / cap). 0 means that they stay as they are."""
    sinks: Any = None
    """Attention sinks, [heads]: an extra score in each softmax that belongs to no token
    (GPT-OSS)."""


class AttentionMetadata:
    """Where each span's tokens lie in the cache during a step. It is the same for every layer."""

    def __init__(
        self, spans: tuple[Span, ...], cache: KvCache, device: Any, *, adapted: bool = False
    ) -> None:
        """`adapted`: adapters take part, so linear layers must be called one by one."""
        self.cache = cache
        self.adapted = adapted
        self.device = device
        self.starts = [span.start for span in spans]
        self.counts = [span.count for span in spans]
        self.ends = list(accumulate(self.counts))
        self.tables = [
            span.sequence.blocks.numbers[: BlockPool.needed(span.start + span.count)]
            for span in spans
        ]
        self.positions = [p for span in spans for p in range(span.start, span.start + span.count)]
        self.offsets = [position % BLOCK_TOKENS for position in self.positions]
        self.blocks = [
            table[position // BLOCK_TOKENS]
            for span, table in zip(spans, self.tables, strict=True)
            for position in range(span.start, span.start + span.count)
        ]

    @cached_property
    def native(self) -> "NativeStep":
        return NativeStep(self)

    @cached_property
    def row_blocks(self) -> Any:
        return torch.tensor(self.blocks, device=self.device)

    @cached_property
    def row_offsets(self) -> Any:
        return torch.tensor(self.offsets, device=self.device)

    @cached_property
    def singles(self) -> int:
        """How many spans at the beginning have a single token: the scheduler puts these first."""
        return next(
            (index for index, count in enumerate(self.counts) if count > 1), len(self.counts)
        )

    def table(self, first: int, last: int) -> Any:
        """Block lists of spans [first, last), padded with their own first block to one width."""
        tables = self.tables[first:last]
        width = max(map(len, tables))
        return torch.tensor(
            [table + table[:1] * (width - len(table)) for table in tables], device=self.device
        )


class NativeStep:
    """A step in the form that the kernel takes.
    Keeps the tensors alive that its pointers refer to."""

    def __init__(self, step: AttentionMetadata) -> None:
        self._rows = native.limit("attention_rows")
        self._counts = step.counts
        lists = {
            "span_row": [0, *step.ends[:-1]],
            "span_start": step.starts,
            "span_count": step.counts,
            "table": [number for table in step.tables for number in table],
            "span_table": [0, *accumulate(map(len, step.tables))][:-1],
            "row_block": step.blocks,
            "row_offset": step.offsets,
        }
        self._tensors = {
            name: torch.tensor(values, dtype=torch.int32) for name, values in lists.items()
        }
        self._tiles: dict[int, Any] = {}
        self._rotations: dict[int, tuple[Any, Any, Any]] = {}
        self.arguments = native.StepArguments(
            rows=len(step.positions), spans=len(step.counts), threads=torch.get_num_threads()
        )
        for name, tensor in self._tensors.items():
            setattr(self.arguments, name, tensor.data_ptr())

    def tiles(self, group: int) -> Any:
        """Cumulative number of kernel tiles of the spans,
        if `group` query heads share a key head."""
        if group not in self._tiles:
            counts = [-(-count * group // self._rows) for count in self._counts]
            self._tiles[group] = torch.tensor([0, *accumulate(counts)], dtype=torch.int32)
        return self._tiles[group]

    def rotation(self, cosines_and_sines: tuple[Any, Any]) -> tuple[Any, Any]:
        """Cosines and sines in float32.
        Converted once a step: layers of one kind share the same pair of tensors."""
        key = id(cosines_and_sines[0])
        if key not in self._rotations:
            converted = [part.float().contiguous() for part in cosines_and_sines]
            # The original is kept alive, so that no other tensor can get its id.
            self._rotations[key] = (converted[0], converted[1], cosines_and_sines)
        return self._rotations[key][:2]


def paged_attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None,
    dropout: float = 0.0, sliding_window: int | None = None, softcap: float | None = None, s_aux: Any = None,
    paged_step: AttentionMetadata | None = None, **options: Any,
) -> tuple[Any, None]:  # fmt: skip
    """Attention of one layer. `query`: [1, heads, tokens, head_size];
    returns [1, tokens, heads, head_size]."""
    strange = sorted(
        name for name, option in options.items() if _is_set(option) and name not in _IGNORED
    )
    if paged_step is None or strange:
        raise NotImplementedError(f"attention with {', '.join(strange) or 'no step'}")
    at = paged_step.cache.shape.layers[module.layer_idx]
    # The kernel does not check sizes, so a mismatch must end here.
    if (key.shape[1], key.shape[-1], value.shape[-1]) != (at.kv_heads, at.head_size, at.value_size):
        raise NotImplementedError(
            f"keys and values have another shape than in the model's own cache, {at}"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    rule = Rule(scale, sliding_window or 0, float(softcap or 0.0), s_aux)
    attend = _choose(paged_step, module.layer_idx, query)
    return attend(paged_step, module.layer_idx, rule, query[0], key[0], value[0]).unsqueeze(0), None


AttentionInterface.register(ATTENTION, paged_attention)


def _is_set(option: Any) -> bool:
    return option is not None and option is not False


def _choose(step: AttentionMetadata, layer: int, query: Any) -> Callable[..., Any]:
    at = step.cache.shape.layers[layer]
    fits = (
        (query.dtype, step.cache.shape.dtype) in native.ATTENTION
        and at.head_size == at.value_size
        and at.head_size % 16 == 0
        and step.device == "cpu"
    )
    return attend_native if fits and native.library() else attend_gathered


def attend_native(
    step: AttentionMetadata,
    layer: int,
    rule: Rule,
    query: Any,
    key: Any,
    value: Any,
    rotation: tuple[Any, Any] | None = None,
) -> Any:
    """Attention by the compiled kernel.
    `query`: [heads, tokens, head_size]; returns [tokens, heads, head_size].

    `rotation`: cosines and sines of RoPE, [1, tokens, head_size], if queries and keys are not
    rotated yet.
    """
    heads, tokens, size = query.shape
    query, key, value = (
        part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value)
    )
    out = query.new_empty(tokens, heads, size)
    tiles = step.native.tiles(heads // key.shape[0])
    sinks = None if rule.sinks is None else rule.sinks.detach().float().contiguous()
    arguments = step.native.arguments
    arguments.query = query.data_ptr()
    arguments.key = key.data_ptr()
    arguments.value = value.data_ptr()
    arguments.query_head, arguments.query_row, _ = query.stride()
    arguments.key_head, arguments.key_row, _ = key.stride()
    arguments.value_head, arguments.value_row, _ = value.stride()
    arguments.keys = step.cache.keys[layer].data_ptr()
    arguments.values = step.cache.values[layer].data_ptr()
    arguments.out = out.data_ptr()
    arguments.sinks = None if sinks is None else sinks.data_ptr()
    arguments.heads = heads
    arguments.kv_heads = key.shape[0]
    arguments.head_size = size
    arguments.scale = rule.scale
    arguments.softcap = rule.softcap
    arguments.window = rule.window
    arguments.span_tiles = tiles.data_ptr()
    arguments.cosines = arguments.sines = None
    if rotation:
        arguments.cosines, arguments.sines = (
            part.data_ptr() for part in step.native.rotation(rotation)
        )
    formats = query.dtype, step.cache.shape.dtype
    native.call("llm_attention", native.ATTENTION[formats], ctypes.byref(arguments))
    return out


def attend_gathered(
    step: AttentionMetadata, layer: int, rule: Rule, query: Any, key: Any, value: Any
) -> Any:
    """Attention by torch operations; same shapes as `attend_native`."""
    query, key, value = (part.transpose(0, 1) for part in (query, key, value))
    step.cache.write(layer, step.row_blocks, step.row_offsets, key, value)
    parts = []
    if step.singles:
        lengths = torch.tensor(
            [start + 1 for start in step.starts[: step.singles]], device=step.device
        )
        keys, values = step.cache.read(layer, step.table(0, step.singles), query.dtype)
        parts.append(
            _softmax(
                query[: step.singles].unsqueeze(2), keys, values, lengths.unsqueeze(1), rule
            ).squeeze(2)
        )
    for span in range(step.singles, len(step.counts)):
        begin = step.ends[span] - step.counts[span]
        end = step.ends[span]
        keys, values = step.cache.read(layer, step.table(span, span + 1), query.dtype)
        lengths = torch.arange(
            step.starts[span] + 1, step.starts[span] + step.counts[span] + 1, device=step.device
        )
        part = _softmax(
            query[begin:end].transpose(0, 1).unsqueeze(0), keys, values, lengths.unsqueeze(0), rule
        )
        parts.append(part[0].transpose(0, 1))
    return torch.cat(parts)


def _softmax(query: Any, keys: Any, values: Any, lengths: Any, rule: Rule) -> Any:
    """`query`: [rows, heads, tokens, head_size];
    `lengths`: [rows, tokens], the keys that each token may attend to."""
    at = torch.arange(keys.shape[2], device=query.device)
    seen = at < lengths[:, None, :, None]
    if rule.window:
        seen &= at >= lengths[:, None, :, None] - rule.window
    if not rule.softcap and rule.sinks is None:
        return F.scaled_dot_product_attention(
            query, keys, values, seen, scale=rule.scale, enable_gqa=True
        )
    group = query.shape[1] // keys.shape[1]
    keys = keys.repeat_interleave(group, dim=1)
    values = values.repeat_interleave(group, dim=1)
    scores = torch.matmul(query, keys.transpose(-1, -2)).float() * rule.scale
    if rule.softcap:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    scores = scores.masked_fill(~seen, float("-inf"))
    if rule.sinks is not None:
        sinks = rule.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        return torch.matmul(
            torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1].to(values.dtype), values
        )
    return torch.matmul(scores.softmax(-1).to(values.dtype), values)
