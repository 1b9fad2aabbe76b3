"""Builds grammars: rules in llguidance's Lark dialect, and the JSON schemas that they reference."""

import json
import re
from collections.abc import Mapping
from typing import Any

from llm_runtime.request import Constraint

ANY_TEXT = r"(.|\n)*"
SOME_TEXT = r"(.|\n)+"


class Lark:
    """A grammar under construction.
    `tokens` are the control tokens by their text, which letters must not spell."""

    def __init__(self, tokens: Mapping[str, int]) -> None:
        self._tokens = tokens
        self._split = re.compile(
            "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)"
        )
        self._rules: list[str] = []
        self._schemas: list[dict[str, Any]] = []

    def text(self, text: str) -> str:
        """An expression for exactly `text`, with control tokens in it as tokens;
        "" for an empty text."""
        parts = []
        at = 0
        for token in self._split.finditer(text):
            parts += [_quoted(text[at : token.start()]), f"<[{self._tokens[token[0]]}]>"]
            at = token.end()
        return " ".join(part for part in (*parts, _quoted(text[at:])) if part)

    def is_token(self, text: str) -> bool:
        return text in self._tokens

    def other_tokens(self, *but: str) -> str:
        """An expression for any control token except `but`; "" if there are no others."""
        others = sorted({number for text, number in self._tokens.items() if text not in but})
        return f"<[{','.join(map(str, others))}]>" if others else ""

    def rule(self, name: str, body: str) -> str:
        """Add a rule, and return its name."""
        self._rules.append(f"{name}: {body}")
        return name.partition("[")[0]

    def schema(self, schema: Mapping[str, Any]) -> str:
        """An expression for JSON that matches `schema`."""
        self._schemas.append(dict(schema))
        return f"schema_{len(self._schemas) - 1}"

    def constraint(self) -> Constraint:
        return Constraint(
            "grammar",
            json.dumps({"rules": self._rules, "schemas": self._schemas}, ensure_ascii=False),
        )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def repeated(item: str, between: str, most: int) -> str:
    """An expression for one to `most` items."""
    return f"{item} ({between} {item}){{0,{most - 1}}}" if most > 1 else item


def shared(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a schema that its parts need, too: definitions, and this server's own keys."""
    return {
        word: value
        for word, value in schema.items()
        if word in ("$defs", "definitions") or word.startswith("x-")
    }
