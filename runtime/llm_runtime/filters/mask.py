"""Filters one streamed answer: masks matches, removes control characters,
and holds back as little as possible."""

import re
from collections.abc import Sequence
from dataclasses import replace

from llm_runtime.filters.finder import Finder
from llm_runtime.request import TokenEvent

CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]+")
"""Unicode's control characters except tab, line feed and carriage return.
They could control a reader's terminal."""
MAX_WITHHELD = 4096
"""Most bytes that are held back. A longer match is not recognised in a stream."""


def masked(finder: Finder, text: str) -> tuple[str, list[str]]:
    """Replace each match in `text` by `[NAME]`. Returns the text and the names."""
    data = text.encode()
    found = finder.find(data)
    return (
        (_replaced(data, found, 0, len(data)), [name for _, _, name in found])
        if found
        else (text, [])
    )


def found_in(finder: Finder, text: str) -> list[tuple[str, str]]:
    """(kind, text) of each match."""
    data = text.encode()
    return [(name, data[begin:end].decode()) for begin, end, name in finder.find(data)]


class Mask:
    """The filter of one answer, with the text that is held back."""

    def __init__(self, finder: Finder) -> None:
        self._finder = finder
        self._before = self._withheld = b""
        """`_before` is the last character that was sent, because patterns look behind;
        `_withheld` is what is held back."""

    def events(self, events: Sequence[TokenEvent]) -> list[TokenEvent]:
        """The events with masked texts. The last one gets all text that may be sent now; a final
        event gets everything."""
        text = "".join([event.text for event in events])
        out = self.feed(text, last=events[-1].finish_reason is not None)
        return [*(replace(event, text="") for event in events[:-1]), replace(events[-1], text=out)]

    def feed(self, text: str, *, last: bool) -> str:
        """Add `text`, and return what may be sent now. `last`: the answer has ended."""
        self._withheld += CONTROLS.sub("", text).encode()
        if not self._withheld:
            return ""
        data = self._before + self._withheld
        start = len(self._before)
        end = len(data) if last else self._finder.begun(data, start)
        if end == start and len(self._withheld) <= MAX_WITHHELD:
            return ""
        found = self._finder.find(data, start)
        for begin, stop, _ in reversed(found):
            if begin < end < stop:
                end = begin
        if len(data) - end > MAX_WITHHELD:
            end = _character(data, max(end, len(data) - MAX_WITHHELD // 2))
            end = max([end, *(stop for begin, stop, _ in found if begin < end)])
        out = _replaced(data, found, start, end)
        self._before = data[_character(data, end - 1) : end] if end > start else self._before
        self._withheld = data[end:]
        return out


def _replaced(data: bytes, found: Sequence[tuple[int, int, str]], start: int, end: int) -> str:
    parts = []
    for begin, stop, name in found:
        if stop <= end:
            parts += [data[start:begin].decode(), f"[{name}]"]
            start = stop
    return "".join([*parts, data[start:end].decode()])


def _character(data: bytes, position: int) -> int:
    """Start of the UTF-8 character at `position`."""
    while 0 < position < len(data) and data[position] & 0xC0 == 0x80:
        position -= 1
    return position
