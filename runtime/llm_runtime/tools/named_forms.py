"""Forms that have a call's name between words of their own, and then its arguments as JSON: DeepSeek, Kimi."""

import re
import secrets
from collections.abc import Sequence

from llm_runtime.tools.calls import Call, Offered, Tool, decode, hopeless, object_part, written
from llm_runtime.tools.form import Tagged, alternatives
from llm_runtime.tools.lark import Lark, repeated

MOST_PLACES = 1_000_000
LONGEST_HEAD = 300
"""Characters before the arguments: a longer head is none."""


class NamedForm(Tagged):
    """`<words>name<words>{…}<words>`, several of them in a section that has words, too."""

    def __init__(
        self, name: str, *, section: tuple[str, str] = ("", ""), begin: str, call: tuple[str, str, str],
        head: str, end: str,
    ) -> None:  # fmt: skip
        """The words that a model writes around calls.

        `section`: the first and last word around all calls; `begin` and `end`: around one call. `call`: what it writes
        before the name, and before and after the arguments; `head`: a regular expression for what may precede these.
        """
        self.name, self._section, self._begin_word, self._call = name, section, begin, call
        around = [word for word in section if word]
        self.openings = tuple(word for word in (section[0], begin, section[1]) if word)
        self.tags = tuple(dict.fromkeys(re.findall(r"<[^>]*>", "".join((*section, *call, begin, end)))))
        self._around = re.compile(rf"(?:\s|{'|'.join(map(re.escape, around)) or '(?!)'})*")
        self._head = re.compile(rf"{head}\s*(?=\{{)")
        self._end_word, self._end = end, re.compile(rf"\s*(?:```)?\s*{re.escape(end)}")

    def read(self, text: str, tools: Offered, final: bool) -> tuple[list[Call], int] | None:
        at = self._begin(text)
        if not final and any(opening.startswith(text[at:]) for opening in self.openings):
            return None
        if not text.startswith(self._begin_word, at):
            return [], at  # Words around calls: no text.
        head = self._head.match(text, at)
        if head is None:
            return ([], 0) if final or len(text) - at > LONGEST_HEAD else None
        found = decode(text, head.end())
        if found is None:
            return ([], 0) if final or hopeless(text, head.end()) else None
        if head["name"] not in tools or not isinstance(found[0], dict):
            return [], 0
        end = self._end.match(text, found[1])
        rest = text[found[1] :].strip().removeprefix("```").strip()
        call = Call(head["name"], written(found[0]))
        if not end and self._end_word.startswith(rest):
            return ([call], len(text)) if final else None
        return [call], end.end() if end else found[1]

    def may_end(self, text: str) -> bool:
        return self._end_word in text

    def cut(self, text: str, tools: Offered) -> list[Call]:
        head = self._head.match(text, self._begin(text))
        return [Call(head["name"], object_part(text[head.end() :]))] if head and head["name"] in tools else []

    def _begin(self, text: str) -> int:
        found = self._around.match(text)
        return found.end() if found else 0

    def calls(self, lark: Lark, tools: Sequence[Tool], most: int, *, opened: bool = False) -> str:
        before, between, after = self._call
        section = self._section[0]
        if opened:
            section, before = ("", before) if section else ("", before.removeprefix(self._begin_word))
        heads = [lark.text(f"{before}{tool.name}{between}") for tool in tools]
        each = [f"{head} {lark.schema(tool.parameters)}" for head, tool in zip(heads, tools, strict=True)]
        call = lark.rule("one_call", f"{alternatives(lark, each)} {lark.text(after)}")
        many = most if self._section[0] or not opened else 1
        return lark.rule("calls", f"{lark.text(section)} {repeated(call, '', many)} {lark.text(self._section[1])}")


def deepseek(*, fenced: bool) -> NamedForm:
    """DeepSeek V3.1's; `fenced`: V3's and R1's, whose arguments stand in a fence of Markdown."""
    begin, sep, end = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
    section = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
    if fenced:
        call = (f"{begin}function{sep}", "\n```json\n", f"\n```{end}")
        head = rf"{begin}function{sep}(?P<name>[\w.-]+)\s*```(?:json)?"
        return NamedForm("deepseek-v3", section=section, begin=begin, call=call, head=head, end=end)
    head = rf"{begin}(?P<name>[\w.-]+){sep}"
    return NamedForm("deepseek-v3.1", section=section, begin=begin, call=(begin, sep, end), head=head, end=end)


class Kimi(NamedForm):
    """Kimi K2's: each name with its place and a prefix, which together are the call's id."""

    def new_id(self, name: str = "") -> str:
        # Its template writes the id for the name when the call comes back. Places are no ids: they come again.
        return f"functions.{name}:{secrets.randbelow(MOST_PLACES)}"


def kimi() -> Kimi:
    """As Kimi K2 writes calls."""
    begin, middle, end = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
    head = r"<\|tool_call_begin\|>\s*(?:functions\.)?(?P<name>[\w-]+?)(?::\d+)?\s*<\|tool_call_argument_begin\|>"
    return Kimi(
        "kimi", section=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"), begin=begin,
        call=(f"{begin}functions.", middle, end), head=head, end=end,
    )  # fmt: skip
