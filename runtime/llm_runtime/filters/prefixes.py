"""Derives, from a pattern, a pattern for all prefixes of its matches.

A stream may send text at once unless later characters could make it part of a match. So it holds
back only the longest suffix that is a prefix of a match. The prefix pattern is computed from the
parse tree and is exact for every pattern,
with one exception: assertions (`\\b`, `^`) are assumed to hold, which holds back slightly more.
"""

# The parser of the standard library's `re`;
# `sre_parse`, its public name, is deprecated without a successor.
import re._constants as ops  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
from collections.abc import Sequence
from re import DOTALL, IGNORECASE, escape
from typing import Any

Node = tuple[Any, Any]

MAX_COUNT = 5

CLASSES = {
    ops.CATEGORY_DIGIT: r"\d",
    ops.CATEGORY_NOT_DIGIT: r"\D",
    ops.CATEGORY_SPACE: r"\s",
    ops.CATEGORY_NOT_SPACE: r"\S",
    ops.CATEGORY_WORD: r"\w",
    ops.CATEGORY_NOT_WORD: r"\W",
}


class Unsupported(ValueError):
    """A construct that can't be matched in linear time, or not in a stream."""


def beginnings(pattern: str) -> str:
    """A pattern for RE2 that matches every prefix of a match,
    including the empty and the complete one.

    Raises `re.error` if Python can't parse `pattern`, `Unsupported` if RE2 lacks a construct.
    """
    tree = parser.parse(pattern)
    flags = "".join(
        letter for flag, letter in ((IGNORECASE, "i"), (DOTALL, "s")) if tree.state.flags & flag
    )
    return f"(?{flags}:{_beginnings(list(tree))})" if flags else f"(?:{_beginnings(list(tree))})"


def _beginnings(nodes: Sequence[Node]) -> str:
    nodes = [node for node in nodes if node[0] is not ops.AT]
    if not nodes:
        return ""
    first = nodes[0]
    rest = _beginnings(nodes[1:])
    # A prefix of a sequence is a prefix of its first node,
    # or the whole first node and a prefix of the rest.
    begun = "" if _is_letter(first) else _beginning(first)
    return f"(?:{begun}|{_whole(first)}{rest})"


def _beginning(node: Node) -> str:
    op, value = node
    match op:
        case ops.BRANCH:
            return "|".join(f"(?:{_beginnings(list(branch))})" for branch in value[1])
        case ops.SUBPATTERN:
            return _scoped(value, _beginnings(list(value[3])))
        case ops.MAX_REPEAT | ops.MIN_REPEAT:
            _, most, inner = value
            return f"(?:{_all(inner)}){_times(0, max(0, most - 1))}{_beginnings(list(inner))}"
    raise Unsupported(f"{str(op).lower()} is not supported")


def _all(nodes: Sequence[Node]) -> str:
    return "".join(map(_whole, nodes))


def _whole(node: Node) -> str:
    op, value = node
    match op:
        case ops.LITERAL:
            return _letter(value)
        case ops.NOT_LITERAL:
            return f"[^{_letter(value)}]"
        case ops.ANY:
            return "."
        case ops.IN:
            return _set(value)
        case ops.AT:
            return ""
        case ops.BRANCH:
            return f"(?:{'|'.join(_all(branch) for branch in value[1])})"
        case ops.SUBPATTERN:
            return _scoped(value, _all(value[3]))
        case ops.MAX_REPEAT | ops.MIN_REPEAT:
            least, most, inner = value
            return f"(?:{_all(inner)}){_times(least, most)}"
    raise Unsupported(f"{str(op).lower()} is not supported")


def _times(least: int, most: int) -> str:
    # High counts make automata large, and would hardly make the prefixes more exact.
    if most > MAX_COUNT:
        return "+" if least else "*"
    return f"{{{least},{most}}}"


def _is_letter(node: Node) -> bool:
    return node[0] in (ops.LITERAL, ops.NOT_LITERAL, ops.ANY, ops.IN)


def _scoped(group: tuple[Any, int, int, Any], inner: str) -> str:
    _, added, removed, _ = group
    on = "".join(letter for flag, letter in ((IGNORECASE, "i"), (DOTALL, "s")) if added & flag)
    off = "".join(letter for flag, letter in ((IGNORECASE, "i"), (DOTALL, "s")) if removed & flag)
    return f"(?{on}{'-' + off if off else ''}:{inner})"


def _set(items: Sequence[Node]) -> str:
    inside = ""
    for op, value in items:
        match op:
            case ops.NEGATE:
                inside += "^"
            case ops.RANGE:
                inside += f"{_letter(value[0])}-{_letter(value[1])}"
            case ops.CATEGORY:
                inside += CLASSES[value]
            case _:
                inside += _letter(value)
    return f"[{inside}]"


def _letter(code: int) -> str:
    return f"\\x{{{code:x}}}" if code < 128 and not chr(code).isalnum() else escape(chr(code))
