"""The batched forward pass: runs spans through a Transformers model,
with paged attention over the KV cache.

All tokens of a step are packed into one row, [1, tokens], so that no layer sees padding.
"""

import inspect
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from llm_runtime.compute.attention import ATTENTION, AttentionMetadata
from llm_runtime.compute.cache import KvCache
from llm_runtime.compute.exhaustion import in_memory
from llm_runtime.compute.logits.sampler import Sampler
from llm_runtime.compute.logits.scores import LogitsOf, answers, layers_once, prompt_logprobs
from llm_runtime.compute.lora import Adapter, AdapterSet
from llm_runtime.engine.drafts import confirmed
from llm_runtime.engine.scheduler import Batch, Span
from llm_runtime.engine.sequence import Sampled
from llm_runtime.request import PromptLogprobs


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
        """Compute a step: a token for each span that samples, log probabilities for each that is
        scored; one entry for each that answers, in order. Raises StepOutOfMemory."""
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
        scored = any(span.scored for span in batch.spans)
        with torch.inference_mode(), layers_once(self.model) if scored else nullcontext():
            logits_of = self._logits_of(batch)
            logits = logits_of(self._rows(batch))
            sampled = self._sampled(batch, logits)
            if not scored:
                return sampled
            return answers(batch.spans, sampled, self._scores(batch, logits_of, logits))

    def _sampled(self, batch: Batch, logits: Any) -> list[Sampled]:
        spans = [span for span in batch.spans if span.samples]
        if not spans:
            return []
        sequences = [span.sequence for span in spans for _ in (0, *span.guess)]
        ahead = [place for span in spans for place in range(1 + len(span.guess))]
        sampled = self.sampler.sample(logits, sequences, ahead)
        return confirmed([span.guess for span in spans], sampled)

    def _scores(
        self, batch: Batch, logits_of: LogitsOf, like: Any
    ) -> Iterator[PromptLogprobs | None]:
        row = 0
        for span in batch.spans:
            top = span.sequence.request.sampling.prompt_logprobs
            tokens = span.scored
            yield prompt_logprobs(logits_of, row, tokens, top or 0, like) if tokens else None
            row += span.count

    def logits(self, batch: Batch) -> Any:
        """Logits after the last token of each sampling span, and after each token before it that a
        guess follows: [rows, vocabulary]."""
        return self._logits_of(batch)(self._rows(batch))

    def _rows(self, batch: Batch) -> Any:
        return torch.tensor(_sampling_rows(batch.spans), dtype=torch.long, device=self.model.device)

    def _logits_of(self, batch: Batch) -> LogitsOf:
        """What gives the logits after some of the tokens of a step."""
        device = self.model.device
        self.adapters.select((span.sequence.adapter, span.count) for span in batch.spans)
        step = AttentionMetadata(
            batch.spans, self.cache, device.type, adapted=self.adapters.selected
        )
        ids = [token for span in batch.spans for token in span.token_ids]
        inputs = {
            "input_ids": torch.tensor([ids], device=device),
            "position_ids": torch.tensor([step.positions], device=device),
            "use_cache": False,
            "paged_step": step,
        }
        if not self._selects_rows:
            logits = self.model(**inputs).logits[0]
            return lambda rows: logits[rows]
        return lambda rows: self.model(**inputs, logits_to_keep=rows).logits[0]


def _sampling_rows(spans: tuple[Span, ...]) -> list[int]:
    rows = list[int]()
    end = 0
    for span in spans:
        end += span.count
        if span.samples:
            rows += range(end - 1 - len(span.guess), end)
    return rows
