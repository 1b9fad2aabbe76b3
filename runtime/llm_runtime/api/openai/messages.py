"""Messages of a conversation: parsed from the form of OpenAI's clients,
converted to the form of chat templates."""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from llm_runtime.api.body import MAX_MESSAGES, Baggage, Text, writable
from llm_runtime.api.openai.fields import NEUTRAL_IN_MESSAGES
from llm_runtime.request import Message


def _as_thought(value: Any) -> str:
    """Reasoning as servers write it: a text, or parts with texts. Anything else is none."""
    if isinstance(value, list):
        texts = [part.get("text") for part in value if isinstance(part, dict)]
        return "\n".join(text for text in texts if isinstance(text, str))
    return value if isinstance(value, str) else ""


Thought = Annotated[Text, BeforeValidator(_as_thought, json_schema_input_type=Any)]


class Part(Baggage):
    """A part of a message's content; this server reads text only.
    `thinking` is what an answer thought before."""

    type: Literal["text", "input_text", "output_text", "refusal", "thinking"]
    text: Text | None = None
    refusal: Text | None = None
    thinking: Thought = ""

    @model_validator(mode="after")
    def _has_what_it_says(self) -> "Part":
        field = "refusal" if self.type == "refusal" else "text"
        if self.type != "thinking" and getattr(self, field) is None:
            raise ValueError(f"a part of type {self.type} must have a {field}")
        return self

    @property
    def said(self) -> str | None:
        """The text that this part adds to its message."""
        return {"refusal": self.refusal, "thinking": None}.get(self.type, self.text)


def _as_parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Content = Annotated[
    list[Part],
    Field(max_length=MAX_MESSAGES),
    BeforeValidator(_as_parts, json_schema_input_type=str | list[Part]),
]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


def _as_text(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


class CalledFunction(Baggage):
    """What the model called; `arguments` is the text of a JSON object, if the model wrote one."""

    name: Text
    arguments: Annotated[
        Text, BeforeValidator(_as_text, json_schema_input_type=str | dict[str, Any])
    ] = ""

    def parsed(self) -> dict[str, Any] | str:
        """The arguments for chat templates: an object,
        or the model's own text if that is not an object."""
        try:
            arguments = json.loads(self.arguments or "{}")
            return (
                writable(arguments or {}) if isinstance(arguments, dict | None) else self.arguments
            )
        except (ValueError, RecursionError):
            return self.arguments


class ToolCall(Baggage):
    """A call in an earlier answer.
    A client may send back an answer's call as it came, in a stream or whole."""

    id: Text
    """Some gateways write whole signatures into it."""
    function: CalledFunction
    type: Literal["function"] = "function"


class ChatMessage(Baggage):
    """One message. A client may send back an answer's message as it came, from whatever server."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] = Field(default_factory=list)
    """What the assistant called."""
    tool_call_id: Text | None = None
    """Id of the call whose result a tool's message is."""
    name: Text | None = None
    """The tool's, or whose message it is."""
    reasoning_content: Thought = ""
    """What the assistant thought before it spoke; some chat templates show it to the model."""
    reasoning: Thought = ""
    thinking: Thought = ""
    """Other names of it."""
    refusal: Text | None = None
    """What the assistant said instead of an answer."""
    no_effect: ClassVar[dict[str, tuple[Any, ...]]] = NEUTRAL_IN_MESSAGES

    def problems(self) -> Iterator[tuple[str, str]]:
        """(field, what is wrong) of fields that don't fit the role."""
        if self.content is None and self.role not in ("assistant", "tool"):
            yield "content", "required"
        if self.tool_calls and self.role != "assistant":
            yield "tool_calls", "only the assistant calls tools"
        if self.role == "tool" and self.tool_call_id is None:
            yield "tool_call_id", "must be there in messages of role tool"

    @property
    def speaks_of_tools(self) -> bool:
        return self.role == "tool" or bool(self.tool_calls)

    @property
    def text(self) -> str:
        """The content as one text. Parts are joined as lines."""
        parts = [part.said for part in self.content or () if part.said is not None]
        return "\n".join(parts) if any(parts) else self.refusal or ""

    @property
    def thought(self) -> str:
        """What the assistant thought before it spoke."""
        named = self.reasoning_content or self.reasoning or self.thinking
        return named or "\n".join(part.thinking for part in self.content or () if part.thinking)

    def for_template(self) -> Message:
        """The message for chat templates, which know `developer` by its older name, `system`."""
        role = "system" if self.role == "developer" else self.role
        message: Message = {"role": role, "content": self.text}
        if self.name:
            message["name"] = self.name
        if self.tool_calls:
            message["tool_calls"] = [_for_template(call) for call in self.tool_calls]
        if self.role == "tool":
            message["tool_call_id"] = self.tool_call_id
        if self.role == "assistant" and (thought := self.thought):
            message["reasoning_content"] = thought
        return message


def for_template(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """A conversation for chat templates.
    Adds each result's tool name: some templates need it, few clients send it."""
    names = {call.id: call.function.name for message in messages for call in message.tool_calls}
    converted = []
    for message in messages:
        plain = message.for_template()
        if (
            message.role == "tool"
            and not message.name
            and (name := names.get(message.tool_call_id or ""))
        ):
            plain["name"] = name
        converted.append(plain)
    return tuple(converted)


def _for_template(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.parsed()}
    return {"id": call.id, "type": "function", "function": function}
