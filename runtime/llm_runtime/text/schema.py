"""JSON schemas, made ready for the grammar's compiler:
what it can enforce stays, what asks for nothing goes.

A few words that the compiler does not know are said in words that it does. What can't be enforced
is named as the client wrote it, because a client may want the whole schema or none.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any
from urllib.parse import quote

NAMED = ("properties", "patternProperties", "$defs", "definitions")
"""Words that hold schemas by name."""
LISTED = ("allOf", "anyOf", "oneOf", "prefixItems")
SINGLE = ("items", "additionalItems", "additionalProperties")
UNKNOWN_WORDS = frozenset(
    {
        "not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames",
        "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties", "unevaluatedItems",
        "$dynamicRef", "$recursiveRef",
    }
)  # fmt: skip
"""Words that say something, and that the compiler does not know."""
UNTOLD = frozenset({"uniqueItems"})
"""Unknown words that refuse no strict schema: OpenAI's `.parse()` sends this one for a set, which
takes equal items."""
IDLE: dict[str, tuple[Any, ...]] = {
    "uniqueItems": (False,),
    "propertyNames": (True, {}),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "unevaluatedProperties": (True, {}),
    "unevaluatedItems": (True, {}),
    "minContains": (0,),
    "type": ("any",),
}
"""Values of words that ask for nothing."""
FORMATS = frozenset(
    {
        "date-time",
        "date",
        "time",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "uri",
        "uuid",
        "unknown",
    }
)
"""All others are remarks, as JSON Schema has it for formats that a reader does not know."""
SAME_FORMAT = {
    **{f"uuid{version}": "uuid" for version in range(1, 9)},
    "guid": "uuid",
    "url": "uri",
}
BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
MOST_NUMBER = {"integer": (1 << 63) - 1024, "number": 10**18}
"""What the compiler takes as a bound: closer ones keep every answer right."""
DATA = frozenset({"const", "default", "examples"})
"""Words whose value may be null."""
ANNOTATIONS = frozenset({"title", "description", "$comment", "examples", "default", "deprecated"})
MOST_CHARACTERS = 32_768
"""Largest size of a schema that is repeated for every name that an object may have."""


@dataclass(slots=True)
class Compiler:
    """What the compiler can read, found out by asking it, once for each constraint."""

    probe: Callable[[dict[str, Any]], bool]
    """Whether it can read a small schema."""
    room: int
    """Characters of patterns that it may still be given, as some take long;
    equal ones count once."""
    patterns: dict[str, bool] = field(default_factory=dict)

    def matches(self, pattern: str) -> bool:
        """Whether it can read a pattern, and has the time for it."""
        if pattern not in self.patterns:
            fits = len(pattern) <= self.room
            self.room -= len(pattern) if fits else 0
            self.patterns[pattern] = fits and self.probe({"type": "string", "pattern": pattern})
        return self.patterns[pattern]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A schema to compile, and the words of the client's that it lacks:
    `properties.tags.contains`."""

    schema: Any
    left_out: tuple[str, ...]


def prepare(schema: Any, compiler: Compiler) -> Prepared:
    """What of `schema` can be enforced. What is no schema is left for the compiler to refuse."""
    work = _Work(schema, compiler)
    return Prepared(work.read(schema, ""), tuple(work.left_out))


@dataclass(slots=True)
class _Work:
    root: Any
    compiler: Compiler
    left_out: list[str] = field(default_factory=list)

    def read(self, schema: Any, path: str) -> Any:
        """One schema, and all inside it."""
        if not isinstance(schema, dict):
            return schema
        words = {word: value for word, value in schema.items() if not _idle(schema, word, value)}
        words = self._names_said_otherwise(words)
        for word in [word for word in words if word in UNKNOWN_WORDS]:
            del words[word]
            if word not in UNTOLD:
                self._leave(path, word)
        words = self._text(self._number(words, path), path)
        if "oneOf" in words and "anyOf" not in words and self._apart(words["oneOf"]):
            words = {("anyOf" if word == "oneOf" else word): value for word, value in words.items()}
        if isinstance(reference := words.get("$ref"), str):
            words["$ref"] = quote(reference, safe="#/%:?=&~+,;@!$'()*[]")
        return {word: self._inside(word, value, f"{path}.{word}") for word, value in words.items()}

    def _inside(self, word: str, value: Any, path: str) -> Any:
        if word in NAMED and isinstance(value, dict):
            return {name: self.read(inner, f"{path}.{name}") for name, inner in value.items()}
        if (word in LISTED or word == "items") and isinstance(value, list):
            return [self.read(inner, f"{path}[{number}]") for number, inner in enumerate(value)]
        return self.read(value, path) if word in SINGLE else value

    def _leave(self, path: str, word: str) -> None:
        self.left_out.append(f"{path}.{word}".removeprefix("."))

    def _number(self, words: dict[str, Any], path: str) -> dict[str, Any]:
        bounds = {word: words[word] for word in (*BOUNDS, "multipleOf") if word in words}
        if not bounds or self._reads(words, bounds):
            return words
        kind = "integer" if words.get("type") == "integer" else "number"
        closer = {
            word: _closer(value, MOST_NUMBER[kind]) if word in BOUNDS else value
            for word, value in bounds.items()
        }
        if self._reads(words, closer):
            return {**words, **closer}
        for word in bounds:
            self._leave(path, word)
        return {word: value for word, value in words.items() if word not in bounds}

    def _reads(self, words: dict[str, Any], said: dict[str, Any]) -> bool:
        return self.compiler.probe(
            {"type": "integer" if words.get("type") == "integer" else "number", **said}
        )

    def _text(self, words: dict[str, Any], path: str) -> dict[str, Any]:
        if isinstance(words.get("format"), str):
            words = {**words, "format": SAME_FORMAT.get(words["format"], words["format"])}
            if words["format"] not in FORMATS:
                del words["format"]
        if isinstance(pattern := words.get("pattern"), str) and not self.compiler.matches(pattern):
            words = {word: value for word, value in words.items() if word != "pattern"}
            self._leave(path, "pattern")
        named = words.get("patternProperties")
        if not isinstance(named, dict) or all(map(self.compiler.matches, named)):
            return words
        self._leave(path, "patternProperties")
        readable = {
            pattern: inner for pattern, inner in named.items() if self.compiler.matches(pattern)
        }
        words = {**words, "patternProperties": readable}
        if words.get("additionalProperties") is False:
            # Some of the other names are allowed after all, with one of these values.
            others = [inner for pattern, inner in named.items() if pattern not in readable]
            words["additionalProperties"] = {"anyOf": others}
        return words

    def _names_said_otherwise(self, words: dict[str, Any]) -> dict[str, Any]:
        """`propertyNames` that lists its names, or gives a pattern of them, as properties."""
        names = self._resolved(words.get("propertyNames"))
        if not isinstance(names, dict) or words.keys() & {"properties", "patternProperties"}:
            return words
        asked = names.keys() - ANNOTATIONS
        rest = {
            word: value
            for word, value in words.items()
            if word not in ("propertyNames", "additionalProperties")
        }
        if not asked or (asked == {"type"} and names["type"] == "string"):
            return {word: value for word, value in words.items() if word != "propertyNames"}
        value = words.get("additionalProperties", {})
        known = _values(names)
        if (
            known
            and asked <= {"type", "enum", "const"}
            and all(isinstance(name, str) for name in known)
        ):
            if len(known) * len(json.dumps(value)) <= MOST_CHARACTERS:
                return {
                    **rest,
                    "properties": dict.fromkeys(known, value),
                    "additionalProperties": False,
                }
        elif (
            asked <= {"type", "pattern"}
            and isinstance(pattern := names.get("pattern"), str)
            and self.compiler.matches(pattern)
        ):
            return {**rest, "patternProperties": {pattern: value}, "additionalProperties": False}
        return words

    def _apart(self, branches: Any) -> bool:
        """Whether no value fits two of them, as far as they list their values.
        Others the compiler looks at."""
        if not isinstance(branches, list):
            return False
        values = [_values(self._resolved(branch)) for branch in branches]
        listed = [
            {json.dumps(value, sort_keys=True) for value in known} for known in values if known
        ]
        return len(listed) == len(branches) and all(
            one.isdisjoint(other) for one, other in combinations(listed, 2)
        )

    def _resolved(self, schema: Any) -> Any:
        """What a reference within the document leads to."""
        if not isinstance(schema, dict) or not isinstance(reference := schema.get("$ref"), str):
            return schema
        found = self.root
        for step in reference.removeprefix("#").split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, dict) else None
        return found if reference.startswith("#/") else schema


def _idle(schema: dict[str, Any], word: str, value: Any) -> bool:
    # Clients in other languages write null for what they leave out;
    # older drafts mark a property itself as required.
    if (value is None and word not in DATA) or (word == "required" and isinstance(value, bool)):
        return True
    if word in ("then", "else"):
        return "if" not in schema
    if word == "if":
        return schema.keys().isdisjoint(("then", "else"))
    if word in ("minContains", "maxContains") and "contains" not in schema:
        return True
    # True == 1 in Python, but not in JSON.
    return any(
        value == idle and isinstance(value, bool) == isinstance(idle, bool)
        for idle in IDLE.get(word, ())
    )


def _closer(value: Any, most: int) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return max(-most, min(most, value))


def _values(schema: Any) -> list[Any]:
    """The values that a schema lists; empty if it lists none."""
    if not isinstance(schema, dict):
        return []
    if "const" in schema:
        return [schema["const"]]
    listed = schema.get("enum")
    return listed if isinstance(listed, list) else []
