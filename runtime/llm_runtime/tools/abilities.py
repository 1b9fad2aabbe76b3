"""What a model can do according to its chat templates,
found out by rendering test conversations at start-up."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from llm_runtime.request import Message
from llm_runtime.text.templates import BadTemplate, render
from llm_runtime.tools.forms import SPECIAL, knows_tools, reading_of

_ASKED = "marker-asked"
_SYSTEM = "marker-system"
_SAID = "marker-said"
_RESULT = "marker-result"
_NAME = "marker_tool"
_USER: Message = {"role": "user", "content": _ASKED}
_CALL = {"id": "abcDEF123", "type": "function", "function": {"name": _NAME, "arguments": {"a": 1}}}
_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "",
        "parameters": {"type": "object", "properties": {}},
    },
}
_TOLD: Message = {"role": "tool", "tool_call_id": _CALL["id"], "name": _NAME, "content": _RESULT}


@dataclass(frozen=True, slots=True)
class Abilities:
    """A model's abilities, for logs and `/info`."""

    chat: bool
    """Whether a user's message reaches the prompt."""
    system: bool
    """Whether a system message does."""
    tools: bool
    """Whether the model sees tools, and its calls can be parsed."""
    calls: str | None
    """Name of the form of its calls."""
    reasoning: bool
    """Whether its reasoning can be separated from its answers."""
    lacks: tuple[str, ...]
    """What does not work, and what clients get instead."""


@lru_cache(maxsize=8)
def abilities(template: str, tool_template: str) -> Abilities:
    """The abilities by the template for conversations and the one for those with tools."""
    reading = reading_of(template)
    form = reading_of(tool_template).form
    lacks = (
        []
        if template
        else [
            "it has no chat template: chat gets 400, /v1/completions works; set model.chatTemplate"
        ]
    )
    chat = bool(template) and _shows(template, [_USER], _ASKED)
    several = [_USER, {"role": "assistant", "content": _SAID}, _USER]
    if template and not chat:
        lacks.append(
            "its chat template leaves out what the user says: chat is useless; set"
            " model.chatTemplate"
        )
    elif template and not _shows(template, several, _SAID):
        lacks.append("its chat template leaves out earlier answers")
    system = chat and _shows(template, [{"role": "system", "content": _SYSTEM}, _USER], _SYSTEM)
    if chat and not system:
        lacks.append("its chat template takes no system message: these are refused or left out")
    calls = knows_tools(tool_template) and _shows(tool_template, [_USER], _NAME, tools=True)
    if not calls:
        lacks.append("its chat template knows no tools: requests with tools get 400")
    elif form is None:
        lacks.append(
            "its calls are written in a form that this server can't read: requests with tools"
            " get 400"
        )
    elif not _shows(
        tool_template,
        [_USER, {"role": "assistant", "content": "", "tool_calls": [_CALL]}, _TOLD],
        _RESULT,
    ):
        lacks.append("its chat template refuses or leaves out results of tools")
    return Abilities(
        chat=chat,
        system=system,
        tools=calls and form is not None,
        calls=form.name if calls and form else None,
        reasoning=reading.tags is not None or reading.channels,
        lacks=tuple(lacks),
    )


def _shows(template: str, messages: list[Message], marker: str, *, tools: bool = False) -> bool:
    try:
        return marker in render(template, messages, [_TOOL] if tools else [], SPECIAL)
    except BadTemplate:
        return False
