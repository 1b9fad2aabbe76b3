"""What a form of calls is: how a model writes them, how they are read, how it is made to write them."""

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
    """For people."""
    tags: tuple[str, ...] = ()
    """Words of it that are special tokens in some tokenizers: a reader must see them."""
    first: str
    """The characters that calls may begin with."""
    bare: bool = False
    """Calls begin with no word of their own: they are told by their place and by what follows."""

    @abstractmethod
    def may_begin(self, text: str, tools: Offered, fresh: bool) -> bool:
        """Whether `text`, cut anywhere, may be the beginning of calls; `fresh`: no other text came before."""

    @abstractmethod
    def read(self, text: str, tools: Offered, final: bool) -> tuple[list[Call], int] | None:
        """The calls that `text` begins with and how many of its characters they take; None: it is not whole yet.

        No characters: it does not begin with one. No calls but characters: they are markup. `final`: no more will come.
        """

    @abstractmethod
    def begun(self, text: str, tools: Offered) -> bool:
        """Whether `text`, which `read` found no whole call in, is the beginning of one beyond doubt."""

    @abstractmethod
    def cut(self, text: str, tools: Offered) -> list[Call]:
        """The calls of a text that ends inside of one: the last with as much of its arguments as was written."""

    @abstractmethod
    def calls(self, lark: Lark, tools: Sequence[Tool], most: int, *, opened: bool = False) -> str:
        """What writes one call to `most` of them, and nothing else.

        `opened`: the opening word stands there already, and one call, or one list of calls, follows.
        """

    @property
    def opening(self) -> str:
        """The word that begins a call and stands nowhere else; "" for a bare form."""
        return ""

    def free(self, lark: Lark, tools: Sequence[Tool], most: int) -> str:
        """What writes any text with calls in it, if any."""
        calls = self.calls(lark, tools, most, opened=not self.bare and not lark.is_token(self.opening))
        if self.bare:
            text = lark.rule("TEXT", f"/([^\\s{re.escape(self.first)}]{ANY_TEXT})?/")
            return f"{calls} | {text}"
        if lark.is_token(self.opening):
            text = lark.rule("TEXT", f"/{SOME_TEXT}/")
            others = lark.other_tokens(self.opening)
            part = lark.rule("part", f"{calls} | {others}" if others else calls)
            return f"{text}? ({part} {text}?)*"
        # llguidance ends a lazy text at the first opening word, so that none can be written outside of a call.
        head = lark.rule("head[lazy]", f"TEXT {lark.text(self.opening)}")
        text = lark.rule("TEXT", f"/{ANY_TEXT}/")
        return f"({head} {calls})* {text}"

    def may_end(self, text: str) -> bool:
        """Whether `text` may hold a whole call: cheaper than to read it, though not as sure."""
        return True

    def writes(self, shown: str) -> bool:
        """Whether a call that was read from `shown` is written as this form writes it: it may read others, too."""
        return True

    def new_id(self, name: str = "") -> str:
        """An id for a call of the function `name`."""
        return f"call_{random_name(24)}"


class Tagged(Form):
    """Calls that begin with a word of their own."""

    openings: tuple[str, ...]
    """The first is how it is written."""

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
        """Where the rest begins; None while `text` may not hold the whole word yet."""
        for opening in sorted(self.openings, key=len, reverse=True):
            if text.startswith(opening):
                return len(opening)
        return None


def random_name(length: int) -> str:
    """Letters and digits."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(length))


def agree(text: str, word: str) -> bool:
    """Whether one begins with the other."""
    return text.startswith(word) or word.startswith(text)


def alternatives(lark: Lark, rules: Sequence[str], name: str = "call") -> str:
    """A rule that is any of `rules`."""
    return lark.rule(name, " | ".join(rules))
