"""What a grammar of calls lets a model write, token by token, with a real tokenizer."""

import json
from pathlib import Path

import pytest

from llm_runtime.errors import InvalidRequest
from llm_runtime.request import Constraint
from llm_runtime.text.codec import Codec, codec_from_folder
from llm_runtime.text.constraint import GrammarMatcher
from llm_runtime.tools.calls import Tool
from llm_runtime.tools.form import Form
from llm_runtime.tools.grammar import allowed, either, forced
from llm_runtime.tools.json_forms import Hermes, Llama, Mistral
from unit.runtime import tiny_model

NUMBER = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOLS = (Tool("f", NUMBER, strict=True), Tool("g", {"type": "object"}))
FORMS = [Hermes(), Llama(), Mistral()]
RIGHT = {
    "hermes": '<tool_call>\n{"name": "f", "arguments": {"a": 12}}\n</tool_call>',
    "llama": '{"name": "f", "parameters": {"a": 12}}',
    "mistral": '[TOOL_CALLS][{"name": "f", "arguments": {"a": 12}}]',
}


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    folder: Path = tiny_model.make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return codec_from_folder(folder)


def accepts(codec: Codec, constraint: Constraint, text: str) -> bool:
    codec.check_constraint(constraint)
    matcher = codec.matcher(constraint)
    for token in codec.encode(text):
        if not _allows(matcher, token):
            return False
        matcher.advance(token)
    return any(_allows(matcher, end) for end in codec.eos_token_ids)


def _allows(matcher: GrammarMatcher, token: int) -> bool:
    mask = matcher.mask()
    return bool(mask) and bool(mask[token // 8] >> token % 8 & 1)


def right(form: Form) -> str:
    return RIGHT[form.name]


@pytest.mark.parametrize("form", FORMS)
def test_a_forced_answer_is_calls_and_nothing_else(codec: Codec, form: Form) -> None:
    bound = forced(form, TOOLS)
    good = right(form)
    assert accepts(codec, bound, good)
    assert accepts(codec, bound, good.replace('"f"', '"g"').replace('{"a": 12}', '{"b": [null]}'))
    for wrong in (
        "hello",
        "",
        good.replace("12", '"12"'),
        good.replace('"f"', '"h"'),
        good + " bye",
    ):
        assert not accepts(codec, bound, wrong), wrong


@pytest.mark.parametrize("form", FORMS)
def test_one_call_at_most_where_only_one_is_wanted(codec: Codec, form: Form) -> None:
    opening, between, closing = {
        "mistral": ("[TOOL_CALLS][", ", ", "]"),
        "llama": ("", "; ", ""),
    }.get(form.name, ("", "\n", ""))
    item = right(form).removeprefix(opening).removesuffix(closing)
    two = f"{opening}{item}{between}{item}{closing}"
    assert accepts(codec, forced(form, TOOLS), two)
    assert not accepts(codec, forced(form, TOOLS, most=1), two)


@pytest.mark.parametrize("form", FORMS)
def test_a_free_answer_may_be_text_but_its_strict_calls_are_right(codec: Codec, form: Form) -> None:
    bound = allowed(form, TOOLS)
    good = right(form)
    for text in (
        "hello, what is 1 < 2?",
        "",
        good,
        good.replace('"f"', '"g"').replace("12", "null"),
    ):
        assert accepts(codec, bound, text), text
    assert not accepts(codec, bound, good.replace("12", '"12"'))


def test_bare_json_calls_go_with_no_other_format() -> None:
    with pytest.raises(InvalidRequest, match="bare JSON"):
        either(Llama(), TOOLS, Constraint("json_object"))


@pytest.mark.parametrize("form", [Hermes(), Mistral()])
def test_an_answer_is_calls_or_json_of_its_schema(codec: Codec, form: Form) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    bound = either(form, TOOLS, Constraint("json_schema", json.dumps(schema)))
    assert accepts(codec, bound, right(form))
    assert accepts(codec, bound, '{"city": "Kiel"}')
    assert not accepts(codec, bound, "hello")


@pytest.mark.parametrize(
    "schema", [{"type": "object", "properties": {"a": {"type": "strange"}}}, {"pattern": "(a"}]
)
def test_a_schema_that_is_none_is_refused(codec: Codec, schema: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        codec.check_constraint(forced(Hermes(), [Tool("f", schema)]))
