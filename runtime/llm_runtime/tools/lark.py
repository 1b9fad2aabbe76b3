"""Grammars as they grow: rules in llguidance's Lark, and the JSON schemas that they speak of."""

import json
import re
from collections.abc import Mapping
from typing import Any

from llm_runtime.request import Constraint

ANY_TEXT = r"(.|\n)*"
SOME_TEXT = r"(.|\n)+"


class Lark:
    """A grammar in the making. `tokens` are the tokenizer's control tokens by their text: letters never spell these."""

    def __init__(self, tokens: Mapping[str, int]) -> None:
        self._tokens = tokens
        self._split = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")
        self._rules: list[str] = []
        self._schemas: list[dict[str, Any]] = []

    def text(self, text: str) -> str:
        """What writes exactly `text`, special tokens in it as such; "" for none."""
        parts = []
        at = 0
        for found in self._split.finditer(text):
            parts += [_quoted(text[at : found.start()]), f"<[{self._tokens[found[0]]}]>"]
            at = found.end()
        return " ".join(part for part in (*parts, _quoted(text[at:])) if part)

    def is_token(self, text: str) -> bool:
        return text in self._tokens

    def other_tokens(self, *but: str) -> str:
        """Any one special token that is none of `but`; "" if there are no others."""
        others = sorted({number for text, number in self._tokens.items() if text not in but})
        return f"<[{','.join(map(str, others))}]>" if others else ""

    def rule(self, name: str, body: str) -> str:
        """Add a rule; its name."""
        self._rules.append(f"{name}: {body}")
        return name.partition("[")[0]

    def schema(self, schema: Mapping[str, Any]) -> str:
        """What writes JSON that matches."""
        self._schemas.append(dict(schema))
        return f"schema_{len(self._schemas) - 1}"

    def constraint(self) -> Constraint:
        return Constraint("grammar", json.dumps({"rules": self._rules, "schemas": self._schemas}, ensure_ascii=False))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def repeated(item: str, between: str, most: int) -> str:
    """One `item` to `most` of them."""
    return f"{item} ({between} {item}){{0,{most - 1}}}" if most > 1 else item


def shared(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What a schema says for all of its parts: its definitions, and words that are this server's own."""
    return {word: value for word, value in schema.items() if word in ("$defs", "definitions") or word.startswith("x-")}
