"""gpt-oss' Harmony format: messages on channels. Thoughts are on `analysis`, the answer on `final`,
and calls name a recipient."""

import re
from collections.abc import Collection, Sequence

from llm_runtime.tools.calls import Tool
from llm_runtime.tools.form import alternatives
from llm_runtime.tools.lark import SOME_TEXT, Lark
from llm_runtime.tools.named_forms import NamedForm

START = "<|start|>"
CHANNEL = "<|channel|>"
CONSTRAIN = "<|constrain|>"
MESSAGE = "<|message|>"
END = "<|end|>"
CALL = "<|call|>"
RETURN = "<|return|>"
WORDS = (START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN)
_BEGIN = f"{CHANNEL}commentary to=functions."
_ARGUMENTS = f" {CONSTRAIN}json{MESSAGE}"
_ENDS = re.compile("|".join(map(re.escape, (END, CALL, RETURN, START))))
_LONGEST_WORD = max(map(len, WORDS))


class HarmonyForm(NamedForm):
    """A call in the form that `Channels` writes into the answer."""

    def __init__(self) -> None:
        head = rf"{re.escape(_BEGIN)}(?P<name>[\w-]+){re.escape(_ARGUMENTS)}"
        super().__init__(
            "harmony", begin=CHANNEL, call=(_BEGIN, _ARGUMENTS, ""), head=head, end=CALL,
        )  # fmt: skip
        self.tags = WORDS

    def calls(self, lark: Lark, tools: Sequence[Tool], most: int, *, opened: bool = False) -> str:
        """Only one call: the word that ends it ends the answer."""
        begin = _BEGIN.removeprefix(CHANNEL) if opened else _BEGIN
        rules = [
            f"{lark.text(begin + tool.name + _ARGUMENTS)} {lark.schema(tool.parameters)}"
            for tool in tools
        ]
        return lark.rule("calls", alternatives(lark, rules))

    def free(self, lark: Lark, tools: Sequence[Tool], most: int) -> str:
        if not lark.is_token(CHANNEL):
            return super().free(lark, tools, most)
        text = lark.rule("TEXT", f"/{SOME_TEXT}/")
        aside = f"({lark.text(CHANNEL + 'analysis' + MESSAGE)} | {lark.text(CHANNEL + 'commentary' + MESSAGE)})"
        before = lark.rule("before", f"{aside} {text} {lark.text(END + START + 'assistant')}")
        final = lark.rule("final", f"{lark.text(CHANNEL + 'final' + MESSAGE)} {text}?")
        return f"{before}* ({self.calls(lark, tools, most)} | {final})"


class Channels:
    """Splits one answer into thoughts and the rest.
    Removes the markup of messages, but keeps that of calls.

    The prompt ends inside the first message's head.
    """

    def __init__(self, tools: Collection[str] = ()) -> None:
        """`tools` are the names of the client's tools."""
        self._tools = tools
        self._withheld = ""
        self._head = True
        self._thinking = False
        self._calling = False
        self._first = True

    def take(self, text: str, *, final: bool) -> tuple[str, str]:
        """(thoughts, the rest) that are certain now."""
        self._withheld += text
        thoughts = ""
        rest = ""
        while self._withheld:
            if self._head:
                opened = self._open(final)
                if opened is None:
                    break
                rest += opened
                continue
            part, done = self._part(final)
            if self._thinking:
                thoughts += part
            else:
                rest += part
            if not done:
                break
            rest = rest + (CALL if self._calling else "")
            self._calling = False
        return thoughts, rest

    def _open(self, final: bool) -> str | None:
        """Parse a message's head. Returns the text that represents it in the answer;
        None while it is incomplete."""
        if self._first and not _may_be_head(self._withheld):
            # A constrained answer (a JSON schema, say) has no head.
            self._head = self._first = False
            return ""
        head, separator, after = self._withheld.partition(MESSAGE)
        if not separator:
            if final:
                self._withheld = ""
            return None
        self._withheld = after
        self._head = False
        self._first = False
        recipient = re.search(r"to=(?:functions\.)?([\w-]+)", head)
        channel = re.search(rf"{re.escape(CHANNEL)}\s*(\w+)", head)
        called = recipient is not None and recipient[0].startswith("to=functions.")
        self._calling = called and recipient is not None and recipient[1] in self._tools
        # Calls of other tools, such as the model's built-in browser, are not for the client.
        self._thinking = not self._calling and (
            recipient is not None or (channel is not None and channel[1] == "analysis")
        )
        return f"{_BEGIN}{recipient[1]}{_ARGUMENTS}" if self._calling and recipient else ""

    def _part(self, final: bool) -> tuple[str, bool]:
        """The certain part of the message's text, and whether the message has ended."""
        end = _ENDS.search(self._withheld)
        if end:
            part = self._withheld[: end.start()]
            self._withheld = self._withheld[end.end() :]
            self._head = True
            return part, True
        keep = 0 if final else _may_end(self._withheld)
        cut = len(self._withheld) - keep
        part = self._withheld[:cut]
        self._withheld = self._withheld[cut:]
        return part, False


def _may_be_head(text: str) -> bool:
    bare = text.lstrip()
    begins = (CHANNEL, START, "to=", "assistant", CONSTRAIN, MESSAGE)
    return any(bare.startswith(begin) or begin.startswith(bare) for begin in begins)


def _may_end(text: str) -> int:
    """Length of the longest suffix of `text` that may be the beginning of a control word."""
    at = text.rfind("<", max(0, len(text) - _LONGEST_WORD))
    tail = text[at:] if at >= 0 else ""
    return len(tail) if tail and any(word.startswith(tail) for word in WORDS) else 0
