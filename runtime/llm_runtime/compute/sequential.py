"""The slow path: runs any causal language model of Transformers,
one sequence after another within a step.

Nothing in the model is replaced. Each sequence has the cache that the model itself creates (keys
and values, sliding windows, recurrent states, or several of these). Each step feeds it the tokens
that it has not seen, as `model.generate` does. So answers equal those of `generate` for every
architecture; only the speed of batching is missing.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from llm_runtime.compute.logits.sampler import Sampler
from llm_runtime.compute.logits.scores import (
    Layers,
    LogitsOf,
    answers,
    layers_once,
    prompt_logprobs,
)
from llm_runtime.compute.lora import Adapter, AdapterSet
from llm_runtime.engine.scheduler import Batch, Span
from llm_runtime.engine.sequence import Sampled, Sequence
from llm_runtime.errors import ModelUnsupported
from llm_runtime.request import PromptLogprobs

CACHE_NAMES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")
"""Names under which a model's output returns its cache (as in Transformers'
generation/utils.py)."""

_APPENDING_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
"""Kinds of cache layers that accept several tokens at once after the first ones."""


@dataclass(slots=True)
class _State:
    """The model's cache of one sequence, which covers its first `seen` tokens."""

    seen: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the next forward, among them the cache."""


class SequentialRunner:
    """Runs batches through an unchanged `model`, sequence by sequence, and samples.

    It ignores blocks, and uses only the end of a span. With `whole_prompts` (for a cache that
    accepts a prompt only in one piece), spans that end inside a prompt compute nothing, and the
    last one computes the whole prompt.
    """

    def __init__(
        self,
        model: Any,
        sampler: Sampler,
        *,
        whole_prompts: bool = False,
        brings_cache: bool = False,
    ) -> None:
        """`brings_cache`: pass a new cache, for a model that fills one but does not create it
        (RecurrentGemma)."""
        self.model = model
        self.sampler = sampler
        self.whole_prompts = whole_prompts
        self.brings_cache = brings_cache
        parameters = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._selects_rows = "logits_to_keep" in parameters
        self._layers_apart = False
        """Whether layers and output layer can be run one without the other."""
        self.adapters: AdapterSet | None = None
        """Set after the model has been checked without adapters; None before."""
        self._states: WeakKeyDictionary[Sequence, _State] = WeakKeyDictionary()

    def forward(self, batch: Batch) -> list[Sampled]:
        """Compute a step: a token for each span that samples, log probabilities for each that is
        scored; one entry for each that answers, in order."""
        with torch.inference_mode():
            self._forget()
            found = [self._advance(span) for span in batch.spans]
            sequences = [span.sequence for span in batch.spans if span.samples]
            logits = [row for row, _ in found if row is not None]
            sampled = self.sampler.sample(torch.cat(logits), sequences) if sequences else []
            return answers(batch.spans, sampled, [scores for _, scores in found])

    def logits(self, batch: Batch) -> Any:
        """Logits after the last token of each sampling span, [sampling spans, vocabulary];
        None without any."""
        rows = [row for span in batch.spans if (row := self._advance(span)[0]) is not None]
        return torch.cat(rows) if rows else None

    def read_adapter(self, folder: Path) -> Adapter:
        """Read and check an adapter, on any thread. Raises errors.Fatal subclasses."""
        return self._adapters().read(folder)

    def install_adapter(self, key: str, adapter: Adapter) -> None:
        """Use `adapter` for sequences that name `key`. Call it between steps."""
        self._adapters().install(key, adapter)

    def drop_adapter(self, key: str) -> None:
        """Remove an adapter that no sequence names any more. Call it between steps."""
        self._adapters().drop(key)

    def _adapters(self) -> AdapterSet:
        if self.adapters is None:
            raise ModelUnsupported(f"{type(self.model).__name__} is served without adapters here")
        return self.adapters

    def state_bytes(self, sequence: Sequence) -> list[int]:
        """Bytes that the cache of `sequence` takes now:
        of each layer, or in total if it has no layers."""
        return [_bytes(part) for part in self._parts(sequence)]

    def state_lengths(self, sequence: Sequence, length: int) -> list[int]:
        """How many of `length` tokens each of these parts keeps at most."""
        return [
            min(getattr(part, "sliding_window", None) or length, length)
            for part in self._parts(sequence)
        ]

    def takes_chunks(self, sequence: Sequence) -> bool:
        """Whether the cache of `sequence` accepts a prompt in chunks."""
        cache = self._states[sequence].options.get("past_key_values")
        layers = getattr(cache, "layers", None) or []
        return bool(layers) and all(type(layer) in _APPENDING_LAYERS for layer in layers)

    def _parts(self, sequence: Sequence) -> list[Any]:
        options = self._states[sequence].options
        return list(getattr(options.get("past_key_values"), "layers", None) or [options])

    def _forget(self) -> None:
        # Weak references are not enough: a reader of events may keep a finished sequence alive, and
        # a preempted one (fewer tokens computed than seen) starts again.
        for sequence, state in list(self._states.items()):
            if sequence.finish_reason is not None or sequence.computed < state.seen:
                del self._states[sequence]

    def _advance(self, span: Span) -> tuple[Any, PromptLogprobs | None]:
        """The logits after a span that samples, and the log probabilities of tokens of its prompt."""
        if self.whole_prompts and not span.samples:
            return None, None
        state = self._states.setdefault(span.sequence, self._state())
        end = span.start + span.count
        ids = torch.tensor([span.sequence.token_ids[:end]], device=self.model.device)
        inputs = self.model.prepare_inputs_for_generation(
            ids, next_sequence_length=end - state.seen, is_first_iteration=state.seen == 0,
            use_cache=True, **state.options, **self._positions(ids),
        )  # fmt: skip
        scored = self._scored(span)
        if self._selects_rows:
            inputs["logits_to_keep"] = 1 if self._layers_apart or not scored else 0  # 0: all.
        if self.adapters is not None:
            self.adapters.select([(span.sequence.adapter, end - state.seen)])
        with layers_once(self.model) as layers:
            outputs = self.model(**inputs, return_dict=True)
            self._layers_apart = layers.outputs is not None
            scores = None
            if scored:
                top = span.sequence.request.sampling.prompt_logprobs or 0
                logits_of = self._logits_of(inputs, outputs.logits[0], layers)
                scores = prompt_logprobs(logits_of, 0, scored, top, outputs.logits[0])
        state.options = _carried(outputs) or state.options
        # A model without a cache reads the whole sequence in every step, so `seen` stays 0.
        state.seen = end if state.options else 0
        return outputs.logits[:, -1].float() if span.samples else None, scores

    def _scored(self, span: Span) -> list[int]:
        """Tokens of the prompt that are scored in the forward of this span."""
        sequence = span.sequence
        if not self.whole_prompts or sequence.prompt_logprobs is None:
            return span.scored
        return [] if sequence.output_length else sequence.token_ids[1 : sequence.prompt_length]

    def _logits_of(self, inputs: dict[str, Any], logits: Any, layers: Layers) -> LogitsOf:
        if not self._selects_rows or layers.outputs is None:
            return lambda rows: logits[rows]
        return lambda rows: self.model(
            **{**inputs, "logits_to_keep": rows}, return_dict=True
        ).logits[0]

    def _state(self) -> _State:
        return _State(
            options={"past_key_values": DynamicCache(config=self.model.config)}
            if self.brings_cache
            else {}
        )

    def _positions(self, ids: Any) -> dict[str, Any]:
        # No attention mask is passed: without padding, `generate` drops it, too.
        if not self._takes_positions:
            return {}
        return {"position_ids": torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)}


def _carried(outputs: Any) -> dict[str, Any]:
    """The cache in `outputs`, by the name of the next forward's argument;
    empty if there is none."""
    for name in CACHE_NAMES:
        if outputs.get(name) is not None:
            return {
                "past_key_values" if name in ("mems", "past_buckets_states") else name: outputs[
                    name
                ]
            }
    return {}


def _bytes(value: Any) -> int:
    storages = [tensor.untyped_storage() for tensor in _tensors(value, set())]
    return sum({storage.data_ptr(): int(storage.nbytes()) for storage in storages}.values())


def _tensors(value: Any, visited: set[int]) -> Iterator[Any]:
    """All tensors that can be reached from `value` through containers and attributes."""
    if id(value) in visited:
        return
    visited.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, visited)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item, visited)
    elif type(value).__module__.startswith("transformers.") and hasattr(value, "__dict__"):
        yield from _tensors(vars(value), visited)
