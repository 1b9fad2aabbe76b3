"""Finds personal data and configured patterns, in a complete text or in a stream.

All patterns run on RE2, whose time is linear in the text.
With `re`, a user's pattern could take exponential time.
"""

import re
from collections.abc import Iterator

import re2

from llm_runtime import errors
from llm_runtime.contract import FilterPattern
from llm_runtime.filters.kinds import KINDS, Kind, Span
from llm_runtime.filters.prefixes import beginnings

Found = tuple[int, int, str]
"""(start, end, name of the kind), in bytes of UTF-8."""


class Finder:
    """Finds the configured patterns and the kinds of personal data.
    If matches overlap, configured patterns win."""

    def __init__(self, patterns: tuple[FilterPattern, ...] = ()) -> None:
        """Raises `errors.ConfigInvalid` that names an invalid pattern."""
        self._kinds = [(_own(pattern), _compile_own(pattern)) for pattern in patterns]
        self._kinds += [(kind, _compile(kind.regex)) for kind in KINDS]
        starts = "|".join(beginnings(kind.regex) for kind, _ in self._kinds)
        try:
            self._begun = _compile(rf"(?:{starts})\z")
        except re2.error as error:
            names = ", ".join(pattern.name for pattern in patterns)
            raise errors.ConfigInvalid(
                f"server.filters.patterns: {names} are too large together"
            ) from error

    def find(self, text: bytes, start: int = 0) -> list[Found]:
        """All matches from `start` on, in order, without overlaps."""
        found = list[Found]()
        taken = bytearray(len(text))
        for kind, pattern in self._kinds:
            if kind.needs and not any(byte in text for byte in kind.needs):
                continue
            for begin, end in _matches(kind, pattern, text, start):
                if not any(taken[begin:end]):
                    taken[begin:end] = b"\1" * (end - begin)
                    found.append((begin, end, kind.name))
        return sorted(found)

    def begun(self, text: bytes, start: int = 0) -> int:
        """Start of the longest suffix of `text` that may become a match,
        or part of a longer one."""
        match = self._begun.search(text, start)
        return int(match.start()) if match else len(text)


def _matches(kind: Kind, pattern: "re2._Regexp", text: bytes, start: int) -> Iterator[Span]:
    for match in pattern.finditer(text, start):
        if kind.check:
            yield from kind.check(text, *match.span())
        elif match.end() > match.start():
            yield match.span()


def _own(pattern: FilterPattern) -> Kind:
    return Kind(pattern.name, pattern.regex)


def _compile_own(pattern: FilterPattern) -> "re2._Regexp":
    name = f"server.filters.patterns: {pattern.name}"
    try:
        compiled = _compile(pattern.regex)
        _compile(beginnings(pattern.regex))
    # ValueError: `Unsupported`, or half of a surrogate pair.
    # OverflowError: 2^32 repetitions in Python's parser.
    except (re.error, re2.error, ValueError, OverflowError, RecursionError) as error:
        reason = error.args[0].decode() if isinstance(error, re2.error) else error
        hint = "look-around and back-references are not supported"
        raise errors.ConfigInvalid(
            f"{name}: the regular expression can't be used: {reason} ({hint})"
        ) from error
    if compiled.search(b""):
        raise errors.ConfigInvalid(
            f"{name}: the regular expression matches the empty text, and so everywhere"
        )
    return compiled


def _compile(regex: str) -> "re2._Regexp":
    options = re2.Options()
    options.log_errors = False
    return re2.compile(regex.encode(), options)
