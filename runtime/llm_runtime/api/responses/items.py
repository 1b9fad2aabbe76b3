"""Items of a conversation: parsed from the form of OpenAI's clients, checked against each other,
and as they are kept."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from llm_runtime.api.body import MAX_MESSAGES, Baggage, Text, one_of

NEEDS = {
    "message": ("role", "content"),
    "reasoning": (),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "item_reference": ("id",),
}
"""What an item must have, by its type."""
NO_OTHER_ITEMS = (
    "this server runs no tools of its own: send what was found as a message, or as the output of a"
    " function"
)
PARTS = ("input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text")
TEXT_ONLY = "the model reads text only: send what images, files and audio say as text"


class Part(Baggage):
    """A part of a content."""

    type: Annotated[
        Literal["input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"],
        one_of(PARTS, TEXT_ONLY),
    ]
    text: Text | None = None
    refusal: Text | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "Part":
        field = "refusal" if self.type == "refusal" else "text"
        if getattr(self, field) is None:
            raise ValueError(f"a part of type {self.type} must have {field}")
        return self

    @property
    def said(self) -> str:
        return (self.refusal if self.type == "refusal" else self.text) or ""


def _as_parts(value: Any) -> Any:
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


Parts = Annotated[
    list[Part],
    Field(max_length=MAX_MESSAGES),
    BeforeValidator(_as_parts, json_schema_input_type=str | list[Part]),
]


class InputItem(Baggage):
    """An item. A client sends back those of a response as they came."""

    type: Annotated[
        Literal["message", "reasoning", "function_call", "function_call_output", "item_reference"],
        one_of(NEEDS, NO_OTHER_ITEMS),
    ] = "message"
    id: Text | None = None
    """The item's own; a reference's is that of an item that is kept."""
    role: Literal["user", "assistant", "system", "developer"] | None = None
    """A message's."""
    content: Parts | None = None
    """What a message says, or what the model thought."""
    summary: Parts = Field(default_factory=list)
    """What other servers tell of their models' thoughts."""
    call_id: Text | None = None
    """The call's, which its output repeats."""
    name: Text | None = None
    """The called function's."""
    arguments: Text | None = None
    """The text of a JSON object, if the model wrote one."""
    output: Parts | None = None
    """What the function said."""

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> "InputItem":
        for name in NEEDS[self.type]:
            if getattr(self, name) is None:
                raise ValueError(f"an item of type {self.type} must have {name}")
        return self

    @property
    def speaks_of_tools(self) -> bool:
        return self.type in ("function_call", "function_call_output")

    @property
    def text(self) -> str:
        """What a message or a function said, as one text. Parts are joined as lines."""
        parts = self.output if self.type == "function_call_output" else self.content
        return joined(parts or ())

    @property
    def thought(self) -> str:
        """What the model thought."""
        return joined(self.content or self.summary)

    def kept(self, id_: str, masked: Callable[[Any], Any]) -> dict[str, Any]:
        """The item as it is kept, and clients list it. What it says is `masked`."""
        own = {"id": id_, "type": self.type, "status": "completed"}
        match self.type:
            case "message":
                type_ = "output_text" if self.role == "assistant" else "input_text"
                parts = [_part(type_, part, masked) for part in self.content or ()]
                return {**own, "role": self.role, "content": parts}
            case "reasoning":
                thoughts = [_part("reasoning_text", part, masked) for part in self.content or ()]
                summary = [_part("summary_text", part, masked) for part in self.summary]
                return {**own, "summary": summary, "content": thoughts}
            case "function_call":
                called = {"name": self.name, "arguments": masked(self.arguments)}
                return {**own, "call_id": self.call_id, **called}
        return {**own, "call_id": self.call_id, "output": masked(self.text)}


def _typed(value: Any) -> Any:
    """An item as clients may write a reference: with nothing but an id."""
    if isinstance(value, dict) and not value.get("type") and "role" not in value and "id" in value:
        return {**value, "type": "item_reference"}
    return value


Item = Annotated[InputItem, BeforeValidator(_typed)]


def joined(parts: Iterable[Part]) -> str:
    """One text of several, which are lines."""
    return "\n".join(part.said for part in parts if part.said)


def problems(before: Sequence[InputItem], items: Sequence[InputItem]) -> Iterator[tuple[str, str]]:
    """(field, what is wrong) of calls and outputs that have no counterpart. `before` are the items
    of the responses that these continue."""
    called: set[str | None] = set()
    waiting: dict[str | None, str] = {}
    places = [*["input"] * len(before), *(f"input[{number}]" for number in range(len(items)))]
    for place, item in zip(places, [*before, *items], strict=True):
        if item.type == "function_call":
            called.add(item.call_id)
            waiting[item.call_id] = place
        elif item.type == "function_call_output":
            if item.call_id not in called:
                yield (
                    f"{place}.call_id",
                    "no function_call before it has this call_id; send the call, too, or the"
                    " previous_response_id of the response that made it",
                )
            waiting.pop(item.call_id, None)
    for call_id, place in waiting.items():
        yield place, f"no function_call_output answers the call {str(call_id)[:100]!r}; send one"


def _part(type_: str, part: Part, masked: Callable[[Any], Any]) -> dict[str, Any]:
    if part.type == "refusal":
        return {"type": "refusal", "refusal": masked(part.refusal)}
    kept = {"type": type_, "text": masked(part.text)}
    return {**kept, "annotations": []} if type_ == "output_text" else kept
