"""The nouns, and JSON read as calls."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

LITERAL_CHARACTERS = 8
"""An error of the JSON parser so close to the end may only say that the rest is still to come."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call."""

    name: str
    parameters: dict[str, Any]
    """JSON schema of its arguments, an object's."""
    strict: bool = False
    """Arguments must match the schema, also where the model is free to call or not."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call in an answer; `arguments` is the text of a JSON object."""

    name: str
    arguments: str


def read_json(text: str, at: int, names: Collection[str], final: bool, name: str = "") -> tuple[list[Call], int] | None:
    """Calls from the JSON at `at`: one, a list of them, or the arguments alone of the tool called `name`."""
    found = decode(text, at)
    if found is None:
        return ([], 0) if final or _hopeless(text, at) else None
    value, end = found
    values = [{"name": name, "arguments": value}] if name else value if isinstance(value, list) else [value]
    calls = read_calls(values, names)
    return calls, end if calls else 0


def _refuse_constant(_: str) -> Any:
    raise ValueError("no JSON")  # Python reads NaN and Infinity; other clients can't.


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def decode(text: str, at: int) -> tuple[Any, int] | None:
    """The JSON value at `at` and where it ends; None if there is no whole one."""
    at += len(text[at:]) - len(text[at:].lstrip())
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None


def _hopeless(text: str, at: int) -> bool:
    """Whether nothing that may still come makes JSON of this."""
    try:
        _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        return not error.msg.startswith("Unterminated") and error.pos + LITERAL_CHARACTERS < len(text)
    except (ValueError, RecursionError):
        return True
    return False


def read_calls(values: list[Any], names: Collection[str]) -> list[Call]:
    """All of `values` as calls, or none."""
    calls = [_call(value, names) for value in values]
    return [call for call in calls if call] if all(calls) else []


def _call(value: Any, names: Collection[str]) -> Call | None:
    if not isinstance(value, dict) or value.get("name") not in names:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # Some models write the object as a text, as OpenAI's API shows it.
        arguments, _ = decode(arguments, 0) or (None, 0)
    return Call(str(value["name"]), _json(arguments)) if isinstance(arguments, dict) else None


def _json(value: dict[str, Any]) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # Half a surrogate pair can only be written as an escape.
        return json.dumps(value)
    return text
