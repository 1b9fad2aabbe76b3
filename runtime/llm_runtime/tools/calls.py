"""The types of tools and calls, and parsing JSON as calls."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

LITERAL_CHARACTERS = 8
"""Distance from the end of the text within which a JSON error may only mean that the rest has not
arrived yet."""

Offered = Mapping[str, Mapping[str, Any]]
"""The JSON schema of each tool's arguments, by the tool's name."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call."""

    name: str
    parameters: dict[str, Any]
    """JSON schema of its arguments, which are an object."""
    strict: bool = False
    """Whether arguments must match the schema even if the model is free to call or not."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call in an answer. `arguments` is the text of a JSON object,
    or its beginning if the answer was truncated."""

    name: str
    arguments: str


def read_json(
    text: str, at: int, names: Collection[str], final: bool, name: str = ""
) -> tuple[list[Call], int] | None:
    """Parse the JSON at `at`: a call, a list of calls,
    or with `name` only the arguments of that tool.

    Returns the calls and where they end, ([], 0) if there are none, or None if more text is needed.
    """
    decoded = decode(text, at)
    if decoded is None:
        return ([], 0) if final or hopeless(text, at) else None
    value, end = decoded
    values = (
        [{"name": name, "arguments": value}]
        if name
        else value
        if isinstance(value, list)
        else [value]
    )
    calls = read_calls(values, names)
    return calls, end if calls else 0


def _refuse_constant(_: str) -> Any:
    raise ValueError(
        "no JSON"
    )  # Python accepts NaN and Infinity, but other clients' parsers don't.


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def decode(text: str, at: int) -> tuple[Any, int] | None:
    """The JSON value at `at` and where it ends; None if there is no complete one."""
    at = skip_space(text, at)
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None


def is_whole(arguments: str) -> bool:
    """Whether they are one JSON value, and not only its beginning."""
    found = decode(arguments, 0)
    return found is not None and found[1] == len(arguments)


def skip_space(text: str, at: int) -> int:
    """Position of the next character that is not white space."""
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def hopeless(text: str, at: int) -> bool:
    """Whether no further text can make this valid JSON."""
    try:
        _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        return not error.msg.startswith("Unterminated") and error.pos + LITERAL_CHARACTERS < len(
            text
        )
    except (ValueError, RecursionError):
        return True
    return False


def read_calls(values: list[Any], names: Collection[str]) -> list[Call]:
    """The calls that `values` are; empty unless all of them are calls."""
    calls = [_call(value, names) for value in values]
    return [call for call in calls if call] if all(calls) else []


def _call(value: Any, names: Collection[str]) -> Call | None:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict):
        return None
    name = value.get("name", value.get("tool_name"))
    if not isinstance(name, str) or name not in names:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(
        arguments, str
    ):  # Some models write the object as a JSON string, as in OpenAI's API.
        arguments, _ = decode(arguments, 0) or (None, 0)
    return Call(name, written(arguments)) if isinstance(arguments, dict) else None


_CUT = re.compile(
    r'\s*\{\s*(?:"(?:type|id|tool_call_id)"\s*:\s*"[^"]*"\s*,\s*)*"(?:name|tool_name)"\s*:\s*"(?P<name>[^"]+)"\s*'
    r'(?:,\s*(?:"(?:arguments|parameters)"\s*:\s*(?P<arguments>\{.*)?|(?P<key>"?\w*"?))?)?\Z',
    re.DOTALL,
)


def read_cut(text: str, at: int, names: Collection[str]) -> list[Call]:
    """The calls in truncated JSON. The last one has as much of its arguments as was written."""
    calls = list[Call]()
    at = skip_space(text, at)
    if text[at : at + 1] == "[":
        at += 1
    while found := decode(text, at):
        calls += read_calls([found[0]], names)
        at = skip_space(text, found[1])
        if text[at : at + 1] in (",", ";"):
            at += 1
    last = _CUT.match(text, at)
    key = last["key"] or "" if last else ""
    if (
        last
        and last["name"] in names
        and any(word.startswith(key) for word in ('"arguments"', '"parameters"'))
    ):
        calls.append(Call(last["name"], object_part(last["arguments"] or "")))
    return calls


def object_part(text: str) -> str:
    """The JSON object at the beginning of `text`, or all of `text` if the object does not end."""
    decoded = decode(text, 0)
    return text[: decoded[1]] if decoded else text


def written(value: Any) -> str:
    """`value` as JSON, without escaping letters outside of ASCII."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # Half a surrogate pair can only be written as an escape.
        return json.dumps(value)
    return text
