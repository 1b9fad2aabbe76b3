"""The response as clients see it, at each of its stages."""

import time
from typing import Any

from llm_runtime.api.answering import model_name
from llm_runtime.api.responses.ask import Ask
from llm_runtime.pipeline import Generation, Pipeline
from llm_runtime.request import FinishReason


def document(
    ask: Ask, generation: Generation, pipeline: Pipeline, *, stored: bool
) -> dict[str, Any]:
    """A response that has just begun."""
    body = ask.body
    chosen = body.chosen(pipeline.codec.sampling_defaults)
    return {
        "id": generation.job.id,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": body.background,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions or None,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata,
        "model": model_name(generation, pipeline),
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": body.reasoning.effort, "summary": None},
        "safety_identifier": body.safety_identifier,
        "store": stored,
        "temperature": chosen["temperature"],
        "text": {"format": _format(ask)},
        "tool_choice": body.tool_choice.shown(),
        "tools": [tool.model_dump() for tool in body.tools],
        "top_logprobs": body.top_logprobs,
        "top_p": chosen["top_p"],
        "truncation": body.truncation,
        "usage": None,
        "user": body.user,
    }


def ended(
    begun: dict[str, Any],
    output: list[dict[str, Any]],
    usage: dict[str, Any],
    reason: FinishReason,
) -> dict[str, Any]:
    """The same response, once its model has said all or may say no more."""
    whole = {**begun, "output": output, "usage": usage}
    if reason is FinishReason.LENGTH:
        details = {"reason": "max_output_tokens"}
        return {**whole, "status": "incomplete", "incomplete_details": details}
    return {**whole, "status": "completed", "completed_at": int(time.time())}


def usage(generation: Generation, thought_tokens: int) -> dict[str, Any]:
    """`usage`, at the end."""
    prompt = generation.prompt_tokens
    completion = generation.completion_tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {
            "cached_tokens": generation.cached_tokens,
            "cache_write_tokens": 0,
        },
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": min(thought_tokens, completion)},
        "total_tokens": prompt + completion,
    }


def _format(ask: Ask) -> dict[str, Any]:
    return ask.body.text.format.model_dump(by_alias=True, exclude_none=True, exclude_unset=True)
