"""Calls of the families that people serve:
what their templates write for a call is read, cut anywhere, and made."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from llm_runtime.files.template_files import ChatTemplates
from llm_runtime.request import Constraint
from llm_runtime.text.codec import Codec, codec_from_folder
from llm_runtime.text.templates import BadTemplate, render
from llm_runtime.tools.calls import Tool
from llm_runtime.tools.form import Form
from llm_runtime.tools.forms import SPECIAL, AnswerForm, begins_inside, reading_of
from llm_runtime.tools.grammar import allowed, either, forced
from llm_runtime.tools.reader import Part
from unit.runtime import tiny_model

FOLDER = Path(__file__).parents[1] / "chat_templates"
FORMS = {
    "qwen2.5": "hermes", "qwen3": "hermes", "qwen3-thinking": "hermes", "hermes-2-pro-tool-use": "hermes",
    "granite-4": "hermes", "smollm3": "hermes", "qwen3-coder": "qwen-coder", "glm-4.5": "glm", "glm-4.7": "glm-4.7",
    "gpt-oss": "harmony", "deepseek-v3": "deepseek-v3", "deepseek-v3.1": "deepseek-v3.1", "kimi-k2": "kimi",
    "minimax-m2": "minimax", "seed-oss": "seed", "granite-3": "granite", "phi-4-mini": "phi", "nemotron": "nemotron",
    "command-a": "command-a", "command-r": "command-r", "lfm2": "pythonic", "llama-3.2-pythonic": "pythonic",
    "llama-3.1": "llama", "llama-4": "llama", "mistral-v3": "mistral", "mistral-small-args": "mistral-named",
    "magistral": "mistral-named", "jamba-tools": "jamba", "internlm-3": "internlm",
}  # fmt: skip
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "size": {"enum": ["small", "large"]},
        "count": {"enum": [1, 20]},
        "note": {"type": "string", "maxLength": 5, "pattern": "^[a-z]{0,5}$"},
        "deep": {
            "type": "object",
            "properties": {"a": {"enum": [True]}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
    "required": ["size", "count", "note", "deep"],
    "additionalProperties": False,
}
TOOLS = [Tool("buy", PARAMETERS, strict=True), Tool("look_up", PARAMETERS, strict=True)]
OFFERED = {tool.name: tool.parameters for tool in TOOLS}
ASKED = {"role": "user", "content": "go"}
GIVEN = {
    "size": "small",
    "count": 20,
    "note": 'é "q" <b>\nline',
    "deep": {"a": True, "b": [None, 1.5, "</x>"]},
}
ENDS = (
    "\n", "<|im_end|>", "</s>", "<|eot_id|>", "<|eot|>", "<|end_of_text|>", "<|end|>", "<｜end▁of▁sentence｜>",
    "<|END_OF_TURN_TOKEN|>", "[e~[", "<|eom|>", "<SPECIAL_12>", "\n", "<|im_end|>",
)  # fmt: skip
"""Of messages: no answer has them in its text."""
BLANKS = {ord(" "): None, ord("\n"): None}
MARKUP = ("<", "[TOOL", "[ARGS", "tool_call", "Action:", "buy", "size", "commentary")


def template(family: str) -> str:
    return (FOLDER / f"{family}.jinja").read_text(encoding="utf-8")


def said(family: str, arguments: list[dict[str, Any]]) -> str | None:
    """What the assistant says in a history when it calls `buy`;
    None where the template has no place for it."""
    calls = [
        {
            "id": f"abcDEF12{number}",
            "type": "function",
            "function": {"name": "buy", "arguments": each},
        }
        for number, each in enumerate(arguments)
    ]
    tools = [
        {
            "type": "function",
            "function": {"name": "buy", "description": "", "parameters": PARAMETERS},
        }
    ]
    message = {"role": "assistant", "content": "", "tool_calls": calls}
    try:
        before = render(template(family), [ASKED], tools, SPECIAL)
        whole = render(
            template(family), [ASKED, message], tools, SPECIAL, add_generation_prompt=False
        )
    except BadTemplate:
        return None
    shared = next(
        (at for at, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before)
    )
    for end in ENDS:
        whole = whole.removesuffix(end)
    begin = shared - 1 if whole[shared - 1 : shared] == "<" else shared
    return whole[begin:].removeprefix(
        "</think>"
    )  # GLM 4.7 closes a thought that the prompt has opened.


def read(reading: AnswerForm, text: str, size: int = 10**6, *, bound: bool = False) -> Part:
    """The answer, which comes in parts of `size` letters, without the words that end a message."""
    reader = reading.reader(OFFERED, inside=False if bound else None)
    parts = [reader.take(text[at : at + size]) for at in range(0, len(text), size)] + [
        reader.take("", final=True)
    ]
    calls = [call for part in parts for call in part.calls]
    return Part(
        "".join(part.text for part in parts), "".join(part.thoughts for part in parts), calls
    )


def given(part: Part) -> list[Any]:
    return [(call.name, json.loads(call.arguments)) for call in part.calls]


@pytest.mark.parametrize("family", FORMS)
def test_a_familys_form_is_found_by_rendering_a_call(family: str) -> None:
    form = reading_of(template(family)).form
    assert form is not None
    assert form.name == FORMS[family]


@pytest.mark.parametrize("family", FORMS)
def test_what_a_template_renders_is_read_back_however_it_is_cut(family: str) -> None:
    reading = reading_of(template(family))
    if (text := said(family, [GIVEN])) is None:
        pytest.fail("the template renders no call")
    if (
        family == "llama-3.2-pythonic"
    ):  # It quotes texts that have quotes, and would not read them itself.
        text = said(family, [{"count": 20, "note": "é <b>"}]) or ""
        expected: Any = {"count": 20, "note": "é <b>"}
    else:
        expected = GIVEN
    for size in (1, 2, 3, 7, 10**6):
        assert given(read(reading, text, size, bound=True)) == [("buy", expected)], text


def test_a_template_that_takes_arguments_as_text_has_its_form_too() -> None:
    whole = template("deepseek-v3")
    added = whole.replace("['arguments'] | tojson", "['arguments']")
    shown = whole.replace(
        "+ tool['function']['arguments'] | tojson +", "~ tool['function']['arguments'] ~"
    )
    for wants_text in (added, shown):
        assert wants_text != whole
        form = reading_of(wants_text).form
        assert form is not None
        assert form.name == "deepseek-v3"


def test_a_template_that_writes_ids_for_names_gets_such_ids() -> None:
    by_id = template("kimi-k2").replace(
        "functions.{{ tool_call['function']['name'] }}:{{ loop.index0 }}", "{{ tool_call['id'] }}"
    )
    assert by_id != template("kimi-k2")
    form = reading_of(by_id).form
    assert form is not None
    assert form.name == "kimi"
    call = {
        "id": form.new_id("buy"),
        "type": "function",
        "function": {"name": "buy", "arguments": {"size": "small"}},
    }
    text = render(
        by_id,
        [ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}],
        add_generation_prompt=False,
    )
    assert given(
        read(reading_of(by_id), text[text.index("<|tool_calls") :].removesuffix("<|im_end|>"))
    ) == [("buy", {"size": "small"})]


@pytest.mark.parametrize("family", FORMS)
def test_two_calls_are_read_as_two(family: str) -> None:
    both = [{"size": "small", "count": 1}, {"size": "large", "count": 20}]
    text = said(family, both)
    if text is None or family == "gpt-oss":
        pytest.skip("one call at a time")
    for size in (1, 5, 10**6):
        assert given(read(reading_of(template(family)), text, size, bound=True)) == [
            ("buy", each) for each in both
        ]


@pytest.mark.parametrize("family", FORMS)
def test_a_long_call_is_read_as_a_short_one_is(family: str) -> None:
    long = {"note": "x" * 9000, "count": 20}
    text = said(family, [long]) or ""
    part = read(
        reading_of(template(family)),
        text + ("" if FORMS[family] == "llama" else " "),
        100,
        bound=True,
    )
    assert (given(part), part.text.strip()) == ([("buy", long)], "")


@pytest.mark.parametrize("family", FORMS)
def test_a_call_that_is_cut_anywhere_leaks_nothing_of_its_markup(family: str) -> None:
    reading = reading_of(template(family))
    text = said(family, [{"size": "small", "count": 20}]) or ""
    assert reading.form is not None
    begun = False
    opening = reading.form.opening
    for end in range(1, len(text)):
        part = read(reading, text[:end], bound=True)
        begun = begun or bool(part.calls)
        if begun or (opening and opening in text[:end]):
            assert not [word for word in MARKUP if word in part.text], (text[:end], part.text)
        if begun:
            assert part.calls[0].name == "buy"
            whole = json.dumps({"size": "small", "count": 20}).translate(BLANKS)
            assert whole.startswith(part.calls[0].arguments.translate(BLANKS).rstrip(",")), (
                part.calls
            )
    assert begun


@pytest.mark.parametrize("family", [name for name in FORMS if reading_of(template(name)).tags])
def test_a_call_in_a_thought_is_none(family: str) -> None:
    reading = reading_of(template(family))
    call = said(family, [{"size": "small"}]) or ""
    assert reading.tags is not None
    call = call.partition(reading.tags.closing)[2] or call
    opening = "" if reading.opens else reading.tags.opening
    answer = f"{opening}\nI could {call} but no\n{reading.tags.closing}\n\nFine."
    for size in (1, 4, 10**6):
        part = read(reading, answer, size)
        assert (part.text, part.calls) == ("Fine.", [])
        assert part.thoughts.startswith("I could ")
    assert given(read(reading, f"{opening}hm{reading.tags.closing}{call}", 3)) == [
        ("buy", {"size": "small"})
    ]
    # What is never closed is a thought to its end; what is bound to a form has none.
    assert read(reading, f"{opening}hm").text == ""
    assert read(reading, '{"a": 1}', bound=True).text == '{"a": 1}'


def test_a_template_may_be_told_to_open_a_thought_or_not() -> None:
    told = "{{ '</think>' if enable_thinking is defined and not enable_thinking else '<think>' }}"
    deepseek = template("deepseek-v3.1")
    glm = template("glm-4.7").replace("<|assistant|><think>", f"<|assistant|>{told}")
    assert [begins_inside(deepseek, options) for options in ({}, {"thinking": True})] == [
        False,
        True,
    ]
    assert [begins_inside(glm, options) for options in ({}, {"enable_thinking": False})] == [
        True,
        False,
    ]
    assert begins_inside("{{ raise_exception('no') }}</think>", {"a": 1}) is False


def test_words_around_an_answer_are_no_text() -> None:
    reading = reading_of(template("command-a"))
    answer = "<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>a <|b|> c<|END_RESPONSE|>"
    for size in (1, 5, 10**6):
        part = read(reading, answer, size)
        assert (part.text, part.thoughts, part.calls) == ("a <|b|> c", "hm", [])


def test_the_channels_of_an_answer_are_told_apart() -> None:
    reading = reading_of(template("gpt-oss"))
    answer = (
        "<|channel|>analysis<|message|>I could <tool_call> or to=functions.buy<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>Wait. <|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.buy <|constrain|>json<|message|>{"size": "small"}<|call|>'
    )
    for size in (1, 6, 10**6):
        part = read(reading, answer, size)
        assert (part.text.strip(), given(part)) == ("Wait.", [("buy", {"size": "small"})])
        assert part.thoughts == "I could <tool_call> or to=functions.buy"
        final = read(
            reading,
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>a < b<|",
            size,
        )
        assert (final.text, final.thoughts, final.calls) == ("a < b<|", "hm", [])
    assert (
        read(reading, answer.replace("functions.buy <", "functions.sell <")).text.strip() == "Wait."
    )
    without = reading.reader().take(answer, final=True)
    assert (without.text.strip(), without.calls) == ("Wait.", [])
    cut = read(reading, answer[:-12])
    assert [(call.name, call.arguments) for call in cut.calls] == [("buy", '{"size": "sma')]
    assert read(reading, '{"a": 1}').text == '{"a": 1}'


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer in which the words of a form are special tokens,
    and one in which they are letters."""
    from tokenizers import AddedToken

    plain = codec_from_folder(tiny_model.make_tokenizer(tmp_path_factory.mktemp("tokenizer")))

    def make(form: Form, kind: str) -> Codec:
        if kind == "letters":
            return plain
        tokenizer = type(plain._tokenizer).from_str(plain._tokenizer.to_str())
        if kind == "special tokens":
            tokenizer.add_special_tokens([AddedToken(tag, special=True) for tag in form.tags])
        else:
            tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in form.tags])
        return Codec(tokenizer, tokenizer.get_vocab_size(), plain.eos_token_ids, ChatTemplates())

    return make


def walk(codec: Codec, bound: Constraint, seed: int) -> str:
    """A random answer that a constraint allows, as the reader of markup sees it."""
    codec.check_constraint(bound)
    matcher = codec.matcher(bound)
    chance = random.Random(seed)
    ids = list[int]()
    while not matcher.complete and len(ids) < 800:
        mask = matcher.mask()
        choices = [
            token for token in range(codec.vocabulary_size) if mask[token // 8] >> token % 8 & 1
        ]
        assert choices
        if codec.eos_token_ids & set(choices):
            break
        blanks = set(codec.encode(" \n\t\r"))
        ids.append(chance.choice([token for token in choices if token not in blanks] or choices))
        matcher.advance(ids[-1])
    text = codec.detokenizer(shown=sorted(codec.control_ids.values()))
    return "".join(map(text.push, ids)) + text.flush()


@pytest.mark.parametrize("special", ["letters", "special tokens", "added tokens"])
@pytest.mark.parametrize(
    "family", sorted({form: family for family, form in FORMS.items()}.values())
)
def test_a_forced_answer_is_read_as_calls_of_their_schemas(
    codecs: Any, family: str, special: str
) -> None:
    reading = reading_of(template(family))
    assert reading.form is not None
    codec: Codec = codecs(reading.form, special)
    for seed in range(3):
        text = walk(codec, forced(reading.form, TOOLS, 2, codec.control_ids), seed)
        part = read(reading, text, bound=True)
        assert part.calls, text
        assert not part.text.strip(), (text, part)
        for name, arguments in given(part):
            assert name in OFFERED
            assert (arguments["size"] in ("small", "large"), arguments["count"] in (1, 20)) == (
                True,
                True,
            ), text
            assert (arguments["deep"], type(arguments["note"])) == ({"a": True}, str)


@pytest.mark.parametrize("special", ["letters", "special tokens", "added tokens"])
@pytest.mark.parametrize(
    "family", sorted({form: family for family, form in FORMS.items()}.values())
)
def test_strict_calls_in_a_free_answer_and_beside_a_format_are_possible(
    codecs: Any, family: str, special: bool
) -> None:
    form = reading_of(template(family)).form
    assert form is not None
    codec: Codec = codecs(form, special)
    codec.check_constraint(allowed(form, TOOLS, 2, codec.control_ids))
    if not form.bare:
        codec.check_constraint(either(form, TOOLS, Constraint("json_object"), 2, codec.control_ids))
