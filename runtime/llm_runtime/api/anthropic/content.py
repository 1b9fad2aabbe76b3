"""Messages of a conversation: parsed from the blocks of Anthropic's clients, checked against each
other, converted to the form of chat templates."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from llm_runtime.api.body import MAX_MESSAGES, Baggage, Structure, Text, one_of
from llm_runtime.request import Message

NEEDS = {
    "text": ("text",),
    "thinking": ("thinking",),
    "redacted_thinking": (),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id",),
}
"""What a block must have, by its type."""
PLACES = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "system": ("text",),
}
"""Types of the blocks of a message, by its role."""


TEXT_ONLY = (
    "the model reads text only: send what images, documents and results of Anthropic's own tools"
    " say as text"
)


class TextBlock(Baggage):
    """A block of `system` or of a tool's result."""

    type: Annotated[Literal["text"], one_of(["text"], TEXT_ONLY)]
    text: Text


def _as_blocks(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _as_result(value: Any) -> Any:
    """A tool's result as blocks. An object is written as JSON."""
    return _as_blocks(json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value)


Texts = Annotated[
    list[TextBlock],
    Field(max_length=MAX_MESSAGES),
    BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock]),
]
Result = Annotated[
    list[TextBlock],
    Field(max_length=MAX_MESSAGES),
    BeforeValidator(_as_result, json_schema_input_type=str | dict[str, Any] | list[TextBlock]),
]


class InputBlock(Baggage):
    """A block of a message. A client sends back an answer's blocks as they came."""

    type: Annotated[
        Literal["text", "thinking", "redacted_thinking", "tool_use", "tool_result"],
        one_of(NEEDS, TEXT_ONLY),
    ]
    text: Text | None = None
    thinking: Text | None = None
    """What the assistant thought before it spoke; some chat templates show it to the model."""
    id: Text | None = None
    """The call's."""
    name: Text | None = None
    """The called tool's."""
    input: Structure | None = None
    """The arguments of the call."""
    tool_use_id: Text | None = None
    """Id of the call whose result this is."""
    content: Result = Field(default_factory=list)
    is_error: bool = False
    """Whether the tool failed. The model is told so by the word `Error` before the result."""

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> "InputBlock":
        for name in NEEDS[self.type]:
            if getattr(self, name) is None:
                raise ValueError(f"a block of type {self.type} must have {name}")
        return self

    @property
    def result(self) -> str:
        """What the tool said."""
        said = joined(self.content)
        if not self.is_error:
            return said
        return f"Error: {said}" if said else "Error"


class InputMessage(Baggage):
    """One message. A client may send back an answer whole, with all that stood beside it."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        list[InputBlock],
        Field(max_length=MAX_MESSAGES),
        BeforeValidator(_as_blocks, json_schema_input_type=str | list[InputBlock]),
    ]

    @property
    def speaks_of_tools(self) -> bool:
        return any(block.type in ("tool_use", "tool_result") for block in self.content)


@dataclass(frozen=True, slots=True)
class Turn:
    """Messages of one role in a row, which are one."""

    role: str
    number: int
    """Number of its first message."""
    blocks: list[tuple[str, InputBlock]] = field(default_factory=list)
    """Each with where it stands in the request."""

    def of(self, type_: str) -> list[tuple[str, InputBlock]]:
        """The blocks of one type."""
        return [(place, block) for place, block in self.blocks if block.type == type_]

    @property
    def text(self) -> str:
        return joined([block for _, block in self.of("text")])


def joined(blocks: Sequence[TextBlock | InputBlock]) -> str:
    """One text of several, which are lines."""
    return "\n".join(block.text for block in blocks if block.text)


def turns(messages: Sequence[InputMessage]) -> list[Turn]:
    """The conversation in turns."""
    found: list[Turn] = []
    for number, message in enumerate(messages):
        if not found or found[-1].role != message.role:
            found.append(Turn(message.role, number))
        found[-1].blocks.extend(
            (f"messages[{number}].content[{position}]", block)
            for position, block in enumerate(message.content)
        )
    return found


def problems(messages: Sequence[InputMessage]) -> Iterator[tuple[str, str]]:
    """(field, what is wrong) of messages that don't make a conversation."""
    said = turns(messages)
    first = next((turn for turn in said if turn.role != "system"), None)
    if first is None or first.role != "user":
        number = first.number if first else 0
        yield f"messages[{number}].role", "a conversation begins with a message of the user"
    if said[-1].role == "assistant":
        yield (
            f"messages[{len(messages) - 1}].role",
            "an answer is begun anew here, never continued; let a message of the user be the last",
        )
    calls: list[str | None] = []
    for turn in said:
        yield from _misplaced(turn)
        yield from _unpaired(turn, calls)
        calls = [block.id for _, block in turn.of("tool_use")]
        if len(set(calls)) < len(calls):
            yield f"messages[{turn.number}].content", "two blocks of type tool_use have the same id"


def _misplaced(turn: Turn) -> Iterator[tuple[str, str]]:
    for place, block in turn.blocks:
        if block.type not in PLACES[turn.role]:
            yield f"{place}.type", f"a message of role {turn.role} holds no {block.type}"
    if turn.role == "user" and not turn.text and not turn.of("tool_result"):
        yield f"messages[{turn.number}].content", "is empty; write something"


def _unpaired(turn: Turn, calls: Sequence[str | None]) -> Iterator[tuple[str, str]]:
    """What is wrong with the results in a turn that follows `calls`."""
    results = turn.of("tool_result")
    left = list(calls)
    for place, block in results:
        if block.tool_use_id in left:
            left.remove(block.tool_use_id)
        else:
            yield (
                f"{place}.tool_use_id",
                "is no tool_use of the message before that waits for its result; send the"
                " assistant's message with that tool_use before it, and one result for each",
            )
    if left:
        yield (
            f"messages[{turn.number}].content",
            "lacks a tool_result; each tool_use needs one in the message after it",
        )
    if results and turn.blocks[: len(results)] != results:
        yield (
            f"messages[{turn.number}].content",
            "has something before a tool_result; results come first",
        )


def for_template(system: str, messages: Sequence[InputMessage]) -> tuple[Message, ...]:
    """A conversation for chat templates, where a result is a message of its own."""
    converted: list[Message] = [{"role": "system", "content": system}] if system else []
    names: dict[str | None, str | None] = {}
    for turn in turns(messages):
        converted += (_result(block, names) for _, block in turn.of("tool_result"))
        if turn.role == "assistant":
            converted.append(_answer(turn))
            names = {block.id: block.name for _, block in turn.of("tool_use")}
        elif text := turn.text:
            converted.append({"role": turn.role, "content": text})
    return tuple(converted)


def _result(block: InputBlock, names: dict[str | None, str | None]) -> Message:
    # Some templates need the tool's name.
    return {
        "role": "tool",
        "content": block.result,
        "tool_call_id": block.tool_use_id,
        "name": names[block.tool_use_id],
    }


def _answer(turn: Turn) -> Message:
    message: Message = {"role": "assistant", "content": turn.text}
    if calls := turn.of("tool_use"):
        message["tool_calls"] = [
            {
                "id": block.id,
                "type": "function",
                "function": {"name": block.name, "arguments": block.input},
            }
            for _, block in calls
        ]
    if thought := "\n".join(block.thinking or "" for _, block in turn.of("thinking")):
        message["reasoning_content"] = thought
    return message
