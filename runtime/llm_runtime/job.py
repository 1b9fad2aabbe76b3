"""A job: what a dialect asks the pipeline for; and how its oldest messages are dropped when the
prompt is too long."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llm_runtime import errors
from llm_runtime.request import Caller, Ending, Message, Sampling

MAX_CHOICES = 128
"""Most choices of a request, prompts times `n`. OpenAI allows this many for `n` alone."""
MAX_INPUTS = 2048
"""Most texts that one request may have embedded, as in OpenAI's API."""
NOT_ASKED = -1
"""Value of `Sampling.max_tokens` in a job whose client gave no number."""

MARKUP_CHARACTERS = 32
"""Approximate characters that a chat template writes around a message:
ChatML 28, Llama 3 52, Mistral 15."""

Messages = tuple[Message, ...]
Prompt = str | tuple[int, ...] | Messages
"""Text, token ids, or a conversation for the chat template."""


@dataclass(frozen=True, slots=True)
class Job:
    """A request in terms of the pipeline.
    It generates `prompts` times `n` choices, those of a prompt in a row.

    A new field becomes part of the cache key, unless `cache.key` excludes it.
    """

    id: str
    endpoint: str
    request_id: str
    caller: Caller
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    default_max_tokens: int | None = None
    """Used if the client gave no `max_tokens`. None means all that the model's length leaves."""
    n: int = 1
    echo: bool = False
    """Whether the client wants the prompt's text before each answer's."""
    stream: bool = False
    user: str | None = None
    adapter: str = ""
    """Name of the LoRA adapter; "" is the base model."""
    prompt_field: str = "prompt"
    """The dialect's name of the prompt field, for error messages."""
    constraint_field: str = "response_format"
    """The dialect's name of the constraint field."""
    tools: tuple[dict[str, Any], ...] = ()
    """Tools for the chat template, in the form of functions in OpenAI's API."""
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """Further variables for the chat template."""
    ending: Ending = "answer"
    """What the chat template writes after the last message."""
    special_tokens: bool = True
    """Whether the tokenizer adds its special tokens around a text."""
    shown_token_ids: tuple[int, ...] = ()
    """Special tokens that stay in the answer's text,
    because the dialect parses them (tool calls, thoughts)."""
    idempotency_key: str | None = None
    """The client's key for this request: repeated with the same key, it gets the same answer."""
    embeds: bool = False
    """Whether the prompts' embeddings are wanted, instead of answers."""
    unpooled_tokens: int = 0
    """Number of tokens at each prompt's beginning that its vector is not made of."""
    droppable_messages: int = 0
    """Number of the oldest messages, after a leading system message, that may be dropped
    (truncation) if the prompt is too long."""

    @property
    def max_tokens(self) -> int | None:
        """The client's own number; None if it gave none."""
        return None if self.sampling.max_tokens == NOT_ASKED else self.sampling.max_tokens

    @property
    def least_tokens(self) -> int:
        """Tokens for which there must be room after the prompt."""
        return 0 if self.max_tokens == 0 else 1

    @property
    def deterministic(self) -> bool:
        """Whether the answer is always the same: greedy or seeded."""
        return self.sampling.temperature == 0 or self.sampling.seed is not None


def is_conversation(prompt: Prompt) -> bool:
    """Whether the prompt is a conversation, for the chat template."""
    return not isinstance(prompt, str) and bool(prompt) and isinstance(prompt[0], dict)


def characters(prompt: Prompt) -> int:
    """Characters of the prompt's texts, with about the markup that a chat template adds;
    0 for token ids."""
    if isinstance(prompt, str):
        return len(prompt)
    return sum(
        MARKUP_CHARACTERS + _characters(message) for message in prompt if isinstance(message, dict)
    )


def _characters(message: Message) -> int:
    texts = (
        message["content"],
        *(message.get(field) or "" for field in ("reasoning_content", "name", "tool_call_id")),
    )
    return sum(map(len, texts)) + written(message.get("tool_calls"))


def written(structure: object) -> int:
    """Characters of a structure as JSON, the form in which chat templates write it."""
    return len(json.dumps(structure, ensure_ascii=False)) if structure else 0


def too_many_letters(field: str, limit: int, length: int, advice: str) -> errors.InvalidRequest:
    """The refusal of a prompt that is too long, in OpenAI's words:
    clients recognise them, and send a shorter one."""
    message = (
        f"The prompt is a string too long. Expected a string with maximum length {limit}, but got a"
        f" string with length {length} instead: {advice}."
    )
    return errors.InvalidRequest(message, param=field, code="string_above_max_length")


def drop_oldest(job: Job, count: int) -> Job:
    """Truncate a conversation: drop the `count` oldest messages that may go, rounded up to pairs,
    so that a question goes together with its answer, and what was said to it: what is left begins
    with a question."""
    count = min(count + count % 2, job.droppable_messages)
    [prompt] = job.prompts
    messages = [message for message in prompt if isinstance(message, dict)]
    keep = 1 if messages[0]["role"] == "system" else 0
    most = min(job.droppable_messages, len(messages) - keep - 1)
    count = min(count, most)
    while count < most and messages[keep + count]["role"] != "user":
        count += 1
    left = (*messages[:keep], *messages[keep + count :])
    return replace(
        job, prompts=(left,), droppable_messages=job.droppable_messages - count if count else 0
    )
