"""Forms that write a call's name between control words, followed by its arguments as JSON:
DeepSeek, Kimi."""

import re
import secrets
from collections.abc import Sequence

from llm_runtime.tools.calls import Call, Offered, Tool, decode, hopeless, object_part, written
from llm_runtime.tools.form import Tagged, alternatives
from llm_runtime.tools.lark import Lark, repeated

MOST_PLACES = 1_000_000
LONGEST_HEAD = 300
"""Most characters before the arguments. Longer text is not the head of a call."""


class NamedForm(Tagged):
    """`<words>name<words>{…}<words>`, several of them in a section with its own opening and closing
    word."""

    def __init__(
        self, name: str, *, section: tuple[str, str] = ("", ""), begin: str, call: tuple[str, str, str],
        head: str, end: str,
    ) -> None:  # fmt: skip
        """The words that a model writes around calls.

        `section`: the first and last word around all calls. `begin` and `end`: those around one
        call. `call`: the text before the name, and before and after the arguments. `head`: a
        regular expression for what may precede these.
        """
        self.name = name
        self._section = section
        self._begin_word = begin
        self._call = call
        around = [word for word in section if word]
        self.openings = tuple(word for word in (section[0], begin, section[1]) if word)
        self.tags = tuple(
            dict.fromkeys(re.findall(r"<[^>]*>", "".join((*section, *call, begin, end))))
        )
        self._around = re.compile(rf"(?:\s|{'|'.join(map(re.escape, around)) or '(?!)'})*")
        self._head = re.compile(rf"{head}\s*(?=\{{)")
        self._end_word = end
        self._end = re.compile(rf"\s*(?:```)?\s*{re.escape(end)}")

    def read(self, text: str, tools: Offered, final: bool) -> tuple[list[Call], int] | None:
        at = self._begin(text)
        if not final and any(opening.startswith(text[at:]) for opening in self.openings):
            return None
        if not text.startswith(self._begin_word, at):
            return [], at  # Words around calls are markup, not text.
        head = self._head.match(text, at)
        if head is None:
            return ([], 0) if final or len(text) - at > LONGEST_HEAD else None
        decoded = decode(text, head.end())
        if decoded is None:
            return ([], 0) if final or hopeless(text, head.end()) else None
        arguments, stop = decoded
        if head["name"] not in tools or not isinstance(arguments, dict):
            return [], 0
        end = self._end.match(text, stop)
        rest = text[stop:].strip().removeprefix("```").strip()
        call = Call(head["name"], written(arguments))
        if not end and self._end_word.startswith(rest):
            return ([call], len(text)) if final else None
        return [call], end.end() if end else stop

    def may_end(self, text: str) -> bool:
        return self._end_word in text

    def cut(self, text: str, tools: Offered) -> list[Call]:
        head = self._head.match(text, self._begin(text))
        return (
            [Call(head["name"], object_part(text[head.end() :]))]
            if head and head["name"] in tools
            else []
        )

    def _begin(self, text: str) -> int:
        around = self._around.match(text)
        return around.end() if around else 0

    def calls(self, lark: Lark, tools: Sequence[Tool], most: int, *, opened: bool = False) -> str:
        before, between, after = self._call
        section = self._section[0]
        if opened:
            section, before = (
                ("", before) if section else ("", before.removeprefix(self._begin_word))
            )
        heads = [lark.text(f"{before}{tool.name}{between}") for tool in tools]
        rules = [
            f"{head} {lark.schema(tool.parameters)}"
            for head, tool in zip(heads, tools, strict=True)
        ]
        call = lark.rule("one_call", f"{alternatives(lark, rules)} {lark.text(after)}")
        many = most if self._section[0] or not opened else 1
        return lark.rule(
            "calls",
            f"{lark.text(section)} {repeated(call, '', many)} {lark.text(self._section[1])}",
        )


def deepseek(*, fenced: bool) -> NamedForm:
    """DeepSeek V3.1's form;
    with `fenced` that of V3 and R1, whose arguments are in a fenced Markdown block."""
    begin = "<｜tool▁call▁begin｜>"
    sep = "<｜tool▁sep｜>"
    end = "<｜tool▁call▁end｜>"
    section = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
    if fenced:
        call = (f"{begin}function{sep}", "\n```json\n", f"\n```{end}")
        head = rf"{begin}function{sep}(?P<name>[\w.-]+)\s*```(?:json)?"
        return NamedForm("deepseek-v3", section=section, begin=begin, call=call, head=head, end=end)
    head = rf"{begin}(?P<name>[\w.-]+){sep}"
    return NamedForm(
        "deepseek-v3.1", section=section, begin=begin, call=(begin, sep, end), head=head, end=end
    )


class Kimi(NamedForm):
    """Kimi K2's form: the name, with a prefix and the call's number, is the call's id."""

    def new_id(self, name: str = "") -> str:
        # Its template writes the id in place of the name.
        # The call's number would not be unique in a conversation.
        return f"functions.{name}:{secrets.randbelow(MOST_PLACES)}"


def kimi() -> Kimi:
    """The form of Kimi K2."""
    begin = "<|tool_call_begin|>"
    middle = "<|tool_call_argument_begin|>"
    end = "<|tool_call_end|>"
    head = r"<\|tool_call_begin\|>\s*(?:functions\.)?(?P<name>[\w-]+?)(?::\d+)?\s*<\|tool_call_argument_begin\|>"
    return Kimi(
        "kimi", section=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"), begin=begin,
        call=(f"{begin}functions.", middle, end), head=head, end=end,
    )  # fmt: skip
