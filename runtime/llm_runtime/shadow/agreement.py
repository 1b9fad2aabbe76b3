"""What two answers to the same request have in common. Pure."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import orjson

LETTERS = 3
"""Length of the pieces by which texts are compared."""


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """One whole answer, as the model gave it:
    with thoughts and calls, before a dialect takes these apart."""

    text: str
    finish_reason: str
    tokens: int
    seconds: float


def differences(stable: ModelAnswer, candidate: ModelAnswer, *, greedy: bool) -> dict[str, float]:
    """How far the candidate is from stable, 0 to 1,
    by what applies of exact, similarity, finishReason and json.

    Texts are compared of `greedy` answers only: two samples of one model differ, too.
    """
    found = {"finishReason": float(stable.finish_reason != candidate.finish_reason)}
    if greedy:
        same = stable.text == candidate.text
        found["exact"] = float(not same)
        found["similarity"] = 0.0 if same else 1.0 - similarity(stable.text, candidate.text)
    if _is_json(stable.text):
        found["json"] = float(not _is_json(candidate.text))
    return found


def failure(stable: ModelAnswer, *, greedy: bool) -> dict[str, float]:
    """The differences of a candidate that does not answer what stable has answered."""
    return dict.fromkeys(differences(stable, stable, greedy=greedy), 1.0)


def similarity(one: str, other: str) -> float:
    """Share of pieces of three letters that both texts have (Dice's coefficient), 0 to 1."""
    if min(len(one), len(other)) < LETTERS:
        return float(one == other)
    mine = _pieces(one)
    theirs = _pieces(other)
    return 2 * (mine & theirs).total() / (mine.total() + theirs.total())


def _pieces(text: str) -> Counter[str]:
    return Counter(text[start : start + LETTERS] for start in range(len(text) - LETTERS + 1))


def _is_json(text: str) -> bool:
    """Whether the text is one JSON object or list: a bare number or word is one by chance."""
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        found: Any = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return isinstance(found, dict | list)
