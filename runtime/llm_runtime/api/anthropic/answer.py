"""Answers: whole messages, or the events of a stream."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from json.encoder import encode_basestring as quoted
from typing import Any

import orjson

from llm_runtime.api.answering import model_name
from llm_runtime.pipeline import Choice, Generation, Pipeline, text_of
from llm_runtime.request import FinishReason
from llm_runtime.stream import named_sse
from llm_runtime.text.templates import as_far_as_read
from llm_runtime.tools.calls import Call, is_whole, written
from llm_runtime.tools.offer import Answers

PING = named_sse({"type": "ping"})


def message(
    generation: Generation, pipeline: Pipeline, choice: Choice, answers: Answers
) -> dict[str, Any]:
    """A whole message."""
    part = answers.reader().take(choice.text, final=True)
    return {
        **_envelope(generation, pipeline),
        "content": [
            *([_thinking(part.thoughts)] if part.thoughts else []),
            *([_text(part.text)] if part.text else []),
            *(_tool_use(call, answers, _input(call.arguments)) for call in part.calls),
        ],
        **_stop(choice.finish_reason, choice.stopped_by, called=bool(part.calls)),
        "usage": usage(generation),
    }


async def events(
    generation: Generation, pipeline: Pipeline, answers: Answers
) -> AsyncGenerator[bytes]:
    """Events of a stream: the message, its blocks one after the other, why it ended, and the
    usage.

    It begins with the first token: only then it is known how much of the prompt was cached.
    """
    reader = answers.reader()
    blocks = _Blocks(answers)
    begun = False
    stop: dict[str, Any] = {}
    async with aclosing(generation.bursts()) as bursts:
        async for _, burst in bursts:
            if not begun:
                begun = True
                yield _start(generation, pipeline)
            last = burst[-1]
            part = reader.take(text_of(burst), final=last.finish_reason is not None)
            if part.thoughts:
                yield blocks.thought(part.thoughts)
            if part.text:
                yield blocks.text(part.text)
            for call in part.calls:
                yield blocks.call(call)
            if last.finish_reason:
                stop = _stop(last.finish_reason, last.stopped_by, called=blocks.called)
    yield blocks.end()
    yield named_sse({"type": "message_delta", "delta": stop, "usage": usage(generation)})
    yield named_sse({"type": "message_stop"})


def usage(generation: Generation) -> dict[str, int]:
    """`usage`, up to now. The three of the prompt add up to its tokens; none are billed for being
    kept."""
    cached = generation.cached_tokens
    return {
        "input_tokens": generation.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": generation.completion_tokens,
    }


class _Blocks:
    """Renders the blocks of one stream, of which one at a time is open."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._index = -1
        self._open = ""
        """Type of the open block; "" if none is."""
        self.called = False

    def thought(self, text: str) -> bytes:
        begin = b"" if self._open == "thinking" else self._begin(_thinking(""))
        return begin + self._delta("thinking_delta", "thinking", text)

    def text(self, text: str) -> bytes:
        begin = b"" if self._open == "text" else self._begin(_text(""))
        return begin + self._delta("text_delta", "text", text)

    def call(self, call: Call) -> bytes:
        self.called = True
        begin = self._begin(_tool_use(call, self._answers, {}))
        return begin + self._delta("input_json_delta", "partial_json", call.arguments)

    def end(self) -> bytes:
        """End the open block, if there is one."""
        if not self._open:
            return b""
        self._open = ""
        return named_sse({"type": "content_block_stop", "index": self._index})

    def _begin(self, block: dict[str, Any]) -> bytes:
        end = self.end()
        self._index += 1
        self._open = block["type"]
        event = {"type": "content_block_start", "index": self._index, "content_block": block}
        # Anthropic's API sends one here, too.
        return end + named_sse(event) + (b"" if self._index else PING)

    def _delta(self, kind: str, field: str, text: str) -> bytes:
        # Most events are these: written out, they cost a fraction.
        return (
            f'event: content_block_delta\ndata: {{"type":"content_block_delta","index":{self._index},'
            f'"delta":{{"type":"{kind}","{field}":{quoted(text)}}}}}\n\n'
        ).encode()


def _start(generation: Generation, pipeline: Pipeline) -> bytes:
    begun = {
        **_envelope(generation, pipeline),
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage(generation),
    }
    return named_sse({"type": "message_start", "message": begun})


def _envelope(generation: Generation, pipeline: Pipeline) -> dict[str, Any]:
    return {
        "id": generation.job.id,
        "type": "message",
        "role": "assistant",
        "model": model_name(generation, pipeline),
    }


def _thinking(thoughts: str) -> dict[str, Any]:
    # Nobody signs thoughts here: they are taken back from whomever they come.
    return {"type": "thinking", "thinking": thoughts, "signature": ""}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _tool_use(call: Call, answers: Answers, input_: Any) -> dict[str, Any]:
    return {
        "type": "tool_use",
        "id": answers.new_id(call.name),
        "name": call.name,
        "input": input_,
    }


def _input(arguments: str) -> orjson.Fragment:
    """The arguments as the model wrote them; of truncated ones the object that they begin."""
    if not arguments:
        return orjson.Fragment("{}")
    whole = is_whole(arguments)
    return orjson.Fragment(arguments if whole else written(as_far_as_read(arguments)))


def _stop(reason: FinishReason, stopped_by: str, *, called: bool) -> dict[str, Any]:
    word = "end_turn"
    if reason is FinishReason.LENGTH:
        word = "max_tokens"
    elif stopped_by:
        word = "stop_sequence"
    elif called:
        word = "tool_use"
    return {"stop_reason": word, "stop_sequence": stopped_by or None}
