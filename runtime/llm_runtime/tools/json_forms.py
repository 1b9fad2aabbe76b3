"""Forms whose calls are JSON objects with a name and arguments."""

import re
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from llm_runtime.tools.calls import (
    Call,
    Offered,
    Tool,
    decode,
    hopeless,
    read_calls,
    read_cut,
    read_json,
    skip_space,
)
from llm_runtime.tools.form import Form, Tagged, agree, alternatives, random_name
from llm_runtime.tools.lark import Lark, repeated


class JsonForm(Tagged):
    """JSON between an opening and a closing word:
    an object, several in a row, or a list of them."""

    def __init__(
        self, name: str, openings: tuple[str, ...], closing: str = "", *,
        listed: bool = False, keys: tuple[str, str] = ("name", "arguments"), space: str = "",
    ) -> None:  # fmt: skip
        """`space` is written inside of both words.
        `keys` are the keys of the name and of the arguments."""
        self.name = name
        self.openings = openings
        self.closing = closing
        self.tags = tuple(tag for tag in (*openings, closing) if tag)
        self._listed = listed
        self._keys = keys
        self._space = space

    def read(self, text: str, tools: Offered, final: bool) -> tuple[list[Call], int] | None:
        begin = self.after_opening(text)
        if begin is None:
            return ([], 0) if final else None
        values, end = self._values(text, begin)
        calls = read_calls(values, tools)
        at = skip_space(text, end)
        rest = text[at:]
        if not self.closing and values:
            return calls, end if calls else 0
        if self.closing and rest.startswith(self.closing):
            return calls, at + len(self.closing) if calls else 0
        may_close = self.closing.startswith(rest)
        if may_close or not hopeless(text, at):
            if not final:
                return None
            # Part of the closing word is not text, and `cut` handles the beginning of another call.
            return calls, len(text) if calls and may_close else 0
        return calls, end if calls else 0

    def may_end(self, text: str) -> bool:
        return self.closing in text

    def writes(self, shown: str) -> bool:
        return any(opening in shown for opening in self.openings) and self.closing in shown

    def _values(self, text: str, begin: int) -> tuple[list[Any], int]:
        values = list[Any]()
        at = begin
        while (self.closing or not values) and text[skip_space(text, at) :][:1] in ("{", "["):
            decoded = decode(text, at)
            if decoded is None:
                break
            value, at = decoded
            values += value if isinstance(value, list) else [value]
        return values, at

    def cut(self, text: str, tools: Offered) -> list[Call]:
        begin = self.after_opening(text)
        return [] if begin is None else read_cut(text, begin, tools)

    def calls(self, lark: Lark, tools: Sequence[Tool], most: int, *, opened: bool = False) -> str:
        call = object_call(lark, tools, self._keys)
        opening = lark.text(("" if opened else self.opening) + self._space)
        closing = lark.text(self._space + self.closing)
        if self._listed:
            items = repeated(call, lark.text(", "), most)
            return lark.rule("calls", f'{opening} "[" {items} "]" {closing}')
        one = lark.rule("tagged_call", f"{opening} {call} {closing}")
        return lark.rule("calls", repeated(one, lark.text("\n"), 1 if opened else most))


class Llama(Form):
    """Llama 3.1 to 4: `{"name": …, "parameters":
    {…}}` and nothing else, or several separated by `;`."""

    name = "llama"
    first = "{<"
    bare = True
    tags = ("<|python_tag|>", "<|python_start|>", "<|python_end|>")
    _around = re.compile(r"(?:[;\s]|<\|python_(?:tag|start|end)\|>)*")

    def may_begin(self, text: str, tools: Offered, fresh: bool) -> bool:
        if any(agree(text, tag) for tag in self.tags):
            return True
        rest = self._bare(text)
        return fresh and (
            not rest or any(tag.startswith(rest) for tag in self.tags) or is_object(rest, tools)
        )

    def read(self, text: str, tools: Offered, final: bool) -> tuple[list[Call], int] | None:
        rest = self._bare(text)
        if not rest:
            # Control words are markup even if no call follows.
            return (
                ([], len(text) if any(tag in text for tag in self.tags) else 0) if final else None
            )
        if not final and any(tag.startswith(rest) for tag in self.tags):
            return None
        return read_json(text, len(text) - len(rest), tools, final)

    def begun(self, text: str, tools: Offered) -> bool:
        return bool(self.cut(text, tools)) and self.read(text, tools, False) is None

    def cut(self, text: str, tools: Offered) -> list[Call]:
        rest = self._bare(text)
        return [] if hopeless(rest, 0) else read_cut(rest, 0, tools)

    def _bare(self, text: str) -> str:
        around = self._around.match(text)
        return text[around.end() :] if around else text

    def calls(self, lark: Lark, tools: Sequence[Tool], most: int, *, opened: bool = False) -> str:
        call = object_call(lark, tools, ("name", "parameters"))
        return lark.rule("calls", repeated(call, lark.text("; "), most))


class Mistral(Form):
    """`[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`,
    or `[TOOL_CALLS]name[ARGS]{…}` for each call.

    Some models leave out the first word. Then calls are recognised by what follows.
    """

    first = "["
    tags = ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")
    tag: ClassVar[str] = "[TOOL_CALLS]"

    def __init__(self, *, named: bool = False) -> None:
        """`named`: the name is written before the arguments, outside of the JSON."""
        self._named = named
        self.name = "mistral-named" if named else "mistral"

    @property
    def opening(self) -> str:
        return self.tag

    def may_begin(self, text: str, tools: Offered, fresh: bool) -> bool:
        rest = text.removeprefix(self.tag).lstrip()
        named = fresh or text.startswith(self.tag)
        return (
            agree(text, self.tag)
            or (rest[:1] in ("[", "") and is_object(rest[1:], tools))
            or (named and any(agree(rest, name + follows) for name in tools for follows in "{["))
        )

    def read(self, text: str, tools: Offered, final: bool) -> tuple[list[Call], int] | None:
        if not final and self.tag.startswith(text.lstrip()):
            return None
        at = self._after_tag(text)
        if text[at : at + 1] in ("", "["):
            return read_json(text, at, tools, final)
        head = re.match(r"([\w-]+)(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*(?=\{)", text[at:])
        if head is None:
            return (
                ([], 0)
                if final or not re.match(r"[\w-]+(\[\w*(\]\w*)?)*\s*\Z", text[at:])
                else None
            )
        if head[1] not in tools:
            return [], 0
        return read_json(text, at + head.end(), tools, final, name=head[1])

    def begun(self, text: str, tools: Offered) -> bool:
        at = self._after_tag(text)
        sure = text.startswith(self.tag) or (
            text[at : at + 1] == "[" and bool(self.cut(text, tools))
        )
        return sure and self.read(text, tools, False) is None

    def cut(self, text: str, tools: Offered) -> list[Call]:
        at = self._after_tag(text)
        if text[at : at + 1] == "[":
            return read_cut(text, at, tools)
        head = re.match(
            r"([\w-]+)(?:\[CALL_ID\]\w*)?(?:\[ARGS\]\s*|(?=\{))(.*)", text[at:], re.DOTALL
        )
        return [Call(head[1], head[2])] if head and head[1] in tools else []

    def _after_tag(self, text: str) -> int:
        return len(text) - len(text.lstrip().removeprefix(self.tag).lstrip())

    def calls(self, lark: Lark, tools: Sequence[Tool], most: int, *, opened: bool = False) -> str:
        tag = "" if opened else self.tag
        if self._named:
            heads = [lark.text(f"{tag}{tool.name}[ARGS]") for tool in tools]
            rules = [
                f"{head} {lark.schema(tool.parameters)}"
                for head, tool in zip(heads, tools, strict=True)
            ]
            return lark.rule(
                "calls", repeated(alternatives(lark, rules), "", 1 if opened else most)
            )
        items = repeated(object_call(lark, tools, ("name", "arguments")), lark.text(", "), most)
        return lark.rule("calls", f'{lark.text(tag)} "[" {items} "]"')

    def writes(self, shown: str) -> bool:
        return self._named != ("[TOOL_CALLS][" in "".join(shown.split()))

    def new_id(self, name: str = "") -> str:
        # Mistral's templates accept only nine letters and digits when the call comes back with its
        # result.
        return random_name(9)


def object_call(lark: Lark, tools: Sequence[Tool], keys: tuple[str, str]) -> str:
    """A grammar rule for a call of any of `tools` as a JSON object."""
    rules = []
    for tool in tools:
        head = lark.text(f'{{"{keys[0]}": "{tool.name}", "{keys[1]}": ')
        rules.append(f'{head} {lark.schema(tool.parameters)} "}}"')
    return alternatives(lark, rules)


def is_object(text: str, names: Collection[str], *, whole: bool = False) -> bool:
    """Whether the partial `text` may be the JSON of a call.
    With `whole`, it must contain the complete name."""
    squeezed = "".join(text[:200].split())
    beginnings = [
        begin % name
        for name in names
        for begin in ('{"name":"%s"', '{"type":"function","name":"%s"')
    ]
    return any(
        squeezed.startswith(begin) if whole else agree(squeezed, begin) for begin in beginnings
    )


class Hermes(JsonForm):
    """Hermes, Qwen 2.5 and 3, and many others: `<tool_call>{"name": …, "arguments":
    {…}}</tool_call>` anywhere."""

    def __init__(self) -> None:
        super().__init__("hermes", ("<tool_call>",), "</tool_call>", space="\n")
