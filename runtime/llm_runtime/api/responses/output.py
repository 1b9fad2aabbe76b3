"""The items of an answer as the model writes them, and the events that tell of each step."""

from collections.abc import Iterator, Sequence
from typing import Any

from llm_runtime.api.responses.ids import output_id
from llm_runtime.tools.calls import Call, is_whole
from llm_runtime.tools.offer import Answers
from llm_runtime.tools.reader import Part

Event = tuple[str, dict[str, Any]]
"""The type of an event, and its fields but for its number."""
Item = dict[str, Any]

PARTS = {"message": "output_text", "reasoning": "reasoning_text"}
"""The type of the part that an item of text has, by the item's."""


class Output:
    """The output of one response. Of its items one at a time is open."""

    def __init__(self, response_id: str, answers: Answers) -> None:
        self._response_id = response_id
        self._answers = answers
        self.items: list[Item] = []
        """The finished ones."""
        self._open = ""
        """Type of the open item; "" if none is."""
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self.thoughts = ""

    def take(
        self, part: Part, logprobs: Sequence[dict[str, Any]] = (), *, cut: bool = False
    ) -> Iterator[Event]:
        """What is certain now, with the log probabilities of its tokens.
        `cut`: the answer ends here, before the model had said all."""
        if part.thoughts:
            self.thoughts += part.thoughts
            yield from self._text("reasoning", part.thoughts)
        if part.text:
            yield from self._text("message", part.text, logprobs)
        for call in part.calls:
            yield from self._call(call, cut=cut)

    def end(self, *, cut: bool = False) -> Iterator[Event]:
        """No more comes. An answer that says nothing is an empty message."""
        if not self.items and not self._open:
            yield from self._begin("message")
        yield from self._close("incomplete" if cut else "completed")

    def _text(
        self, type_: str, text: str, logprobs: Sequence[dict[str, Any]] = ()
    ) -> Iterator[Event]:
        if self._open != type_:
            yield from self._begin(type_)
        self._texts.append(text)
        self._logprobs += logprobs
        yield (
            f"response.{PARTS[type_]}.delta",
            {**self._place, "delta": text, **self._with(logprobs)},
        )

    def _begin(self, type_: str) -> Iterator[Event]:
        yield from self._close("completed")
        self._open = type_
        self._texts = []
        self._logprobs = []
        yield self._added(self._item("in_progress", []))
        yield "response.content_part.added", {**self._place, "part": self._part("")}

    def _close(self, status: str) -> Iterator[Event]:
        if not self._open:
            return
        text = "".join(self._texts)
        done = {**self._place, "text": text, **self._with(self._logprobs)}
        yield f"response.{PARTS[self._open]}.done", done
        yield "response.content_part.done", {**self._place, "part": self._part(text)}
        item = self._item(status, [self._part(text)])
        self._open = ""
        yield self._done(item)

    def _call(self, call: Call, *, cut: bool) -> Iterator[Event]:
        yield from self._close("completed")
        status = "incomplete" if cut and not is_whole(call.arguments) else "completed"
        item = {
            "id": self._id("function_call"),
            "type": "function_call",
            "status": status,
            "call_id": self._answers.new_id(call.name),
            "name": call.name,
            "arguments": call.arguments,
        }
        place = {"item_id": item["id"], "output_index": len(self.items)}
        arguments = "response.function_call_arguments"
        yield self._added({**item, "status": "in_progress", "arguments": ""})
        yield f"{arguments}.delta", {**place, "delta": call.arguments}
        yield f"{arguments}.done", {**place, "name": call.name, "arguments": call.arguments}
        yield self._done(item)

    def _added(self, item: Item) -> Event:
        return "response.output_item.added", {"output_index": len(self.items), "item": item}

    def _done(self, item: Item) -> Event:
        self.items.append(item)
        return "response.output_item.done", {"output_index": len(self.items) - 1, "item": item}

    def _id(self, type_: str) -> str:
        return output_id(self._response_id, type_, len(self.items))

    @property
    def _place(self) -> dict[str, Any]:
        """Where the open item's text is."""
        return {
            "item_id": self._id(self._open),
            "output_index": len(self.items),
            "content_index": 0,
        }

    def _item(self, status: str, parts: list[dict[str, Any]]) -> Item:
        own: dict[str, Any] = (
            {"summary": []} if self._open == "reasoning" else {"role": "assistant"}
        )
        item = {"id": self._id(self._open), "type": self._open, "status": status}
        return {**item, **own, "content": parts}

    def _part(self, text: str) -> dict[str, Any]:
        if self._open == "reasoning":
            return {"type": "reasoning_text", "text": text}
        known = self._logprobs if text else []
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(known)}

    def _with(self, logprobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"logprobs": list(logprobs)} if self._open == "message" else {}
