"""Separates thoughts, calls and text in a streamed answer."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

from llm_runtime.tools.calls import Call, Offered
from llm_runtime.tools.form import Form

LONG_CHARACTERS = 4000
"""Length from which a call is parsed again only if it may have ended,
because parsing it at each part is slow."""


@dataclass(frozen=True, slots=True)
class Part:
    """The certain part of an answer so far: text, thoughts, calls."""

    text: str = ""
    thoughts: str = ""
    calls: list[Call] = field(default_factory=list)


class Splitter(Protocol):
    """Separates a model's thoughts from its answer."""

    def take(self, text: str, *, final: bool) -> tuple[str, str]:
        """(thoughts, the rest) that are certain now."""
        ...


class AnswerReader:
    """Parses one answer. Thoughts are removed first, so that a call in them does not count;
    then calls."""

    def __init__(self, splitter: Splitter | None, calls: "Reader | None") -> None:
        self._splitter = splitter
        self._calls = calls

    def take(self, text: str, *, final: bool = False) -> Part:
        """Add `text`, and return what is certain now. `final`: the answer has ended."""
        thoughts, rest = self._splitter.take(text, final=final) if self._splitter else ("", text)
        shown, calls = self._calls.take(rest, final=final) if self._calls else (rest, [])
        return Part(shown, thoughts, calls)


class Reader:
    """Finds the calls in a streamed answer.
    Text is held back only while it may be the beginning of a call.

    A call is returned when it is complete, because a partial one may turn out to be text. If the
    answer ends inside a call, the call has as much of its arguments as was written, and its markup
    does not become text.
    """

    def __init__(
        self,
        form: Form,
        tools: Offered | Collection[str],
        most: int | None = None,
        *,
        forced: bool = False,
    ) -> None:
        """Returns only the first `most` calls. `forced`: the answer consists of calls only."""
        self._form = form
        self._room = most
        self._forced = forced
        self._tools: Offered = tools if isinstance(tools, Mapping) else {name: {} for name in tools}
        self._candidates = re.compile(rf"(?<!\s)\s*(?=[{re.escape(form.first)}]|\Z)")
        self._withheld = ""
        self._fresh = True
        self._called = False

    def take(self, text: str, *, final: bool = False) -> tuple[str, list[Call]]:
        """Add `text`, and return the text and calls that are certain now.
        `final`: the answer has ended."""
        self._withheld += text
        shown = ""
        calls = list[Call]()
        while self._withheld:
            plain = self._plain()
            if plain == 0:
                rest = self._withheld.lstrip()
                if not final and len(rest) > LONG_CHARACTERS and not self._form.may_end(rest):
                    break
                parsed = self._form.read(rest, self._tools, final)
                if parsed is None:
                    break
                new_calls, length = parsed
                if length:
                    calls += self._admitted(new_calls)
                    self._withheld = rest[length:]
                    self._called = True
                    continue
                if final and self._is_cut(rest):
                    calls += self._admitted(self._form.cut(rest, self._tools))
                    self._called = True
                    self._withheld = ""
                    break
            shown += self._show(plain or 1)
        # White space between calls is not part of the answer's text.
        return ("" if (self._called or self._forced) and not shown.strip() else shown), calls

    def _is_cut(self, rest: str) -> bool:
        """Whether `rest`, the end of the answer, is part of a truncated call."""
        # After a call, or where calls are forced,
        # the shortest beginning counts, unless no call can result from it.
        sure = self._forced or self._called or self._form.begun(rest, self._tools)
        return bool(rest) and sure and self._form.read(rest, self._tools, False) is None

    def _plain(self) -> int:
        """How many characters are certainly not part of a call."""
        starts = [0] if self._fresh else []
        # Lazily, because a long call matches at its beginning, again with each part that arrives.
        for at in chain(
            starts, (candidate.start() for candidate in self._candidates.finditer(self._withheld))
        ):
            rest = self._withheld[at:].lstrip()
            fresh = self._fresh and not self._withheld[:at].strip()
            if at < len(self._withheld) and (
                not rest or self._form.may_begin(rest, self._tools, fresh)
            ):
                return at
        return len(self._withheld)

    def _show(self, count: int) -> str:
        shown = self._withheld[:count]
        self._withheld = self._withheld[count:]
        self._fresh = self._fresh and not shown.strip()
        return shown

    def _admitted(self, calls: list[Call]) -> list[Call]:
        if self._room is None:
            return calls
        admitted = calls[: self._room]
        self._room -= len(admitted)
        return admitted
