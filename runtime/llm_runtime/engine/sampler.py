"""From logits to tokens, for a whole batch at once: greedy, temperature, top-k, top-p, seeds, log probabilities.

Sampling is by inverse transform: one uniform number for each row, compared with the cumulated probabilities. So a
seeded request needs no generator state: its number depends on its seed and the token's index alone, hence not on the
batch around it, and not on the device.
"""

import random
from typing import Any

import torch

from llm_runtime.engine.sequence import Sampled, Sequence
from llm_runtime.request import Sampling

GREEDY_BELOW = 1e-5
"""A temperature below this would only overflow; its limit is the greedy choice."""

CANDIDATES = 128
"""How many top tokens are tried first for top-p; sorting a whole vocabulary costs about 50 times more."""


class Sampler:
    """Holds the one source of chance for requests without a seed."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)

    def sample(self, logits: Any, sequences: list[Sequence]) -> list[Sampled]:
        """Choose the next token of each sequence. `logits`: float [sequences, vocabulary]."""
        logits = logits.float()
        samplings = [sequence.request.sampling for sequence in sequences]
        best, tokens = logits.max(dim=-1)
        plain = [row for row, s in enumerate(samplings) if s.temperature >= GREEDY_BELOW and not _filters(s)]
        filtered = [row for row, s in enumerate(samplings) if s.temperature >= GREEDY_BELOW and _filters(s)]
        if plain:
            tokens[plain] = _draw(_tempered(logits, samplings, plain).softmax(-1), self._numbers(sequences, plain))
        if filtered:
            tempered = _tempered(logits, samplings, filtered)
            numbers = self._numbers(sequences, filtered)
            tokens[filtered] = _draw_filtered(tempered, [samplings[row] for row in filtered], numbers)
        return _packed(logits, tokens, best, samplings)

    def _numbers(self, sequences: list[Sequence], rows: list[int]) -> list[float]:
        return [self._number(sequences[row]) for row in rows]

    def _number(self, sequence: Sequence) -> float:
        seed = sequence.request.sampling.seed
        if seed is None:
            return self._random.random()
        return random.Random(f"{seed}/{sequence.output_length}").random()


def _filters(sampling: Sampling) -> bool:
    return sampling.top_k > 0 or sampling.top_p < 1.0


def _tempered(logits: Any, samplings: list[Sampling], rows: list[int]) -> Any:
    temperatures = torch.tensor([samplings[row].temperature for row in rows], device=logits.device)
    return logits[rows] / temperatures.unsqueeze(1)


def _draw(probabilities: Any, numbers: list[float]) -> Any:
    """The column where each row's cumulated probability passes its number; columns of probability 0 are never taken."""
    cumulated = probabilities.double().cumsum(-1)
    thresholds = torch.tensor(numbers, dtype=torch.float64, device=cumulated.device).unsqueeze(1)
    # Scaled by the row's own sum, which rounding keeps from being exactly 1.
    columns = torch.searchsorted(cumulated, thresholds * cumulated[:, -1:], right=True)
    return columns.clamp_(max=probabilities.shape[-1] - 1).squeeze(1)


def _draw_filtered(logits: Any, samplings: list[Sampling], numbers: list[float]) -> Any:
    """Top-k, then top-p within what it left (the order of Transformers' logits processors)."""
    size = logits.shape[-1]
    count = min(size, max(CANDIDATES, *(sampling.top_k for sampling in samplings)))
    values, columns = logits.topk(count, dim=-1)
    if count < size and not _enough(logits, values, samplings):
        values, columns = logits.sort(dim=-1, descending=True)
        count = size
    top_k = torch.tensor([sampling.top_k or count for sampling in samplings], device=logits.device).unsqueeze(1)
    values = values.masked_fill(torch.arange(count, device=logits.device) >= top_k, float("-inf"))
    top_p = torch.tensor([sampling.top_p for sampling in samplings], device=logits.device).unsqueeze(1)
    # Rows without top-k are normalised over the whole vocabulary: what lies beyond the candidates still counts.
    whole = torch.where(top_k >= count, logits.logsumexp(-1, keepdim=True), values.logsumexp(-1, keepdim=True))
    probabilities = (values - whole).exp()
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    return columns.gather(1, _draw(probabilities, numbers).unsqueeze(1)).squeeze(1)


def _enough(logits: Any, values: Any, samplings: list[Sampling]) -> bool:
    """Whether the candidates hold the top-p mass of every row that has no top-k."""
    mass = (values.logsumexp(-1) - logits.logsumexp(-1)).exp().tolist()
    return all(s.top_k > 0 or have >= s.top_p for s, have in zip(samplings, mass, strict=True))


def _packed(logits: Any, tokens: Any, best: Any, samplings: list[Sampling]) -> list[Sampled]:
    finite = torch.isfinite(best).tolist()
    chosen = [token if good else None for token, good in zip(tokens.tolist(), finite, strict=True)]
    rows = [row for row, s in enumerate(samplings) if s.logprobs is not None and chosen[row] is not None]
    results = [Sampled(token) for token in chosen]
    if rows:
        logprobs = logits[rows].log_softmax(-1)
        of_chosen = logprobs.gather(1, tokens[rows].unsqueeze(1)).squeeze(1).tolist()
        most = max(samplings[row].logprobs or 0 for row in rows)
        values, columns = (part.tolist() for part in logprobs.topk(most, dim=-1))
        for index, row in enumerate(rows):
            top = tuple(zip(columns[index], values[index], strict=True))[: samplings[row].logprobs]
            results[row] = Sampled(chosen[row], of_chosen[index], top)
    return results
