"""Responses of chat completions: complete, or as the chunks of a stream."""

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from llm_runtime.api.answering import model_name
from llm_runtime.api.openai.common import Chunks, fingerprint, logprob, usage
from llm_runtime.api.spelled import Spelled, Spelling, spelled
from llm_runtime.pipeline import Choice, Generation, Pipeline, text_of
from llm_runtime.request import FinishReason, TokenEvent
from llm_runtime.tools.calls import Call
from llm_runtime.tools.offer import Answers


def completion(
    generation: Generation, pipeline: Pipeline, choices: list[Choice], answers: Answers
) -> dict[str, Any]:
    """A complete response."""
    messages = [_message(choice.text, answers) for choice in choices]
    tokens = spelled(generation.job, pipeline.codec)
    return {
        **_envelope(generation, pipeline, "chat.completion"),
        "choices": [
            {
                "index": index,
                "message": message,
                "logprobs": _logprobs(tokens[index], choice.events, ended=True),
                "finish_reason": _finish_reason(choice.finish_reason, "tool_calls" in message),
            }
            for index, (choice, message) in enumerate(zip(choices, messages, strict=True))
        ],
        "usage": usage(generation),
    }


async def chunks(
    generation: Generation, pipeline: Pipeline, answers: Answers, *, include_usage: bool
) -> AsyncGenerator[bytes]:
    """Chunks of a stream: roles of all choices, texts and calls as they come, finish reasons,
    and the usage."""
    out = Chunks(
        _envelope(generation, pipeline, "chat.completion.chunk"), include_usage, _text_delta
    )
    deltas = [_Deltas(answers) for _ in range(generation.choices)]
    tokens = spelled(generation.job, pipeline.codec)
    for index in range(generation.choices):
        yield out.choice(_delta(index, {"role": "assistant", "content": "", "refusal": None}))
    async with aclosing(generation.bursts()) as bursts:
        async for index, events in bursts:
            reason = events[-1].finish_reason
            own = deltas[index]
            text = own.take(text_of(events), final=reason is not None)
            logprobs = _logprobs(tokens[index], events, ended=reason is not None)
            if own.thoughts:
                yield out.choice(_delta(index, {"reasoning_content": own.thoughts}))
            if logprobs and logprobs["content"]:
                yield out.choice(_delta(index, {"content": text}, logprobs))
            elif text:
                yield out.text(index, text)
            for delta in own.calls():
                yield out.choice(_delta(index, delta))
            if reason:
                yield out.choice(
                    _delta(index, {}, finish_reason=_finish_reason(reason, own.told > 0))
                )
    if include_usage:
        yield out.usage(generation)


class _Deltas:
    """Builds the deltas of one choice of a stream."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._reader = answers.reader()
        self._pending: list[dict[str, Any]] = []
        self.thoughts = ""
        self.told = 0

    def take(self, text: str, *, final: bool) -> str:
        """The text between thoughts and calls."""
        part = self._reader.take(text, final=final)
        self.thoughts = part.thoughts
        self._pending = [_call(call, self._answers) for call in part.calls]
        return part.text

    def calls(self) -> Iterator[dict[str, Any]]:
        """Two deltas for each new call: its id and name, then its arguments."""
        for call in self._pending:
            index = self.told
            arguments = call["function"]["arguments"]
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


def _message(text: str, answers: Answers) -> dict[str, Any]:
    part = answers.reader().take(text, final=True)
    message: dict[str, Any] = {"role": "assistant", "content": part.text, "refusal": None}
    if part.thoughts:
        message["reasoning_content"] = part.thoughts
    if not part.calls:
        return message
    return {
        **message,
        "content": part.text or None,
        "tool_calls": [_call(call, answers) for call in part.calls],
    }


def _call(call: Call, answers: Answers) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": answers.new_id(call.name), "type": "function", "function": function}


def _finish_reason(reason: FinishReason, called: bool) -> str:
    return "tool_calls" if called and reason is FinishReason.STOP else reason


def _text_delta(index: int, text: str) -> dict[str, Any]:
    return _delta(index, {"content": text})


def _delta(
    index: int,
    delta: dict[str, Any],
    logprobs: dict[str, Any] | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprobs(
    tokens: Spelled | None, events: list[TokenEvent], *, ended: bool
) -> dict[str, Any] | None:
    if tokens is None:
        return None
    return {"content": [_token(each) for each in tokens.take(events, ended=ended)], "refusal": None}


def _token(each: Spelling) -> dict[str, Any]:
    rivals = [_entry(rival.text, rival.logprob, own) for rival, own in each.rivals]
    return {**_entry(each.text, each.event.logprob, each.own), "top_logprobs": rivals}


def _entry(text: str, value: float | None, own: bytes) -> dict[str, Any]:
    return {"token": text, "logprob": logprob(value), "bytes": list(own)}
