"""What two answers to the same request have in common. Pure."""

import base64
import math
from array import array
from collections import Counter
from dataclasses import dataclass
from operator import mul
from typing import Any

import orjson

SAME = 1e-5
"""Difference of cosines that rounding explains: a text is computed together with others."""
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
    vector: bool = False
    """Whether it is an embedding: `text` is the vector, as in `TokenEvent.text`."""


def differences(stable: ModelAnswer, candidate: ModelAnswer, *, greedy: bool) -> dict[str, float]:
    """How far the candidate is from stable, 0 to 1,
    by what applies of exact, similarity, finishReason and json.

    Texts are compared of `greedy` answers only: two samples of one model differ, too. Embeddings are
    compared by their angle: similarity is 1 less its cosine, and what rounding explains is exact.
    """
    found = {"finishReason": float(stable.finish_reason != candidate.finish_reason)}
    if stable.vector:
        apart = 1.0 - cosine(stable.text, candidate.text)
        return found | {"exact": float(apart > SAME), "similarity": min(max(apart, 0.0), 1.0)}
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


def cosine(one: str, other: str) -> float:
    """Cosine of the angle between two vectors, -1 to 1; 0 for vectors of different spaces."""
    mine = _numbers(one)
    theirs = _numbers(other)
    if len(mine) != len(theirs):
        return 0.0
    lengths = math.hypot(*mine) * math.hypot(*theirs)
    return sum(map(mul, mine, theirs)) / lengths if lengths else float(one == other)


def _numbers(text: str) -> "array[float]":
    try:
        return array("f", base64.b64decode(text, validate=True))
    except ValueError:
        return array("f")


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
