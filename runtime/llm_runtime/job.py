"""What a dialect asks of the pipeline."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llm_runtime.request import Caller, Message, Sampling

MAX_CHOICES = 128
"""Prompts times `n`: what OpenAI allows for `n` alone."""
NOT_ASKED = 0
"""As `Sampling.max_tokens` of a job: the client named no number."""

MARKUP_CHARACTERS = 32
"""What a chat template writes around a message, about: ChatML 28, Llama 3 52, Mistral 15."""

Messages = tuple[Message, ...]
Prompt = str | tuple[int, ...] | Messages
"""Text, token ids, or a conversation for the chat template."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a dialect asks for. `prompts` times `n` choices are generated, those of one prompt next to each other.

    A new field is part of what decides an answer, and so of the cache's key, unless `cache.key` is told otherwise.
    """

    id: str
    endpoint: str
    request_id: str
    caller: Caller
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    default_max_tokens: int | None = None
    """Where the client named no `max_tokens`; None means all that the model's length leaves room for."""
    n: int = 1
    stream: bool = False
    user: str | None = None
    adapter: str = ""
    """Name of the LoRA adapter; "" is the base model."""
    prompt_field: str = "prompt"
    """What the dialect calls the prompt, for error messages."""
    constraint_field: str = "response_format"
    """What it calls the constraint."""
    tools: tuple[dict[str, Any], ...] = ()
    """What the chat template tells the model of, as OpenAI's API describes functions."""
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """Further variables for the chat template."""
    shown_token_ids: tuple[int, ...] = ()
    """Special tokens that belong to an answer's text, as the dialect reads them."""
    idempotency_key: str | None = None
    """The client's name for this request: sent again under it, the same request gets the same answer."""
    forgettable: int = 0
    """So many of a conversation's oldest messages, after a leading system message, may go where it is too long."""

    @property
    def deterministic(self) -> bool:
        """Whether there is only one answer to it: greedy or seeded."""
        return self.sampling.temperature == 0 or self.sampling.seed is not None


def is_conversation(prompt: Prompt) -> bool:
    """Whether it is for the chat template."""
    return not isinstance(prompt, str) and bool(prompt) and isinstance(prompt[0], dict)


def characters(prompt: Prompt) -> int:
    """Length of its texts, with the markup of messages."""
    if isinstance(prompt, str):
        return len(prompt)
    return sum(MARKUP_CHARACTERS + _characters(message) for message in prompt if isinstance(message, dict))


def _characters(message: Message) -> int:
    texts = (message["content"], *(message.get(field) or "" for field in ("reasoning_content", "name", "tool_call_id")))
    return sum(map(len, texts)) + written(message.get("tool_calls"))


def written(structure: object) -> int:
    """Characters of what chat templates write as JSON."""
    return len(json.dumps(structure, ensure_ascii=False)) if structure else 0


def forget(job: Job, count: int) -> Job:
    """`job` without the `count` oldest messages that may go; pairs, so that a question goes with its answer."""
    count = min(count + count % 2, job.forgettable)
    [prompt] = job.prompts
    messages = [message for message in prompt if isinstance(message, dict)]
    keep = 1 if messages[0]["role"] == "system" else 0
    count = min(count, len(messages) - keep - 1)
    left = (*messages[:keep], *messages[keep + count :])
    return replace(job, prompts=(left,), forgettable=job.forgettable - count if count else 0)
