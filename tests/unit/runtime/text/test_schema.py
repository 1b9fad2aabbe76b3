"""Schemas as Pydantic and Zod write them:
enforced as far as they can be, and what can't be is named."""

import json
import re
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import jsonschema
import pytest
from openai.lib._pydantic import to_strict_json_schema
from pydantic import (
    UUID4,
    AnyUrl,
    Base64Bytes,
    BaseModel,
    ByteSize,
    Field,
    HttpUrl,
    Json,
    PastDate,
    PositiveInt,
    SecretStr,
    TypeAdapter,
    conint,
)  # fmt: skip
from tokenizers import AddedToken, Tokenizer

from llm_runtime.api.openai.offer import OfferedTool
from llm_runtime.errors import InvalidRequest
from llm_runtime.request import Constraint
from llm_runtime.text.codec import Codec, codec_from_folder
from llm_runtime.text.constraint import Grammars
from llm_runtime.text.schema import FORMATS, UNKNOWN_WORDS, Compiler, prepare
from llm_runtime.tools.calls import Tool
from llm_runtime.tools.forms import form_of
from llm_runtime.tools.grammar import allowed as free
from llm_runtime.tools.grammar import either, forced
from unit.runtime import tiny_model
from unit.runtime.text.test_constraint import allowed, walk
from unit.runtime.tools.templates import QWEN

ZOD: dict[str, Any] = json.loads((Path(__file__).parent / "schemas" / "zod-4.6.7.json").read_text())

HERMES = form_of(QWEN)
assert HERMES


class Color(StrEnum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: int
    y: int = 0


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str | None = None


class Node(BaseModel):
    value: int
    children: list["Node"] = []


class Inner(BaseModel):
    model_config = {"extra": "forbid"}
    when: datetime


PYDANTIC: dict[str, Any] = {
    str(kind): kind
    for kind in (
        str, int, float, bool, bytes, Decimal, date, datetime, time, timedelta, UUID, UUID4, Path, AnyUrl, HttpUrl,
        IPv4Address, IPv6Address, IPv4Network, SecretStr, ByteSize, Base64Bytes, PastDate, PositiveInt, re.Pattern[str],
        set[str], frozenset[int], list[str], tuple[int, str], tuple[int, ...], dict[str, int], dict[int, str],
        dict[Color, int], dict[Level, str], dict[Literal["a"], int], dict[UUID, int], dict[datetime, str],
        Mapping[str, Any], Color, Level, Literal["a", 1, None], int | str, int | None, Any, Point, Cat, Node, Inner,
        Annotated[Cat | Dog, Field(discriminator="kind")], list[Cat | Dog], Json[list[int]], complex,
        Annotated[str, Field(min_length=2, max_length=5, pattern="^[a-z]+$")],
        Annotated[str, Field(pattern=r"\bword\b")], Annotated[float, Field(gt=0, le=1)],
        Annotated[float, Field(multiple_of=0.25)], Annotated[int, Field(ge=-(2**63), le=2**63 - 1)],
        Annotated[dict[str, int], Field(min_length=1)], Annotated[list[int], Field(min_length=1, max_length=3)],
        Annotated[dict[Annotated[str, Field(pattern="^k[0-9]$")], int], Field(max_length=3)],
        conint(ge=1, lt=10),
    )
}  # fmt: skip


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return codec_from_folder(tiny_model.make_tokenizer(tmp_path_factory.mktemp("tiny")))


def schema(of: Any, strict: bool = False) -> Constraint:
    return Constraint("json_schema", json.dumps(of), strict)


def tool(name: str, parameters: dict[str, Any], strict: bool = False) -> Tool:
    """As a request offers it."""
    function = {"name": name, "parameters": parameters, "strict": strict}
    return OfferedTool.model_validate({"type": "function", "function": function}).tool()


def refusal(codec: Codec, constraint: Constraint) -> str:
    with pytest.raises(InvalidRequest) as caught:
        codec.check_constraint(constraint)
    return caught.value.message


@pytest.mark.parametrize("name", PYDANTIC)
def test_pydantics_types_are_taken(codec: Codec, name: str) -> None:
    described = TypeAdapter(PYDANTIC[name]).json_schema()
    codec.check_constraint(schema(described))
    codec.check_constraint(
        schema(
            {"type": "object", "properties": {"x": described}, "$defs": described.get("$defs", {})}
        )
    )


@pytest.mark.parametrize("name", ZOD)
def test_zods_types_are_taken(codec: Codec, name: str) -> None:
    codec.check_constraint(schema(ZOD[name]))


UNKNOWN: list[tuple[dict[str, Any], str]] = [
    ({"type": "object", "propertyNames": {"minLength": 2}}, "propertyNames"),
    ({"type": "string", "not": {"const": "a"}}, "not"),
    (
        {"type": "string", "if": {"const": "a"}, "then": {}, "else": {"minLength": 3}},
        "if, then, else",
    ),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}}, "dependentSchemas"),
    ({"type": "object", "dependencies": {"a": ["b"]}}, "dependencies"),
    ({"type": "array", "contains": {"const": 1}, "minContains": 2}, "contains, minContains"),
    ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"type": "array", "unevaluatedItems": False}, "unevaluatedItems"),
    ({"type": "string", "pattern": r"\bfoo\b"}, "pattern"),
    ({"type": "string", "pattern": r"^(?!a).*$"}, "pattern"),
    ({"type": "string", "pattern": r"^(a)\1$"}, "pattern"),
    ({"type": "object", "patternProperties": {"^(?!a)": {"type": "null"}}}, "patternProperties"),
    ({"type": "integer", "multipleOf": 99999999999}, "multipleOf"),
    ({"$dynamicRef": "#node"}, "$dynamicRef"),
    ({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 3}]}, "oneOf"),
    ({"type": "object", "minProperties": 2, "properties": {"a": {}}}, "min/maxProperties"),
]


@pytest.mark.parametrize(("unknown", "words"), UNKNOWN, ids=[words for _, words in UNKNOWN])
def test_an_unknown_word_refuses_nothing_unless_strict(
    codec: Codec, unknown: dict[str, Any], words: str
) -> None:
    inside = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "x": unknown},
        "required": ["n"],
    }
    for of in (
        unknown,
        inside,
        {"$defs": {"T": unknown}, "type": "array", "items": {"$ref": "#/$defs/T"}},
    ):
        codec.check_constraint(schema(of))
    said = refusal(codec, schema(inside, strict=True))
    assert words.split(", ")[0] in said
    if words not in ("oneOf", "min/maxProperties"):
        assert f"properties.x.{words.split(', ')[0]}" in said
    for seed in range(3):
        answer = json.loads(walk(codec, schema(inside), seed))
        assert isinstance(answer["n"], int), "what is known is enforced still"


class Tagged(BaseModel):
    """As somebody gives it to OpenAI's `.parse()`."""

    tags: Annotated[set[Literal["a", "b"]], Field(min_length=1, max_length=3)]
    scores: frozenset[int]


def test_a_set_is_taken_though_strict_and_all_but_its_uniqueness_is_enforced(codec: Codec) -> None:
    sent = to_strict_json_schema(Tagged)
    assert sent["properties"]["tags"]["uniqueItems"] is True
    for seed in range(8):
        answer = json.loads(walk(codec, schema(sent, strict=True), seed))
        assert 1 <= len(answer["tags"]) <= 3
        assert Tagged.model_validate(answer).tags <= {"a", "b"}


@pytest.mark.parametrize(
    "idle",
    [
        {"uniqueItems": False}, {"propertyNames": {"type": "string"}}, {"propertyNames": True},
        {"dependentRequired": {}},
        {"unevaluatedProperties": True}, {"unevaluatedItems": {}}, {"then": {"minLength": 3}}, {"if": {"const": 1}},
        {"minContains": 3}, {"format": "password"}, {"format": "any-word"}, {"patternProperties": {}},
        {"enum": None, "items": None, "description": None, "const": None, "pattern": None}, {"type": "any"},
        {"type": "object", "properties": {"a": {"type": "string", "required": True}}},
        {"minimum": -(2**63), "type": "integer"}, {"minimum": -1e300, "maximum": 1e300}, {"title": "T", "x-own": {}},
    ],
)  # fmt: skip
def test_what_asks_for_nothing_passes_even_if_strict(codec: Codec, idle: dict[str, Any]) -> None:
    codec.check_constraint(schema(idle, strict=True))


@pytest.mark.parametrize(
    "said",
    [
        {
            "type": "object",
            "propertyNames": {"enum": ["a", "b"]},
            "additionalProperties": {"type": "integer"},
        },
        {
            "type": "object",
            "propertyNames": {"$ref": "#/$defs/N"},
            "$defs": {"N": {"enum": ["a"], "title": "N"}},
        },
        {
            "type": "object",
            "propertyNames": {"pattern": "^k[0-9]$"},
            "additionalProperties": {"type": "null"},
        },
        {"oneOf": [{"const": 1}, {"const": 2}]},
        {"oneOf": [{"enum": [1, "1"]}, {"enum": [2, "2"]}, {"const": True}]},
        {"$ref": "#/$defs/a b", "$defs": {"a b": {"type": "null"}}},
        {"type": "string", "format": "uuid4"},
    ],
)
def test_what_can_be_said_otherwise_is_enforced(codec: Codec, said: dict[str, Any]) -> None:
    for seed in range(8):
        answer = json.loads(walk(codec, schema(said, strict=True), seed))
        if "$ref" not in said:
            jsonschema.validate(answer, said)


def test_names_that_no_pattern_can_be_read_for_may_be_anything(codec: Codec) -> None:
    looking = {
        "type": "object",
        "patternProperties": {"^(?!x)": {"const": 1}},
        "additionalProperties": False,
    }
    answers = [json.loads(walk(codec, schema(looking), seed)) for seed in range(12)]
    assert any(answers)
    assert {value for answer in answers for value in answer.values()} == {1}


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "strin"},
        {"$ref": "#/$defs/none"},
        {"enum": []},
        {"minLength": "3"},
        {"type": "integer", "minimum": 5, "maximum": 3},
    ],
)
def test_a_schema_that_is_wrong_is_refused_strict_or_not(
    codec: Codec, wrong: dict[str, Any]
) -> None:
    for strict in (False, True):
        assert "can't be used" in refusal(
            codec, schema({"type": "object", "properties": {"a": wrong}, "required": ["a"]}, strict)
        )


def test_words_in_data_are_no_words() -> None:
    data = {
        "enum": [{"not": 1, "pattern": "(?=a)"}],
        "default": {"contains": True},
        "properties": {"not": {"const": {"if": 1}}, "pattern": {"type": "string"}},
    }
    for reads in (True, False):
        prepared = prepare(data, Compiler(lambda _, reads=reads: reads, room=1000))
        assert (prepared.schema, prepared.left_out) == (data, ())


def test_patterns_have_a_bound_together_and_equal_ones_count_once(codec: Codec) -> None:
    long = "^(" + "a" * 1500 + ")?$"
    other = "^(" + "b" * 1500 + ")?$"
    equal = {
        "type": "object",
        "properties": {f"p{n}": {"type": "string", "pattern": long} for n in range(15)},
    }
    codec.check_constraint(schema(equal, strict=True))
    different = {"type": "object", "properties": {"a": {"pattern": long}, "b": {"pattern": other}}}
    codec.check_constraint(schema(different))
    assert "properties.b.pattern can't be enforced" in refusal(
        codec, schema(different, strict=True)
    )
    tools = (
        tool("f", different["properties"]["a"]),
        tool("g", different["properties"]["b"], strict=True),
    )  # type: ignore[index]
    assert "g: strict, but pattern" in refusal(codec, forced(HERMES, tools))


TAGS = {"type": "object", "properties": {"tags": {"type": "array", "contains": {"const": 1}}}}


def test_one_tool_with_an_unknown_word_harms_none(codec: Codec) -> None:
    tools = (tool("f", TAGS), tool("g", {"type": "object"}, strict=True))
    answer = Constraint("json_schema", json.dumps(TAGS))
    for constraint in (forced(HERMES, tools), free(HERMES, tools), either(HERMES, tools, answer)):
        codec.check_constraint(constraint)


def test_a_strict_tool_is_refused_by_its_name_and_word(codec: Codec) -> None:
    tools = (tool("f", {"type": "object"}), tool("tagger", TAGS, strict=True))
    for constraint in (forced(HERMES, tools), free(HERMES, tools)):
        assert "tagger: strict, but properties.tags.contains" in refusal(codec, constraint)
    answer = Constraint("json_schema", json.dumps(TAGS), strict=True)
    assert "response_format: strict" in refusal(codec, either(HERMES, tools[:1], answer))


@pytest.mark.parametrize("difference", [-1, -40, 1, 70])
def test_a_tokenizer_may_be_larger_or_smaller_than_the_model(
    tmp_path: Path, difference: int
) -> None:
    file = tiny_model.make_tokenizer(tmp_path) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.add_special_tokens([AddedToken(f"<image_{n}>", special=True) for n in range(45)])
    rows = tokenizer.get_vocab_size() + difference
    [end] = codec_from_folder(tmp_path).eos_token_ids
    grammars = Grammars(tokenizer.to_str, rows, frozenset({end}))
    for constraint in (
        Constraint("json_object"),
        Constraint("regex", "ab?"),
        schema(TAGS),
        forced(HERMES, [tool("f", TAGS)]),
    ):
        matcher = grammars.matcher(constraint)
        tokens = allowed(matcher)
        assert tokens
        assert max(tokens) < tokenizer.get_vocab_size() - 45, (
            "added tokens that are special are never allowed"
        )


def test_the_docs_name_the_words_that_are_not_enforced() -> None:
    text = (Path(__file__).parents[4] / "docs" / "fields.md").read_text()
    _, _, section = text.partition("## What is enforced of a schema")
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    unknown = {
        word
        for row in rows
        if row[-1].strip().startswith("not enforced")
        for word in re.findall(r"`([^`]+)`", row[0])
    }
    assert unknown | {"propertyNames"} == UNKNOWN_WORDS
    [formats] = [row[1] for row in rows if row[0].strip() == "`format`"]
    assert set(formats.partition(";")[0].split(", ")) | {"unknown"} == FORMATS
