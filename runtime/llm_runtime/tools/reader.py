"""Thoughts and calls in an answer that comes in parts."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

from llm_runtime.tools.calls import Call, Offered
from llm_runtime.tools.form import Form

LONG_CHARACTERS = 4000
"""A call of this length is not read anew with every part that comes: what can't have ended has not."""


@dataclass(frozen=True, slots=True)
class Part:
    """What is certain of an answer: text for people, thoughts, calls."""

    text: str = ""
    thoughts: str = ""
    calls: list[Call] = field(default_factory=list)


class Splitter(Protocol):
    """Takes a model's thoughts out of its answer."""

    def take(self, text: str, *, final: bool) -> tuple[str, str]:
        """(thoughts, the rest) that are certain now."""
        ...


class AnswerReader:
    """Reads one answer: first its thoughts are taken out, so that a call in them is none, then its calls."""

    def __init__(self, splitter: Splitter | None, calls: "Reader | None") -> None:
        self._splitter = splitter
        self._calls = calls

    def take(self, text: str, *, final: bool = False) -> Part:
        """What is certain now; `final`: the answer has ended."""
        thoughts, rest = self._splitter.take(text, final=final) if self._splitter else ("", text)
        shown, calls = self._calls.take(rest, final=final) if self._calls else (rest, [])
        return Part(shown, thoughts, calls)


class Reader:
    """Finds the calls in one answer, which may come in parts. Text is held back only while it may begin a call.

    A call is told when it is whole: half of one might still turn out to be none. Of a call that the answer's end cuts
    off there is as much as was written, and nothing of its markup is text.
    """

    def __init__(
        self,
        form: Form,
        tools: Offered | Collection[str],
        most: int | None = None,
        *,
        forced: bool = False,
    ) -> None:
        """Of more calls than `most` the first are told. `forced`: the answer is calls and nothing else."""
        self._form = form
        self._room = most
        self._forced = forced
        self._tools: Offered = tools if isinstance(tools, Mapping) else {name: {} for name in tools}
        self._candidates = re.compile(rf"(?<!\s)\s*(?=[{re.escape(form.first)}]|\Z)")
        self._held = ""
        self._fresh = True
        self._called = False

    def take(self, text: str, *, final: bool = False) -> tuple[str, list[Call]]:
        """The text and the calls that are certain now; `final`: the answer has ended."""
        self._held += text
        shown = ""
        calls = list[Call]()
        while self._held:
            plain = self._plain()
            if plain == 0:
                rest = self._held.lstrip()
                if not final and len(rest) > LONG_CHARACTERS and not self._form.may_end(rest):
                    break
                found = self._form.read(rest, self._tools, final)
                if found is None:
                    break
                if found[1]:
                    calls += self._admitted(found[0])
                    self._held = rest[found[1] :]
                    self._called = True
                    continue
                if final and self._is_cut(rest):
                    calls += self._admitted(self._form.cut(rest, self._tools))
                    self._called = True
                    self._held = ""
                    break
            shown += self._show(plain or 1)
        # What stands between calls is no answer.
        return ("" if (self._called or self._forced) and not shown.strip() else shown), calls

    def _is_cut(self, rest: str) -> bool:
        """Whether `rest`, with which the answer ends, is part of a call."""
        # Behind a call, and where there must be one, the least beginning is markup; not so what no call can come of.
        sure = self._forced or self._called or self._form.begun(rest, self._tools)
        return bool(rest) and sure and self._form.read(rest, self._tools, False) is None

    def _plain(self) -> int:
        """How many characters surely are no part of a call."""
        starts = [0] if self._fresh else []
        # Looked for one by one: a long call is found at its beginning with every part of it that comes.
        for at in chain(starts, (found.start() for found in self._candidates.finditer(self._held))):
            rest = self._held[at:].lstrip()
            fresh = self._fresh and not self._held[:at].strip()
            if at < len(self._held) and (not rest or self._form.may_begin(rest, self._tools, fresh)):
                return at
        return len(self._held)

    def _show(self, count: int) -> str:
        shown = self._held[:count]
        self._held = self._held[count:]
        self._fresh = self._fresh and not shown.strip()
        return shown

    def _admitted(self, calls: list[Call]) -> list[Call]:
        if self._room is None:
            return calls
        admitted = calls[: self._room]
        self._room -= len(admitted)
        return admitted
