"""Items as the messages of a chat template, where thoughts, text and calls of one turn are one
message."""

from collections.abc import Iterable
from typing import Any

from llm_runtime.api.openai.messages import CalledFunction
from llm_runtime.api.responses.items import InputItem
from llm_runtime.request import Message


def for_template(instructions: str, items: Iterable[InputItem]) -> tuple[Message, ...]:
    """A conversation for chat templates, which know `developer` by its older name, `system`.
    What stands before the first turn is one system message, with the `instructions` first."""
    messages: list[Message] = [{"role": "system", "content": instructions}] if instructions else []
    names: dict[str | None, str | None] = {}
    thought = ""
    for item in items:
        if item.type == "reasoning":
            thought = item.thought
        elif item.type == "function_call":
            names[item.call_id] = item.name
            _turn(messages, thought).setdefault("tool_calls", []).append(_call(item))
            thought = ""
        elif item.type == "function_call_output":
            messages.append(_result(item, names))
        elif item.role == "assistant":
            _join(_turn(messages, thought), item.text)
            thought = ""
        elif item.role == "user":
            messages.append({"role": "user", "content": item.text})
        elif messages and all(message["role"] == "system" for message in messages):
            _join(messages[0], item.text)
        else:
            messages.append({"role": "system", "content": item.text})
    return tuple(messages)


def droppable(messages: tuple[Message, ...]) -> int:
    """How many messages stand between the system message and the last question."""
    first = 1 if messages[0]["role"] == "system" else 0
    questions = [at for at, message in enumerate(messages) if message["role"] == "user"]
    return max(0, questions[-1] - first) if questions else 0


def _turn(messages: list[Message], thought: str) -> Message:
    """The assistant's turn that the next item belongs to."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    turn = messages[-1]
    if thought:
        _join(turn, thought, "reasoning_content")
    return turn


def _join(message: Message, text: str, field: str = "content") -> None:
    message[field] = "\n".join(filter(None, (message.get(field), text)))


def _call(item: InputItem) -> dict[str, Any]:
    called = CalledFunction(name=item.name or "", arguments=item.arguments or "")
    function = {"name": called.name, "arguments": called.parsed()}
    return {"id": item.call_id, "type": "function", "function": function}


def _result(item: InputItem, names: dict[str | None, str | None]) -> Message:
    # Some templates need the function's name.
    return {
        "role": "tool",
        "content": item.text,
        "tool_call_id": item.call_id,
        "name": names[item.call_id],
    }
