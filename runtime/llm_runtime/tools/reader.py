"""Calls in an answer that comes in parts."""

import re
from collections.abc import Collection
from itertools import chain

from llm_runtime.tools.calls import Call
from llm_runtime.tools.forms import Form


class Reader:
    """Finds the calls in one answer, which may come in parts. Text is held back only while it may begin a call.

    A call is told when it is whole: half of one might still turn out to be none.
    """

    def __init__(self, form: Form, names: Collection[str], most: int | None = None) -> None:
        """Of more calls than `most` the first are told."""
        self._form, self._names, self._room = form, names, most
        self._candidates = re.compile(rf"(?<!\s)\s*(?={re.escape(form.first)}|\Z)")
        self._held, self._fresh, self._called = "", True, False

    def take(self, text: str, *, final: bool = False) -> tuple[str, list[Call]]:
        """The text and the calls that are certain now; `final`: the answer has ended."""
        self._held += text
        shown, calls = "", list[Call]()
        while self._held:
            plain = self._plain()
            if plain == 0:
                found = self._form.read(self._held, self._names, final)
                if found is None:
                    break
                if found[0]:
                    calls += self._admitted(found[0])
                    self._held, self._called = self._held[found[1] :], True
                    continue
            shown += self._show(plain or 1)
        # What stands between calls is no answer.
        return ("" if self._called and not shown.strip() else shown), calls

    def _plain(self) -> int:
        """How many characters surely are no part of a call."""
        starts = [0] if self._fresh else []
        # Looked for one by one: a long call is found at its beginning with every part of it that comes.
        for at in chain(starts, (found.start() for found in self._candidates.finditer(self._held))):
            rest = self._held[at:].lstrip()
            fresh = self._fresh and not self._held[:at].strip()
            if at < len(self._held) and (not rest or self._form.may_begin(rest, self._names, fresh)):
                return at
        return len(self._held)

    def _show(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        self._fresh = self._fresh and not shown.strip()
        return shown

    def _admitted(self, calls: list[Call]) -> list[Call]:
        if self._room is None:
            return calls
        admitted = calls[: self._room]
        self._room -= len(admitted)
        return admitted
