"""Answers of chat completions: whole, or as the chunks of a stream."""

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from llm_runtime.api.answering import model_name
from llm_runtime.api.openai.common import Chunks, fingerprint, logprob, usage
from llm_runtime.api.openai.offer import Offer
from llm_runtime.pipeline import Choice, Generation, Job, Pipeline, text_of
from llm_runtime.request import FinishReason, TextCodec, TokenEvent


def completion(
    generation: Generation, pipeline: Pipeline, choices: list[Choice], offer: Offer | None
) -> dict[str, Any]:
    """A whole answer."""
    messages = [_message(choice.text, offer) for choice in choices]
    return {
        **_envelope(generation, pipeline, "chat.completion"),
        "choices": [
            {
                "index": index,
                "message": message,
                "logprobs": _logprobs(generation.job, choice.events, pipeline.codec),
                "finish_reason": _finish_reason(choice.finish_reason, "tool_calls" in message),
            }
            for index, (choice, message) in enumerate(zip(choices, messages, strict=True))
        ],
        "usage": usage(generation),
    }


async def chunks(
    generation: Generation, pipeline: Pipeline, offer: Offer | None, *, include_usage: bool
) -> AsyncGenerator[bytes]:
    """First every choice's role, then texts and calls as they come, each choice's finish reason, and the usage."""
    out = Chunks(_envelope(generation, pipeline, "chat.completion.chunk"), include_usage, _text_delta)
    calls = [_Calls(offer) for _ in range(generation.choices)]
    for index in range(generation.choices):
        yield out.choice(_delta(index, {"role": "assistant", "content": "", "refusal": None}))
    async with aclosing(generation.bursts()) as bursts:
        async for index, events in bursts:
            reason, own = events[-1].finish_reason, calls[index]
            text = own.take(text_of(events), final=reason is not None)
            logprobs = _logprobs(generation.job, events, pipeline.codec)
            if logprobs and logprobs["content"]:
                yield out.choice(_delta(index, {"content": text}, logprobs))
            elif text:
                yield out.text(index, text)
            for delta in own.deltas():
                yield out.choice(_delta(index, delta))
            if reason:
                yield out.choice(_delta(index, {}, finish_reason=_finish_reason(reason, own.told > 0)))
    if include_usage:
        yield out.usage(generation)


class _Calls:
    """The calls of one choice of a stream."""

    def __init__(self, offer: Offer | None) -> None:
        self._offer, self._reader = offer, offer.reader() if offer else None
        self._pending: list[dict[str, Any]] = []
        self.told = 0

    def take(self, text: str, *, final: bool) -> str:
        """The text around the calls."""
        if self._offer is None or self._reader is None:
            return text
        text, calls = self._reader.take(text, final=final)
        self._pending = [self._offer.rendered(call) for call in calls]
        return text

    def deltas(self) -> Iterator[dict[str, Any]]:
        """Two for each new call: which it is, and its arguments."""
        for call in self._pending:
            index, arguments = self.told, call["function"]["arguments"]
            head = {**call, "function": {**call["function"], "arguments": ""}}
            yield {"tool_calls": [{"index": index, **head}]}
            yield {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}
            self.told += 1
        self._pending = []


def _envelope(generation: Generation, pipeline: Pipeline, object_: str) -> dict[str, Any]:
    return {
        "id": generation.job.id,
        "object": object_,
        "created": int(time.time()),
        "model": model_name(generation, pipeline),
        "system_fingerprint": fingerprint(pipeline),
    }


def _message(text: str, offer: Offer | None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if offer is None:
        return message
    content, calls = offer.reader().take(text, final=True)
    if not calls:
        return message
    return {**message, "content": content or None, "tool_calls": [offer.rendered(call) for call in calls]}


def _finish_reason(reason: FinishReason, called: bool) -> str:
    return "tool_calls" if called and reason is FinishReason.STOP else reason


def _text_delta(index: int, text: str) -> dict[str, Any]:
    return _delta(index, {"content": text})


def _delta(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish_reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprobs(job: Job, events: list[TokenEvent], codec: TextCodec) -> dict[str, Any] | None:
    if job.sampling.logprobs is None:
        return None
    return {"content": [_token(event, codec) for event in events if event.token_id is not None], "refusal": None}


def _token(event: TokenEvent, codec: TextCodec) -> dict[str, Any]:
    text = codec.token_text(event.token_id) if event.token_id is not None else ""
    alternatives = [_entry(top.text, top.logprob) for top in event.top_logprobs]
    return {**_entry(text, event.logprob), "top_logprobs": alternatives}


def _entry(text: str, value: float | None) -> dict[str, Any]:
    # Part of a character has no text of its own, and its bytes are not known here.
    whole = "\ufffd" not in text
    return {"token": text, "logprob": logprob(value), "bytes": list(text.encode()) if whole else None}
