"""Messages of a conversation, as OpenAI's clients send them and as chat templates take them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from llm_runtime.api.body import Body, Text
from llm_runtime.request import Message

MAX_DEPTH = 64


class TextPart(Body):
    """A part of a message's content; this server reads text only."""

    type: Literal["text"]
    text: Text


def writable(structure: dict[str, Any]) -> dict[str, Any]:
    """`structure`, if it can be written into a prompt. Raises ValueError."""
    depth, level = 0, list[Any]([structure])
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
        level = [inner for value in level for inner in _inside(value) if isinstance(inner, dict | list)]
    json.dumps(
        structure, ensure_ascii=False
    ).encode()  # UnicodeEncodeError, for half a surrogate pair, is a ValueError.
    return structure


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


Structure = Annotated[dict[str, Any], AfterValidator(writable)]


def _as_parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Content = Annotated[
    list[TextPart], Field(min_length=1), BeforeValidator(_as_parts, json_schema_input_type=str | list[TextPart])
]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class CalledFunction(Body):
    """What the model called; `arguments` is the text of a JSON object."""

    name: FunctionName
    arguments: Text = ""
    parsed_arguments: Any = None
    """What OpenAI's Python client made of `arguments`: it sends both back, unasked."""

    def parsed(self) -> dict[str, Any] | None:
        """The arguments as chat templates take them; None if they are no object."""
        try:
            arguments = json.loads(self.arguments or "{}")
            return writable(arguments) if isinstance(arguments, dict) else None
        except (ValueError, RecursionError):
            return None


class ToolCall(Body):
    """A call in an earlier answer. A client may send back an answer's call as it came, in a stream or whole."""

    id: Annotated[Text, Field(min_length=1, max_length=256)]
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None
    """As in a stream's chunks; the order says it already."""


class ChatMessage(Body):
    """One message. A client may send back an answer's message as it came."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] = Field(default_factory=list)
    """What the assistant called."""
    tool_call_id: Annotated[Text, Field(min_length=1, max_length=256)] | None = None
    """Whose result a tool's message is."""
    name: FunctionName | None = None
    """The tool's."""
    parsed: Any = None
    """What OpenAI's Python client made of `content`."""
    no_effect: ClassVar[dict[str, tuple[Any, ...]]] = {"annotations": ([],), "refusal": ("",)}

    def problems(self) -> Iterator[tuple[str, str]]:
        """(field, what is wrong) of fields that don't go with the role."""
        if self.content is None and not self.tool_calls:
            yield "content", "required"
        if self.tool_calls and self.role != "assistant":
            yield "tool_calls", "only the assistant calls tools"
        if (self.role == "tool") != (self.tool_call_id is not None):
            yield "tool_call_id", "goes with messages of role tool, and must be there"
        if self.name and self.role != "tool":
            yield "name", "this server knows names of tools only; put others into the content"
        for number, call in enumerate(self.tool_calls):
            if call.function.parsed() is None:
                yield f"tool_calls[{number}].function.arguments", "must be the text of a JSON object"

    @property
    def speaks_of_tools(self) -> bool:
        return self.role == "tool" or bool(self.tool_calls)

    def for_template(self) -> Message:
        """As chat templates take it; they know `developer` by its older name."""
        role = "system" if self.role == "developer" else self.role
        message: Message = {"role": role, "content": "".join(part.text for part in self.content or ())}
        if self.tool_calls:
            message["tool_calls"] = [_for_template(call) for call in self.tool_calls]
        if self.tool_call_id:
            message["tool_call_id"] = self.tool_call_id
        return message


def for_template(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """A conversation as chat templates take it. Some want every result to name its tool, which clients rarely do."""
    names = {call.id: call.function.name for message in messages for call in message.tool_calls}
    converted = []
    for message in messages:
        plain = message.for_template()
        if name := message.name or names.get(message.tool_call_id or ""):
            plain["name"] = name
        converted.append(plain)
    return tuple(converted)


def _for_template(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.parsed()}
    return {"id": call.id, "type": "function", "function": function}
