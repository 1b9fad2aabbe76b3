"""A form of calls: how a model writes calls, how to parse them,
and how to constrain the model to write them."""

import re
import secrets
import string
from abc import ABC, abstractmethod
from collections.abc import Sequence

from llm_runtime.tools.calls import Call, Offered, Tool
from llm_runtime.tools.lark import ANY_TEXT, SOME_TEXT, Lark


class Form(ABC):
    """One way to write calls."""

    name: str
    """Name for logs and `/info`."""
    tags: tuple[str, ...] = ()
    """Words of the form that are special tokens in some tokenizers.
    They must stay visible for the parser."""
    first: str
    """The characters that calls may begin with."""
    bare: bool = False
    """Whether calls begin without an opening word.
    They are then recognised by their place and contents."""

    @abstractmethod
    def may_begin(self, text: str, tools: Offered, fresh: bool) -> bool:
        """Whether the partial `text` may be the beginning of calls.
        `fresh`: no other text came before."""

    @abstractmethod
    def read(self, text: str, tools: Offered, final: bool) -> tuple[list[Call], int] | None:
        """Parse the calls at the beginning of `text`; None if more text is needed.

        Returns the calls and the number of characters they take. Zero characters mean that `text`
        does not begin with a call; characters without calls are markup. `final`: no more text will
        come.
        """

    @abstractmethod
    def begun(self, text: str, tools: Offered) -> bool:
        """Whether `text`, which has no complete call, is certainly the beginning of one."""

    @abstractmethod
    def cut(self, text: str, tools: Offered) -> list[Call]:
        """The calls of a truncated text.
        The last one has as much of its arguments as was written."""

    @abstractmethod
    def calls(self, lark: Lark, tools: Sequence[Tool], most: int, *, opened: bool = False) -> str:
        """A grammar rule for one to `most` calls and nothing else.

        `opened`: the opening word has been written already,
        and one call or one list of calls follows.
        """

    @property
    def opening(self) -> str:
        """The word that begins a call and occurs nowhere else; "" for a bare form."""
        return ""

    def free(self, lark: Lark, tools: Sequence[Tool], most: int) -> str:
        """A grammar rule for any text, with or without calls in it."""
        calls = self.calls(
            lark, tools, most, opened=not self.bare and not lark.is_token(self.opening)
        )
        if self.bare:
            text = lark.rule("TEXT", f"/([^\\s{re.escape(self.first)}]{ANY_TEXT})?/")
            return f"{calls} | {text}"
        if lark.is_token(self.opening):
            text = lark.rule("TEXT", f"/{SOME_TEXT}/")
            others = lark.other_tokens(self.opening)
            part = lark.rule("part", f"{calls} | {others}" if others else calls)
            return f"{text}? ({part} {text}?)*"
        # llguidance ends a lazy text at the first opening word,
        # so the word can't be written outside of a call.
        head = lark.rule("head[lazy]", f"TEXT {lark.text(self.opening)}")
        text = lark.rule("TEXT", f"/{ANY_TEXT}/")
        return f"({head} {calls})* {text}"

    def may_end(self, text: str) -> bool:
        """Whether `text` may contain a complete call.
        A cheap test that avoids parsing long texts again and again."""
        return True

    def writes(self, shown: str) -> bool:
        """Whether `shown`, from which a call was parsed, is what this form would write.
        It may also accept others."""
        return True

    def new_id(self, name: str = "") -> str:
        """An id for a call of the function `name`."""
        return f"call_{random_name(24)}"


class Tagged(Form):
    """Calls that begin with an opening word."""

    openings: tuple[str, ...]
    """Accepted opening words. The first is the one to write."""

    def may_begin(self, text: str, tools: Offered, fresh: bool) -> bool:
        return any(agree(text, opening) for opening in self.openings)

    @property
    def first(self) -> str:  # type: ignore[override]
        return "".join(sorted({opening[0] for opening in self.openings}))

    @property
    def opening(self) -> str:
        return self.openings[0]

    def begun(self, text: str, tools: Offered) -> bool:
        return self.after_opening(text) is not None and self.read(text, tools, False) is None

    def after_opening(self, text: str) -> int | None:
        """Position after the opening word; None if `text` does not begin with a complete one."""
        for opening in sorted(self.openings, key=len, reverse=True):
            if text.startswith(opening):
                return len(opening)
        return None


def random_name(length: int) -> str:
    """Random letters and digits."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(length))


def agree(text: str, word: str) -> bool:
    """Whether one of the two begins with the other."""
    return text.startswith(word) or word.startswith(text)


def alternatives(lark: Lark, rules: Sequence[str], name: str = "call") -> str:
    """A grammar rule that matches any of `rules`."""
    return lark.rule(name, " | ".join(rules))
