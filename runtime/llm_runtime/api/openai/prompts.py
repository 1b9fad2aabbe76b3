"""Prompts as OpenAI's API takes them: a text or token ids, one or several."""

from typing import Any

from llm_runtime.api.body import whole


def several(value: Any) -> Any:
    """Normalise to a list of prompts, with token ids as tuples."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and all(_is_token(item) for item in value):
        return [tuple(value)]
    if isinstance(value, list) and value and all(isinstance(item, list) for item in value):
        return [tuple(item) for item in value]
    return value


def _is_token(item: Any) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)


def texts_or_tokens(prompts: list[Any]) -> list[Any]:
    """Check that they are texts, or token ids, and not both. Raises ValueError."""
    texts = all(isinstance(prompt, str) for prompt in prompts)
    tokens = all(isinstance(prompt, tuple) and all(map(_is_token, prompt)) for prompt in prompts)
    if texts:
        return [whole(prompt) for prompt in prompts]
    if not tokens:
        raise ValueError(
            "must be a string, a list of strings, a list of token ids, or a list of lists of"
            " token ids"
        )
    return prompts
