"""Forms that write each argument between tags: Qwen's coder, GLM, MiniMax, Seed."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llm_runtime.tools.calls import Call, Offered, Tool, written
from llm_runtime.tools.form import Tagged, alternatives
from llm_runtime.tools.lark import ANY_TEXT, Lark, repeated, shared

LONGEST_HEAD = 200


class XmlForm(Tagged):
    """A head with the name, arguments as keys and values, and an end.
    Values are JSON, but strings are unquoted."""

    def __init__(
        self, name: str, *, openings: tuple[str, ...], head: tuple[str, str], argument: tuple[str, str, str], end: str,
        section: tuple[str, str] = ("", ""), between: str = "\n", loose: bool = False,
    ) -> None:  # fmt: skip
        """The words that a model writes around calls.

        `head`: the text before and after the name. `argument`: the text before, between and after
        key and value. `section`: the text around all calls. Where these have white space, the model
        may write other white space. `loose`: it may leave out the first word of the head and the
        last of the end.
        """
        self.name = name
        self._argument = argument
        self._end = end
        self.openings = (*openings, *(word for word in section[1:] if word))
        self._heads = head
        self._section = section
        self._between = between
        tags = re.findall(r"</?[\w:]+>", "".join((*section, *head, *argument, end)))
        self.tags = tuple(dict.fromkeys(tags))
        self._around = re.compile(
            rf"(?:\s|{'|'.join(re.escape(word) for word in section if word) or '(?!)'})*"
        )
        self._head = re.compile(
            rf"{_loose(head[0], first_optional=loose)}\s*(?P<name>[^<>\"\s]+){_loose(head[1])}"
        )
        before, middle, after = argument
        self._key = re.compile(rf"\s*{_loose(before)}(?P<key>[^<>\"]+?){_loose(middle)}")
        self._value_end = after.strip()
        words = end.split()
        self._optional_end = words[-1] if loose else ""
        self._last = re.compile(
            rf"\s*{_loose(words[0])}(?:\s*{re.escape(self._optional_end)})?"
            if loose
            else rf"\s*{_loose(end)}"
        )
        self._lines = middle.endswith("\n")

    def read(self, text: str, tools: Offered, final: bool) -> tuple[list[Call], int] | None:
        at = self._begin(text)
        rest = text[at:]
        words = [word for word in (*self.openings, self._section[1]) if word]
        if not final and any(word.startswith(rest) for word in words):
            return None
        if at and not any(rest.startswith(word) for word in self.openings):
            return [], at
        head = self._head.match(text, at)
        if head is None or (not final and head.end() == len(text)):
            return ([], 0) if final or len(rest) > LONGEST_HEAD else None
        if head["name"] not in tools:
            return [], 0
        arguments, _, end = self._arguments(text, head.end(), tools[head["name"]])
        if end is None:
            return ([], 0) if final else None
        call = Call(head["name"], written(arguments))
        if self._optional_end and self._optional_end.startswith(text[end:].strip()):
            return ([call], len(text)) if final else None
        return [call], end

    def may_end(self, text: str) -> bool:
        return self._end.split()[0] in text

    def writes(self, shown: str) -> bool:
        return self._argument[1] in shown

    def begun(self, text: str, tools: Offered) -> bool:
        return (
            self.after_opening(text[self._begin(text) :]) is not None
            and self.read(text, tools, False) is None
        )

    def cut(self, text: str, tools: Offered) -> list[Call]:
        head = self._head.match(text, self._begin(text))
        if head is None or head["name"] not in tools:
            return []
        schema = tools[head["name"]]
        arguments, at, _ = self._arguments(text, head.end(), schema)
        part = written(arguments)[:-1] if arguments else "{"
        key = self._key.match(text, at)
        if key is None:
            return [Call(head["name"], part if arguments or text[at:].strip() else "")]
        begun = _without_end(text[key.end() :], self._value_end).strip("\n" if self._lines else "")
        value = written(begun)[:-1] if _is_text(_field(schema, key["key"])) else begun
        return [
            Call(head["name"], f"{part}{', ' if arguments else ''}{written(key['key'])}: {value}")
        ]

    def _arguments(
        self, text: str, at: int, schema: Mapping[str, Any]
    ) -> tuple[dict[str, Any], int, int | None]:
        """The complete arguments, where they end, and where the call ends; None if it does not."""
        arguments = dict[str, Any]()
        while key := self._key.match(text, at):
            stop = text.find(self._value_end, key.end())
            if stop < 0:
                return arguments, at, None
            value = text[key.end() : stop]
            if self._lines:
                value = value.removeprefix("\n").removesuffix("\n")
            arguments[key["key"]] = _value(value, _field(schema, key["key"]))
            at = stop + len(self._value_end)
        last = self._last.match(text, at)
        return arguments, at, last.end() if last else None

    def _begin(self, text: str) -> int:
        around = self._around.match(text)
        return around.end() if around else 0

    def calls(self, lark: Lark, tools: Sequence[Tool], most: int, *, opened: bool = False) -> str:
        cut = self.opening if opened else ""
        head = self._heads[0] if self._section[0] else self._heads[0].removeprefix(cut)
        rules = [self._call(lark, number, tool, head) for number, tool in enumerate(tools)]
        many = most if self._section[0] or not opened else 1
        calls = repeated(alternatives(lark, rules), lark.text(self._between), many)
        return lark.rule(
            "calls",
            f"{lark.text(self._section[0].removeprefix(cut))} {calls} {lark.text(self._section[1])}",
        )

    def _call(self, lark: Lark, number: int, tool: Tool, head: str) -> str:
        parts = [lark.text(f"{head}{tool.name}{self._heads[1]}")]
        properties = tool.parameters.get("properties")
        required = tool.parameters.get("required", ())
        for place, (key, schema) in enumerate(
            (properties if isinstance(properties, dict) else {}).items()
        ):
            before, middle, after = self._argument
            value = self._value_rule(
                lark, f"value_{number}_{place}", schema, tool.parameters, after
            )
            whole = f"{lark.text(before + key + middle)} {value}"
            parts.append(whole if key in required else f"({whole})?")
        return lark.rule(f"call_{number}", " ".join((*parts, lark.text(self._end))))

    def _value_rule(
        self, lark: Lark, name: str, schema: Any, root: Mapping[str, Any], after: str
    ) -> str:
        schema = schema if isinstance(schema, dict) else {}
        literals = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if (
            isinstance(literals, list)
            and literals
            and all(isinstance(value, str) for value in literals)
        ):
            words = " | ".join(lark.text(value) or '""' for value in literals)
            return f"({words}) {lark.text(after)}"
        if _is_text(schema):
            letters = _letters(schema)
            if lark.is_token(after.strip()):
                return f"{lark.rule(name.upper(), f'/{letters}/')} {lark.text(after)}"
            stop = re.escape(after).replace("\\\n", "\\n").replace("/", "\\/")
            return lark.rule(f"{name}[lazy]", f"/{letters}{stop}/")
        return f"{lark.schema({**shared(root), **schema})} {lark.text(after)}"


def _letters(schema: Mapping[str, Any]) -> str:
    """A regular expression for an unquoted string that matches `schema`."""
    if isinstance(pattern := schema.get("pattern"), str):
        begin = "" if pattern.startswith("^") else ANY_TEXT
        end = "" if pattern.endswith("$") else ANY_TEXT
        return f"{begin}({pattern.removeprefix('^').removesuffix('$')}){end}".replace("/", "\\/")
    least = schema.get("minLength")
    most = schema.get("maxLength")
    if isinstance(least, int) or isinstance(most, int):
        return f"(.|\\n){{{least or 0},{'' if most is None else most}}}"
    return ANY_TEXT


def _loose(words: str, *, first_optional: bool = False) -> str:
    """A regular expression for `words` with any white space between.
    `first_optional`: the first may be missing."""
    parts = [re.escape(part) for part in re.split(r"\s+", words)]
    if first_optional and len(parts) > 1:
        return rf"(?:{parts[0]}\s*)?" + r"\s*".join(parts[1:])
    return r"\s*".join(parts)


def _without_end(text: str, end: str) -> str:
    """`text` without a trailing part of the word `end`."""
    for length in range(min(len(end), len(text)), 0, -1):
        if text.endswith(end[:length]):
            return text[:-length]
    return text


def _field(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    properties = schema.get("properties")
    field = properties.get(key) if isinstance(properties, dict) else None
    return field if isinstance(field, dict) else {}


def _types(schema: Mapping[str, Any]) -> set[str]:
    """JSON types that the schema allows; empty if it does not say."""
    declared = schema.get("type")
    types = (
        {declared}
        if isinstance(declared, str)
        else {kind for kind in declared or () if isinstance(kind, str)}
    )
    for word in ("anyOf", "oneOf"):
        for part in schema.get(word) or ():
            types |= _types(part) if isinstance(part, dict) else set()
    literals = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if not types and literals and all(isinstance(value, str) for value in literals):
        return {"string"}
    return types


def _is_text(schema: Mapping[str, Any]) -> bool:
    return _types(schema) == {"string"}


def _value(text: str, schema: Mapping[str, Any]) -> Any:
    types = _types(schema)
    if types == {"string"}:
        return text
    if "string" in types and text.strip() != "null":
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {"True": True, "False": False, "None": None}.get(text.strip(), text)
    return text if isinstance(value, float) and value != value else value


def qwen_coder() -> XmlForm:
    """The form of Qwen3-Coder and Qwen 3.5. Some of their answers leave out the outer tag."""
    return XmlForm(
        "qwen-coder", openings=("<tool_call>", "<function="), head=("<tool_call>\n<function=", ">\n"),
        argument=("<parameter=", ">\n", "\n</parameter>\n"), end="</function>\n</tool_call>",
        loose=True,
    )  # fmt: skip


def glm(*, lines: bool) -> XmlForm:
    """The form of GLM 4.5 and 4.6, with `lines` between the tags; that of 4.7 without."""
    line = "\n" if lines else ""
    return XmlForm(
        "glm" if lines else "glm-4.7", openings=("<tool_call>",), head=("<tool_call>", line),
        argument=("<arg_key>", f"</arg_key>{line}<arg_value>", f"</arg_value>{line}"), end="</tool_call>",
    )  # fmt: skip


def minimax() -> XmlForm:
    """The form of MiniMax M2."""
    return XmlForm(
        "minimax", openings=("<minimax:tool_call>", "<invoke name="), head=('<invoke name="', '">\n'),
        argument=('<parameter name="', '">', "</parameter>\n"), end="</invoke>\n",
        section=("<minimax:tool_call>\n", "</minimax:tool_call>"), between="",
    )  # fmt: skip


def seed() -> XmlForm:
    """The form of Seed-OSS."""
    return XmlForm(
        "seed", openings=("<seed:tool_call>",), head=("<seed:tool_call>\n<function=", ">\n"),
        argument=("<parameter=", ">", "</parameter>\n"), end="</function>\n</seed:tool_call>",
    )  # fmt: skip
