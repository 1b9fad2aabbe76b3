"""The batched forward pass: runs spans through a Transformers model,
with paged attention over the KV cache.

All tokens of a step are packed into one row, [1, tokens], so that no layer sees padding.
"""

import inspect
from pathlib import Path
from typing import Any

import torch

from llm_runtime.compute.attention import ATTENTION, AttentionMetadata
from llm_runtime.compute.cache import KvCache
from llm_runtime.compute.exhaustion import in_memory
from llm_runtime.compute.lora import Adapter, AdapterSet
from llm_runtime.compute.sampler import Sampler
from llm_runtime.engine.drafts import confirmed
from llm_runtime.engine.scheduler import Batch, Span
from llm_runtime.engine.sequence import Sampled


class TransformersRunner:
    """Runs batches through `model` (a causal language model of Transformers) and samples."""

    def __init__(self, model: Any, cache: KvCache, sampler: Sampler, adapters: AdapterSet) -> None:
        self.model = model
        self.cache = cache
        self.sampler = sampler
        self.adapters = adapters
        model.set_attn_implementation(ATTENTION)
        self._selects_rows = "logits_to_keep" in inspect.signature(model.forward).parameters

    def forward(self, batch: Batch) -> list[Sampled]:
        """Compute a step and choose a token for each span that samples, in order.
        Raises StepOutOfMemory."""
        return in_memory(lambda: self._forward(batch))

    def read_adapter(self, folder: Path) -> Adapter:
        """Read and check an adapter, on any thread. Raises errors.Fatal subclasses."""
        return self.adapters.read(folder)

    def install_adapter(self, key: str, adapter: Adapter) -> None:
        """Use `adapter` for sequences that name `key`. Call it between steps."""
        self.adapters.install(key, adapter)

    def drop_adapter(self, key: str) -> None:
        """Remove an adapter that no sequence names any more. Call it between steps."""
        self.adapters.drop(key)

    def _forward(self, batch: Batch) -> list[Sampled]:
        with torch.inference_mode():
            logits = self.logits(batch)
            spans = [span for span in batch.spans if span.samples]
            if not spans:
                return []
            sequences = [span.sequence for span in spans for _ in (0, *span.guess)]
            ahead = [place for span in spans for place in range(1 + len(span.guess))]
            sampled = self.sampler.sample(logits, sequences, ahead)
            return confirmed([span.guess for span in spans], sampled)

    def logits(self, batch: Batch) -> Any:
        """Logits after the last token of each sampling span, and after each token before it that a
        guess follows: [rows, vocabulary]."""
        device = self.model.device
        self.adapters.select((span.sequence.adapter, span.count) for span in batch.spans)
        step = AttentionMetadata(
            batch.spans, self.cache, device.type, adapted=self.adapters.selected
        )
        ids = [token for span in batch.spans for token in span.token_ids]
        rows = torch.tensor(_sampling_rows(batch.spans), dtype=torch.long, device=device)
        options = {"logits_to_keep": rows} if self._selects_rows else {}
        logits = self.model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([step.positions], device=device),
            use_cache=False,
            paged_step=step,
            **options,
        ).logits[0]
        return logits if self._selects_rows else logits[rows]


def _sampling_rows(spans: tuple[Span, ...]) -> list[int]:
    rows = list[int]()
    end = 0
    for span in spans:
        end += span.count
        if span.samples:
            rows += range(end - 1 - len(span.guess), end)
    return rows
