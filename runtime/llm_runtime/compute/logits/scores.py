"""Log probabilities of a prompt's tokens, from the logits of the tokens before them.

A chunk of a prompt has hundreds of rows, and a row of logits is as long as the vocabulary. So the
model's layers run once for the whole chunk, and its output layer for a few rows at a time.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from llm_runtime.engine.scheduler import Span
from llm_runtime.engine.sequence import Sampled
from llm_runtime.request import PromptLogprobs

SLICE_BYTES = 16 << 20
"""Largest size of float32 logits at once. What is computed of them takes as much twice more."""

LogitsOf = Callable[[Any], Any]
"""From numbers of rows (a tensor) to their logits, [rows, vocabulary]."""


@dataclass(slots=True)
class Layers:
    """The layers of a model, without its output layer."""

    outputs: Any = None
    """What they returned; None if they were not called."""


@contextmanager
def layers_once(model: Any) -> Iterator[Layers]:
    """Have a causal language model of Transformers run its layers in the first call only. Further
    calls with the same inputs compute logits of other rows from what the layers returned then.

    A model that does not call its `base_model` as a whole (OPT) runs its layers in each call.
    """
    layers = Layers()
    inner = model.base_model
    own = vars(inner).get("forward")
    forward = inner.forward

    def once(*args: Any, **options: Any) -> Any:
        if layers.outputs is None:
            layers.outputs = forward(*args, **options)
        return layers.outputs

    if inner is not model:
        inner.forward = once
    try:
        yield layers
    finally:
        if own is not None:
            inner.forward = own
        elif inner is not model:
            del inner.forward


def prompt_logprobs(
    logits_of: LogitsOf, first_row: int, tokens: Sequence[int], top: int, like: Any
) -> PromptLogprobs:
    """Log probabilities of `tokens`: of the first after the row `first_row`, and so on.
    `like`: a row of logits."""
    found = PromptLogprobs(top)
    at_once = max(1, SLICE_BYTES // (4 * like.shape[-1]))
    for start in range(0, len(tokens), at_once):
        part = torch.tensor(tokens[start : start + at_once], device=like.device)
        begin = first_row + start
        rows = torch.arange(begin, begin + len(part), device=like.device)
        found.extend(_scored(logits_of(rows).float(), part, top))
    return found


def _scored(logits: Any, tokens: Any, top: int) -> PromptLogprobs:
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(1, tokens.unsqueeze(1))
    ranks = (logprobs > own).sum(-1) + 1
    values, ids = logprobs.topk(top, dim=-1)
    return PromptLogprobs(
        top, array("I"), _floats(own), _numbers(ranks), _numbers(ids), _floats(values)
    )


def _floats(values: Any) -> "array[float]":
    return array("f", values.numpy(force=True).tobytes())


def _numbers(values: Any) -> "array[int]":
    return array("I", values.to(torch.int32).numpy(force=True).tobytes())


def answers(
    spans: Iterable[Span], sampled: Iterable[Sampled], scores: Iterable[PromptLogprobs | None]
) -> list[Sampled]:
    """What a step found for each span that answers: `sampled` has an entry for each that samples,
    `scores` for each of all."""
    chosen = iter(sampled)
    found = []
    for span, prompt in zip(spans, scores, strict=True):
        if span.answers:
            one = next(chosen) if span.samples else Sampled(None)
            found.append(one if prompt is None else replace(one, prompt=prompt))
    return found
