"""From logits to tokens, for a whole batch at once, each row with its own options.

The order is that of Transformers' `_get_logits_processor` (bias and penalties, then temperature,
top-k, top-p, min-p) and of vLLM's sampler: `logit_bias` → `repetition_penalty` →
`frequency_penalty`, `presence_penalty` → constraint → temperature → `top_k` → `top_p` → `min_p`.
Everything before temperature also applies to greedy rows. Options cost time only for the rows that
have them. Log probabilities are those of the model's unchanged logits.

Sampling uses the Gumbel-max trick (Maddison et al. 2014): it chooses the token with the greatest
sum of logit and noise. The noise depends only on (seed, index of the token, token id), so neither
the rest of the batch nor the device changes it. Logits differ in their last bits between batch
shapes; that changes a choice only if two sums are as close. docs/decisions.md compares it with
sampling by inverse transform.
"""

import random
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from llm_runtime.engine.sequence import Sampled, Sequence
from llm_runtime.request import Sampling

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy:
dividing by them would overflow, and greedy is their limit."""

CANDIDATES = 128
"""How many of the likeliest tokens the filters look at first.
Usually no other token would be kept."""

BLOCK = 256
"""Tokens in a block. A block is drawn first,
then a token in it, so that less noise has to be computed."""

NOTHING = float("-inf")


class Sampler:
    """Samples batches. Holds the random generator for requests without a seed."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)

    def sample(
        self, logits: Any, sequences: list[Sequence], ahead: list[int] | None = None
    ) -> list[Sampled]:
        """Choose the next token of each sequence. `logits`: float [sequences, vocabulary].

        `ahead`: for each row, how many guessed tokens come before the one to choose; none if absent.
        Only rows without penalties and constraints may have any.
        """
        ahead = ahead or [0] * len(sequences)
        logits = logits.float()
        samplings = [sequence.request.sampling for sequence in sequences]
        scores = _steered(logits, sequences)
        best, tokens = scores.max(dim=-1)
        rows = [
            row for row, sampling in enumerate(samplings) if sampling.temperature >= GREEDY_BELOW
        ]
        if rows:
            drawn = [samplings[row] for row in rows]
            keys = [self._key(sequences[row], ahead[row]) for row in rows]
            tokens[rows] = _draw(_filtered(_tempered(_rows(scores, rows), drawn), drawn), keys)
        return _packed(logits, tokens, best, samplings)

    def _key(self, sequence: Sequence, ahead: int) -> int:
        seed = sequence.request.sampling.seed
        if seed is None:
            return self._random.getrandbits(64)
        return int(_mix((_mix(seed & _WORD) + sequence.output_length + ahead) & _WORD))


def _steered(logits: Any, sequences: list[Sequence]) -> Any:
    """`logits` with bias, penalties and constraints applied; the same tensor if no row has any."""
    biased = [row for row, sequence in enumerate(sequences) if sequence.biases is not None]
    penalised = [row for row, sequence in enumerate(sequences) if sequence.counts is not None]
    constrained = [row for row, sequence in enumerate(sequences) if sequence.matcher is not None]
    if not (biased or penalised or constrained):
        return logits
    scores = logits.clone()
    if biased:
        _bias(scores, biased, sequences)
    if penalised:
        _penalise(scores, penalised, sequences)
    if constrained:
        _constrain(scores, constrained, sequences)
    return scores


def _bias(scores: Any, rows: list[int], sequences: list[Sequence]) -> None:
    entries = [biases for row in rows if (biases := sequences[row].biases) is not None]
    place = (
        _spread(rows, [ids for ids, _ in entries], scores),
        _joined([ids for ids, _ in entries], np.int64, scores),
    )
    scores.index_put_(
        place, _joined([values for _, values in entries], np.float32, scores), accumulate=True
    )


def _penalise(scores: Any, rows: list[int], sequences: list[Sequence]) -> None:
    """Apply penalties, only to tokens that occurred:
    all tensors here are [tokens that occurred, over all rows]."""
    counts = [counts for row in rows if (counts := sequences[row].counts) is not None]
    samplings = [sequences[row].request.sampling for row in rows]
    ids = [count.token_ids for count in counts]
    where = _spread(rows, ids, scores)
    tokens = _joined(ids, np.int64, scores)
    times = _joined([count.generated for count in counts], np.float32, scores)
    repetition = _spread([sampling.repetition_penalty for sampling in samplings], ids, scores)
    values = scores[where, tokens]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= _spread([sampling.frequency_penalty for sampling in samplings], ids, scores) * times
    values -= _spread([sampling.presence_penalty for sampling in samplings], ids, scores) * (
        times > 0
    )
    scores[where, tokens] = values


def _joined(parts: "list[array[Any]]", kind: Any, like: Any) -> Any:
    return torch.from_numpy(np.concatenate([np.frombuffer(part, kind) for part in parts])).to(
        like.device
    )


def _spread(values: list[Any], over: "list[array[Any]]", like: Any) -> Any:
    """Repeat each of `values` as often as there are entries in its part of `over`."""
    kind = np.int64 if isinstance(values[0], int) else np.float32
    return torch.from_numpy(
        np.repeat(np.array(values, dtype=kind), [len(part) for part in over])
    ).to(like.device)


def _constrain(scores: Any, rows: list[int], sequences: list[Sequence]) -> None:
    """Mask the tokens that a constraint forbids.
    If a matcher has failed, its row keeps none and ends in an error."""
    width = -(-scores.shape[1] // 8)
    masks = [
        matcher.mask() if (matcher := sequences[row].matcher) is not None else b"" for row in rows
    ]
    packed = bytearray(b"".join(mask[:width].ljust(width, b"\0") for mask in masks))
    bits = torch.frombuffer(packed, dtype=torch.uint8).to(scores.device).view(len(rows), width, 1)
    bits = (bits >> torch.arange(8, dtype=torch.uint8, device=scores.device)) & 1
    allowed = bits.view(len(rows), width * 8)[:, : scores.shape[1]]
    part = _rows(scores, rows).masked_fill_(allowed == 0, NOTHING)
    if part is not scores:
        scores[rows] = part


def _tempered(scores: Any, samplings: list[Sampling]) -> Any:
    return scores / _column([sampling.temperature for sampling in samplings], scores)


def _rows(scores: Any, rows: list[int]) -> Any:
    """These rows, without a copy if they are all rows: on a CPU a copy costs more than drawing."""
    return scores if len(rows) == len(scores) else scores[rows]


def _column(values: list[float], like: Any) -> Any:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)


def _filtered(scores: Any, samplings: list[Sampling], counts: tuple[int, ...] = ()) -> Any:
    """`scores` with minus infinity for tokens that top-k, top-p or min-p remove.

    Sorting the whole vocabulary is slow, so the filters first look at the likeliest tokens only.
    `counts`: how many these are in each attempt; the next attempt takes the rows for which they
    were not enough. The last one must be the whole vocabulary.
    """
    rows = [row for row, s in enumerate(samplings) if s.top_k > 0 or s.top_p < 1.0 or s.min_p > 0.0]
    size = scores.shape[-1]
    for count in counts or (CANDIDATES, size):
        if rows:
            rows = _filter_among(scores, rows, samplings, count)
    return scores


def _filter_among(scores: Any, rows: list[int], samplings: list[Sampling], count: int) -> list[int]:
    """Filter `rows` of `scores` by their `count` likeliest tokens.
    Returns the rows for which these were too few."""
    chosen = [samplings[row] for row in rows]
    part = _rows(scores, rows)
    if all(sampling.top_k == 0 and sampling.top_p >= 1.0 for sampling in chosen):
        least = part.amax(-1, keepdim=True) + _log_min_p(chosen, part)
        short = []
    else:
        count = min(part.shape[-1], max(count, *(sampling.top_k for sampling in chosen)))
        values = _likeliest(part, count)
        holds_all = count == part.shape[-1] or all(sampling.top_k > 0 for sampling in chosen)
        least = _least(values, (values if holds_all else part).logsumexp(-1, keepdim=True), chosen)
        short = [] if holds_all else _short(least, values, chosen)
        least[short] = (
            NOTHING  # No score is below that, so these rows stay whole for the next attempt.
        )
    part.masked_fill_(part < least, NOTHING)
    if part is not scores:
        scores[rows] = part
    return [rows[place] for place in short]


def _short(least: Any, values: Any, samplings: list[Sampling]) -> list[int]:
    """Places of the rows that keep even their last candidate,
    and so may have to keep tokens beyond it."""
    last_is_kept = (least <= values[:, -1:]).squeeze(1).tolist()
    return [
        place for place, kept in enumerate(last_is_kept) if kept and samplings[place].top_k == 0
    ]


def _likeliest(part: Any, count: int) -> Any:
    """The `count` greatest values of each row, descending."""
    if count < part.shape[-1]:
        return part.topk(count, dim=-1).values
    if part.device.type == "cpu":  # torch takes 60 times as long, because it returns indices, too.
        return torch.from_numpy(np.sort(part.numpy(), axis=-1)[:, ::-1].copy())
    return part.sort(dim=-1, descending=True).values


def _least(values: Any, whole: Any, samplings: list[Sampling]) -> Any:
    """The least value that each row's filters keep, [rows, 1].
    A filter keeps a prefix of the descending `values`."""
    count = values.shape[-1]
    top_k = torch.tensor(
        [min(s.top_k, count) or count for s in samplings], device=values.device
    ).unsqueeze(1)
    top_k_is_on = torch.tensor(
        [sampling.top_k > 0 for sampling in samplings], device=values.device
    ).unsqueeze(1)
    values = values.masked_fill(torch.arange(count, device=values.device) >= top_k, NOTHING)
    # Rows without top-k are normalised over the whole vocabulary:
    # tokens beyond the candidates have probability, too.
    whole = torch.where(top_k_is_on, values.logsumexp(-1, keepdim=True), whole)
    probabilities = (values - whole).exp()
    before = probabilities.cumsum(-1) - probabilities
    top_p = _column(
        [sampling.top_p if sampling.top_p < 1.0 else 2.0 for sampling in samplings], values
    )
    kept = (before < top_p) & (values >= values[:, :1] + _log_min_p(samplings, values))
    last = (kept.sum(-1, keepdim=True).clamp_(min=1) - 1).minimum(top_k - 1)
    return values.gather(1, last)


def _log_min_p(samplings: list[Sampling], like: Any) -> Any:
    """How far below the best score a token may be.
    Without min-p it is minus infinity, which keeps everything."""
    return _column([s.min_p for s in samplings], like).log_()


def _draw(scores: Any, keys: list[int]) -> Any:
    """Gumbel-max in two steps: draw a block of tokens by its total probability,
    then one of its tokens.

    This is exact: the maximum over a block of (logit + noise)
    is distributed like (logsumexp of the block + noise).
    """
    rows, size = scores.shape
    blocks = -(-size // BLOCK)
    if size % BLOCK:
        scores = F.pad(scores, (0, blocks * BLOCK - size), value=NOTHING)
    noise = torch.from_numpy(gumbel(keys, blocks + BLOCK)).to(scores.device)
    scores = scores.reshape(rows, blocks, BLOCK)
    block = (scores.logsumexp(-1) + noise[:, :blocks]).argmax(-1)
    inside = (scores[torch.arange(rows, device=scores.device), block] + noise[:, blocks:]).argmax(
        -1
    )
    return block * BLOCK + inside


_WORD = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15


def _mix(word: Any, constant: Callable[[int], Any] = int, whole: Any = _WORD) -> Any:
    """SplitMix64's finalizer (Steele et al. 2014), for one 64-bit word or an array of them."""
    word = (word ^ (word >> constant(30))) * constant(0xBF58476D1CE4E5B9) & whole
    word = (word ^ (word >> constant(27))) * constant(0x94D049BB133111EB) & whole
    return word ^ (word >> constant(31))


def gumbel(keys: list[int], count: int) -> Any:
    """Standard Gumbel noise, float32 [keys, count]. The same key always gives the same row."""
    counters = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_STEP)
    words = _mix(np.array(keys, dtype=np.uint64)[:, None] + counters, np.uint64, np.uint64(_WORD))
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return -np.log(-np.log(uniform)).astype(np.float32)


def _packed(logits: Any, tokens: Any, best: Any, samplings: list[Sampling]) -> list[Sampled]:
    finite = torch.isfinite(best).tolist()
    chosen = [token if good else None for token, good in zip(tokens.tolist(), finite, strict=True)]
    rows = [
        row for row, s in enumerate(samplings) if s.logprobs is not None and chosen[row] is not None
    ]
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
