"""Calls as a Python list, `[weather(city="Kiel", days=3)]`: Llama 3.2 and 4, LFM2, Olmo 3."""

import ast
import re
from collections.abc import Sequence
from typing import Any

from llm_runtime.tools.calls import Call, Offered, Tool, written
from llm_runtime.tools.form import Form, alternatives
from llm_runtime.tools.lark import Lark, repeated, shared

MOST_CHARACTERS = 100_000
MOST_TRIES = 50
"""How many places of a truncated text are tried as its end, the last one first."""
_JSON_NAMES = {"true": True, "false": False, "null": None}


class Pythonic(Form):
    """A list of calls, between an opening and a closing word,
    or without them as the whole answer."""

    name = "pythonic"
    first = "[<"

    def __init__(self, opening: str = "", closing: str = "") -> None:
        self._opening = opening
        self._closing = closing
        self.tags = tuple(tag for tag in (opening, closing) if tag)
        self.bare = not opening
        self.first = opening[:1] or "["

    @property
    def opening(self) -> str:
        return self._opening

    def may_begin(self, text: str, tools: Offered, fresh: bool) -> bool:
        if self._opening:
            return text.startswith(self._opening) or self._opening.startswith(text)
        return fresh and _may_be_calls(text, tools)

    def read(self, text: str, tools: Offered, final: bool) -> tuple[list[Call], int] | None:
        if not text.startswith(self._opening):
            return ([], 0) if final else None
        at = len(self._opening)
        if not _may_be_calls(text[at:], tools):
            return [], 0
        end = _list_end(text, at)
        if end is None:
            return ([], 0) if final or len(text) > MOST_CHARACTERS else None
        calls = _calls(text[at:end], tools)
        rest = text[end:].lstrip()
        if self._closing.startswith(rest) and rest != self._closing:
            return (calls, len(text) if calls else 0) if final else None
        if rest.startswith(self._closing):
            end = len(text) - len(rest) + len(self._closing)
        return calls, end if calls else 0

    def may_end(self, text: str) -> bool:
        return text.rstrip().endswith(("]", self._closing or "]"))

    def begun(self, text: str, tools: Offered) -> bool:
        at = len(self._opening)
        named = re.match(r"\s*\[\s*([\w-]+)\(", text[at:])
        sure = text.startswith(self._opening) and (
            bool(self._opening) or bool(named and named[1] in tools)
        )
        return sure and self.read(text, tools, False) is None

    def cut(self, text: str, tools: Offered) -> list[Call]:
        """The complete calls, and the last one with its complete arguments."""
        ends = [
            match.end() for match in re.finditer(r"[,(]", text) if match.end() > len(self._opening)
        ]
        for end in reversed(ends[-MOST_TRIES:]):
            for closing in (")]", "]"):
                part = text[len(self._opening) : end].rstrip(", \n") + closing
                calls = _calls(part, tools)
                if calls:
                    return [
                        *calls[:-1],
                        Call(calls[-1].name, calls[-1].arguments.removesuffix("}")),
                    ]
        return []

    def calls(self, lark: Lark, tools: Sequence[Tool], most: int, *, opened: bool = False) -> str:
        rules = [_call_rule(lark, tool) for tool in tools]
        items = repeated(alternatives(lark, rules), lark.text(", "), most)
        return lark.rule(
            "calls",
            f'{lark.text("" if opened else self._opening)} "[" {items} "]"'
            f" {lark.text(self._closing)}",
        )


def _call_rule(lark: Lark, tool: Tool) -> str:
    """A rule for a call. Values are JSON, which is Python except for true, false and null;
    these are parsed, too."""
    properties = tool.parameters.get("properties")
    required = tool.parameters.get("required", ())
    definitions = shared(tool.parameters)
    fields = [
        (key, schema if isinstance(schema, dict) else {})
        for key, schema in (properties if isinstance(properties, dict) else {}).items()
        if key.isidentifier() and (key in required or not required)
    ]
    arguments = [
        f"{lark.text(key + '=')} {lark.schema({**definitions, **schema})}" for key, schema in fields
    ]
    comma = f" {lark.text(', ')} "
    return f"{lark.text(tool.name + '(')} {comma.join(arguments)} {lark.text(')')}"


def _may_be_calls(text: str, tools: Offered) -> bool:
    squeezed = text.lstrip()
    if not squeezed.startswith("["):
        return not squeezed
    inner = squeezed[1:].lstrip()
    return any(
        inner.startswith(begin) or begin.startswith(inner)
        for begin in (f"{name}(" for name in tools)
    )


def _list_end(text: str, at: int) -> int | None:
    """Position after the bracket that closes the list at `at`; None while it is open."""
    depth = 0
    quote = ""
    skip = False
    for place in range(at, len(text)):
        letter = text[place]
        if skip:
            skip = False
        elif quote:
            skip = letter == "\\"
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[({":
            depth += 1
        elif letter in "])}":
            depth -= 1
            if depth == 0:
                return place + 1
    return None


def _calls(text: str, tools: Offered) -> list[Call]:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        return [_call(item, tools) for item in tree.elts] if isinstance(tree, ast.List) else []
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return []


def _call(item: ast.expr, tools: Offered) -> Call:
    if (
        not isinstance(item, ast.Call)
        or not isinstance(item.func, ast.Name)
        or item.func.id not in tools
        or item.args
    ):
        raise ValueError("no call of a tool")
    return Call(
        item.func.id,
        written({str(pair.arg): _value(pair.value) for pair in item.keywords if pair.arg}),
    )


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Name(id=name) if name in _JSON_NAMES:
            return _JSON_NAMES[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {
                str(_value(key)): _value(value)
                for key, value in zip(keys, values, strict=True)
                if key
            }
    value = ast.literal_eval(node)
    if not isinstance(value, str | int | float | bool | None):
        raise ValueError("no value of JSON")
    return value
