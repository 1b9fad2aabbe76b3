"""Constrained output: what compiles, what is refused and why, and what the masks allow."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from llm_runtime.errors import InvalidRequest
from llm_runtime.request import Constraint
from llm_runtime.text.codec import Codec, codec_from_folder
from llm_runtime.text.constraint import MAX_CHARACTERS, GrammarMatcher, Grammars
from unit.runtime import tiny_model

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "on": {"type": "boolean"},
                "below": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1},
            },
            "required": ["on", "below"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
CHOICES = {
    "type": "array",
    "items": {"enum": ["ä", 1, None, "long one"]},
    "minItems": 2,
    "maxItems": 3,
}


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return codec_from_folder(tiny_model.make_tokenizer(tmp_path_factory.mktemp("tiny")))


def schema(of: Any) -> Constraint:
    return Constraint("json_schema", json.dumps(of))


def allowed(matcher: GrammarMatcher) -> list[int]:
    mask = matcher.mask()
    return [
        place * 8 + bit for place, byte in enumerate(mask) for bit in range(8) if byte >> bit & 1
    ]


def walk(codec: Codec, constraint: Constraint, seed: int, limit: int = 2000) -> str:
    """Any text that the masks allow; from its 200th token on it prefers to close what is open."""
    chance = random.Random(seed)
    matcher = codec.matcher(constraint)
    tokens = list[int]()
    while not matcher.complete:
        choices = allowed(matcher)
        assert choices, f"a dead end after {codec.decode(tokens)!r}"
        ends = [token for token in choices if token in codec.eos_token_ids]
        if ends and (len(choices) == len(ends) or chance.random() < 0.2):
            break
        closing = (
            [token for token in choices if codec.token_text(token) in '"}]']
            if len(tokens) > 200
            else []
        )
        tokens.append(chance.choice(closing or [token for token in choices if token not in ends]))
        matcher.advance(tokens[-1])
        assert len(tokens) < limit
    return codec.decode(tokens)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("wanted", [PERSON, TREE, CHOICES], ids=["object", "recursive", "array"])
def test_whatever_the_masks_allow_fits_the_schema(codec: Codec, wanted: Any, seed: int) -> None:
    jsonschema.validate(json.loads(walk(codec, schema(wanted), seed)), wanted)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pattern", [r"\d{4}-\d\d", r"(yes|no), [a-z ]{2,30}\.", "ä+/?", ".{0,20}"])
def test_whatever_the_masks_allow_matches_the_expression(
    codec: Codec, pattern: str, seed: int
) -> None:
    assert re.fullmatch(pattern, walk(codec, Constraint("regex", pattern), seed))


def test_any_object_is_an_object(codec: Codec) -> None:
    assert isinstance(json.loads(walk(codec, Constraint("json_object"), 1)), dict)


def test_blanks_between_the_parts_are_bounded(codec: Codec) -> None:
    matcher = codec.matcher(Constraint("json_object"))
    [blank] = codec.encode(" ")
    for token in [*codec.encode("{"), *[blank] * 40]:
        assert token in allowed(matcher)
        matcher.advance(token)
    assert blank not in allowed(matcher)


def test_special_tokens_are_never_allowed_and_the_end_only_where_it_fits(codec: Codec) -> None:
    [end] = codec.eos_token_ids
    matcher = codec.matcher(Constraint("regex", ".*"))
    special = {
        token
        for token in range(codec.vocabulary_size)
        if codec.token_text(token) in tiny_model.SPECIAL
    }
    assert special & set(allowed(matcher)) == {end}
    unfinished = codec.matcher(Constraint("regex", "ab"))
    assert allowed(unfinished) == codec.encode("a")


def test_complete_means_that_nothing_but_the_end_may_follow(codec: Codec) -> None:
    matcher = codec.matcher(Constraint("regex", "ab?"))
    matcher.advance(codec.encode("a")[0])
    assert not matcher.complete
    matcher.advance(codec.encode("b")[0])
    assert matcher.complete
    assert allowed(matcher) == [*codec.eos_token_ids]
    matcher.advance(*codec.eos_token_ids)  # As with ignore_eos.
    assert (allowed(matcher), matcher.fault) == ([*codec.eos_token_ids], "")


def test_after_a_fault_nothing_is_allowed_not_even_the_end(codec: Codec) -> None:
    matcher = codec.matcher(Constraint("regex", "ab"))
    matcher.advance(codec.encode("x")[0])
    assert matcher.mask() == b""
    assert "can't be followed" in matcher.fault
    assert not matcher.complete


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (Constraint("regex", "(a"), "unclosed group"),
        (Constraint("regex", r"(a)\1"), "backreferences are not supported"),
        (Constraint("regex", "(?=a)b"), "look-around"),
        (Constraint("regex", r"[^\s\S]"), "nothing matches"),
        (Constraint("regex", "a" * 5000), "5000 characters; at most 2048"),
        (schema({"type": "strin"}), "Invalid type: strin"),
        (schema({"type": "string", "minLength": 5, "maxLength": 2}), "greater than maxLength"),
        (schema({"$ref": "#/$defs/none"}), "does not exist"),
        (schema({"$ref": "https://example.com/x.json"}), "not present"),
        (schema({"properties": {"a": {"pattern": "(a"}}}), "unclosed group"),
        (
            Constraint("json_schema", '{"not": {"type": "string"}}', strict=True),
            "strict, but not can't be enforced",
        ),
        (schema({"enum": []}), "Unsatisfiable"),
        (schema([1]), "used"),
        (Constraint("json_schema", '{"type"'), "used"),
        (Constraint("json_schema", '{"a":' * 3000 + "1" + "}" * 3000), "nested too deeply"),
        (Constraint("json_schema", '{"items":' * 300 + "{}" + "}" * 300), "nested too deeply"),
        (schema({"enum": ["x" * 40_000]}), "at most 32768"),
    ],
)
def test_what_can_not_be_enforced_is_refused_with_its_reason(
    codec: Codec, wrong: Constraint, reason: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        codec.check_constraint(wrong)
    assert reason in refusal.value.message
    assert refusal.value.message.count("\n") == 0


def test_a_grammar_is_compiled_once_and_its_matchers_are_independent(
    codec: Codec, tmp_path: Path
) -> None:
    asked = []

    def source() -> str:
        asked.append(1)
        return (tiny_model.make_tokenizer(tmp_path) / "tokenizer.json").read_text()

    grammars = Grammars(source, codec.vocabulary_size, codec.eos_token_ids, cached=2)
    one, other = (grammars.matcher(Constraint("regex", "ab")) for _ in range(2))
    one.advance(codec.encode("a")[0])
    assert (allowed(one), allowed(other)) == (codec.encode("b"), codec.encode("a"))
    for pattern in "abc":
        grammars.check(Constraint("regex", pattern))
    assert len(asked) == 1
    assert len(grammars._compiled) == 2


def test_a_tokenizer_that_is_none_refuses_the_request_and_no_more() -> None:
    grammars = Grammars(lambda: "{}", 10, frozenset({1}))
    with pytest.raises(InvalidRequest, match="tokenizer allows no constrained output"):
        grammars.check(Constraint("json_object"))


def test_the_largest_schema_that_is_taken_compiles_within_a_second(codec: Codec) -> None:
    properties: dict[str, Any] = {}
    while (
        len(json.dumps(schema({"type": "object", "properties": properties}).text))
        < MAX_CHARACTERS["json_schema"]
    ):
        properties[f"p{len(properties)}"] = {"type": "string"}
    properties.popitem()
    codec.check_constraint(schema({"type": "object", "properties": properties}))


def test_checking_a_constraint_needs_no_torch(tmp_path: Path) -> None:
    folder = tiny_model.make_tokenizer(tmp_path)
    program = (
        "import sys; from pathlib import Path; from llm_runtime.text.codec import"
        " codec_from_folder\nfrom llm_runtime.request import"
        f" Constraint\ncodec_from_folder(Path({str(folder)!r})).check_constraint(Constraint('json_object'))\nassert"
        " not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
