"""The forms that calls have, and which of them a chat template asks for."""

import re
import secrets
import string
from abc import ABC, abstractmethod
from collections.abc import Collection
from functools import lru_cache
from typing import ClassVar

from llm_runtime.templates import variables
from llm_runtime.tools.calls import Call, decode, read_calls, read_json


class Form(ABC):
    """One way to write calls. The attributes are the words around them, as the model was taught to write them."""

    opening: ClassVar[str] = ""
    marker: ClassVar[str] = ""
    """Before each call, and nowhere else; "" where calls are told by their place only."""
    arguments: ClassVar[str] = "arguments"
    after: ClassVar[str] = "}"
    between: ClassVar[str]
    closing: ClassVar[str] = ""
    first: ClassVar[str]
    """The character that calls begin with."""

    @abstractmethod
    def may_begin(self, text: str, names: Collection[str], fresh: bool) -> bool:
        """Whether `text`, cut anywhere, may be the beginning of calls; `fresh`: no other text came before."""

    @abstractmethod
    def read(self, text: str, names: Collection[str], final: bool) -> tuple[list[Call], int] | None:
        """The calls that `text` begins with and how many of its characters they take; None: it is not whole yet.

        No calls: it does not begin with one. `final`: no more will come.
        """

    def new_id(self) -> str:
        """An id for a call."""
        return f"call_{_random(24)}"

    def before(self, name: str) -> str:
        """What stands before the arguments of a call."""
        return f'{{"name": "{name}", "{self.arguments}": '


class Hermes(Form):
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, anywhere: Hermes, Qwen 2.5 and 3, and many others."""

    marker, after, between, first = "<tool_call>\n", "}\n</tool_call>", "\n", "<"
    tags = ("<tool_call>", "</tool_call>")

    def may_begin(self, text: str, names: Collection[str], fresh: bool) -> bool:
        return _agree(text, self.tags[0])

    def read(self, text: str, names: Collection[str], final: bool) -> tuple[list[Call], int] | None:
        start, end = self.tags
        begin = text.find(start) + len(start)
        if begin < len(start) or not (end in text or final):
            return ([], 0) if final else None
        stop = text.find(end) if end in text else len(text)
        value, _ = decode(text, begin) or (None, 0)
        calls = read_calls([value], names)
        return calls, min(len(text), stop + len(end)) if calls else 0


class Llama(Form):
    """`{"name": …, "parameters": {…}}` and nothing else, or several with `;` between them: Llama 3.1 to 3.3."""

    arguments, between, first = "parameters", "; ", "{"
    tag = "<|python_tag|>"

    def may_begin(self, text: str, names: Collection[str], fresh: bool) -> bool:
        bare = text.lstrip("; \n")
        return fresh and (_agree(bare, self.tag) or _is_object(bare.removeprefix(self.tag), names))

    def read(self, text: str, names: Collection[str], final: bool) -> tuple[list[Call], int] | None:
        bare = text.lstrip("; \n")
        if not final and self.tag.startswith(bare):
            return None
        bare = bare.removeprefix(self.tag)
        return read_json(text, len(text) - len(bare), names, final)


class Mistral(Form):
    """`[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`, or `[TOOL_CALLS]name[ARGS]{…}` for each call.

    These words are special tokens, hence mostly not part of the text: the calls are known by what follows them.
    """

    opening, between, closing, first = "[", ", ", "]", "["
    tag = "[TOOL_CALLS]"

    def may_begin(self, text: str, names: Collection[str], fresh: bool) -> bool:
        bare = text.removeprefix(self.tag).lstrip()
        named = fresh or text.startswith(self.tag)
        return (
            _agree(text, self.tag)
            or (bare[:1] in ("[", "") and _is_object(bare[1:], names))
            or (named and any(_agree(bare, name + follows) for name in names for follows in "{["))
        )

    def read(self, text: str, names: Collection[str], final: bool) -> tuple[list[Call], int] | None:
        if not final and self.tag.startswith(text.lstrip()):
            return None
        tagged = text.lstrip().removeprefix(self.tag).lstrip()
        at = len(text) - len(tagged)
        if not tagged or tagged.startswith("["):
            return read_json(text, at, names, final)
        head = re.match(r"([\w-]+)(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?(?=\{)", tagged)
        if head is None:
            return ([], 0) if final or not re.match(r"[\w-]+(\[\w*(\]\w*)?)*\Z", tagged) else None
        return read_json(text, at + head.end(), names, final, name=head[1])

    def new_id(self) -> str:
        # Its templates refuse any other when the call comes back with its result.
        return _random(9)


FORMS = (
    # Qwen's coder models write XML inside the same tag.
    (re.compile(r"\A(?!.*<function=).*<tool_call>", re.DOTALL), Hermes()),
    (re.compile(r"\[TOOL_CALLS\]"), Mistral()),
    (re.compile(r"<\|python_tag\|>|\"parameters\\?\": dictionary of argument name"), Llama()),
)


def knows_tools(template: str) -> bool:
    """Whether a chat template does anything with tools."""
    return "tools" in variables(template)


@lru_cache(maxsize=8)
def form_of(template: str) -> Form | None:
    """The form of the calls that a chat template asks for; None if it is not one of those known here."""
    return next((form for pattern, form in FORMS if pattern.search(template)), None) if knows_tools(template) else None


def _random(length: int) -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(length))


def _agree(text: str, word: str) -> bool:
    """Whether one begins with the other."""
    return text.startswith(word) or word.startswith(text)


def _is_object(text: str, names: Collection[str]) -> bool:
    """Whether `text`, cut anywhere, may be the JSON of a call."""
    squeezed = "".join(text[:200].split())
    beginnings = ('{"name":"%s"', '{"type":"function","name":"%s"')
    return any(_agree(squeezed, beginning % name) for name in names for beginning in beginnings)
