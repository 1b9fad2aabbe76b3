"""Calls in answers: however the answer is cut into parts,
the same text and the same calls come out."""

import pytest

from llm_runtime.tools.form import Form
from llm_runtime.tools.forms import form_of, knows_tools
from llm_runtime.tools.json_forms import Hermes, Llama, Mistral
from llm_runtime.tools.reader import Reader
from unit.runtime.tools.templates import LLAMA, MISTRAL, NO_TOOLS, QWEN, UNKNOWN

NAMES = ("weather", "f")
H = '<tool_call>\n{"name": "f", "arguments": {"a": "é<b"}}\n</tool_call>'
L = '{"name": "f", "parameters": {"a": 1}}'
M = '[{"name": "f", "arguments": {"a": 1}}, {"name": "weather", "arguments": {}}]'
F = ("f", '{"a": 1}')
W = ("weather", "{}")
HF = ("f", '{"a": "é<b"}')

ANSWERS = [
    (Hermes(), H, "", [HF]),
    (Hermes(), "hello\n\n" + H, "hello", [HF]),
    (Hermes(), H + "\n" + H, "", [HF, HF]),
    (Hermes(), H + " bye", " bye", [HF]),
    (Hermes(), H[:-12], "", [HF]),
    (Hermes(), '<tool_call>{"name":"f","arguments":"{\\"a\\": 1}"}</tool_call>', "", [F]),
    (Hermes(), "a < b <tool", "a < b <tool", []),
    (Hermes(), "<tool_call>nope</tool_call> x", "<tool_call>nope</tool_call> x", []),
    (Hermes(), '<tool_call>{"name":"other","arguments":{}}</tool_call>', None, []),
    (Hermes(), '<tool_call>{"name":"f","arguments":[1]}</tool_call>', None, []),
    (Hermes(), '<tool_call>{"name":["f"],"arguments":{}}</tool_call>', None, []),
    (Hermes(), '<tool_call>{"name":"f","arguments":{"a":NaN}}</tool_call>', None, []),
    (Hermes(), '<tool_call>{"name":"f","arguments":' + '{"a":' * 5000, None, []),
    (Hermes(), "  hi  there \n", "  hi  there \n", []),
    (Llama(), L, "", [F]),
    (Llama(), "\n" + L, "", [F]),
    (Llama(), "<|python_tag|>" + L, "", [F]),
    (Llama(), L + "; " + L, "", [F, F]),
    (Llama(), "I'll look.<|python_tag|>" + L, "I'll look.", [F]),
    (Llama(), "a <|python", "a <|python", []),
    (Llama(), '{"answer": 5}', '{"answer": 5}', []),
    (Llama(), "text " + L, "text " + L, []),
    (Llama(), '{"name": "f", this is no JSON at all', None, []),
    (Llama(), L[:-2], "", [("f", '{"a": 1')]),
    (Llama(), L[:-8], "", [("f", "{")]),
    (Llama(), L + '; {"name":', "", [F]),
    (Llama(), '{"name": "f", "para', "", [("f", "")]),
    (Llama(), '{"name": "f", "oth', None, []),
    (Hermes(), H + "\n<tool_call>", "", [HF]),
    (Hermes(), H + "\n<tool_", "", [HF]),
    (Hermes(), "<tool_call>", "", []),
    (Hermes(), '<tool_call>{"name": "f", "arguments": {"a": "é', "", [("f", '{"a": "é')]),
    (Hermes(), 'Yes. <tool_call>\n{"name": "f"', "Yes.", [("f", "")]),
    (
        Hermes(),
        '<tool_call>{"name":"f","arguments":{"a":"</tool_call>"}}</tool_call>!',
        "!",
        [("f", '{"a": "</tool_call>"}')],
    ),
    (Mistral(), M[:-3], "", [F, ("weather", "{")]),
    (Mistral(), '[TOOL_CALLS]f[ARGS]{"a": "x', "", [("f", '{"a": "x')]),
    (Mistral(), "[TOOL_CALLS]", "", []),
    (Mistral(), M, "", [F, W]),
    (Mistral(), "[TOOL_CALLS] " + M, "", [F, W]),
    (Mistral(), "Let me see. " + M, "Let me see.", [F, W]),
    (Mistral(), 'x [TOOL_CALLS]f[ARGS]{"a": 1}', "x", [F]),
    (Mistral(), 'f{"a": 1}weather{}', "", [F, W]),
    (
        Mistral(),
        '[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{"a": 1}[TOOL_CALLS]weather[ARGS]{}',
        "",
        [F, W],
    ),
    (Mistral(), "[1] is a note, f is a function, weather[0]", None, []),
    (Mistral(), " [x", " [x", []),
]


@pytest.mark.parametrize("size", [1, 3, 7, 100_000])
@pytest.mark.parametrize(("form", "answer", "text", "calls"), ANSWERS)
def test_any_cut_gives_the_same(
    form: Form, answer: str, text: str | None, calls: list[tuple[str, str]], size: int
) -> None:
    reader = Reader(form, NAMES)
    parts = [reader.take(answer[at : at + size]) for at in range(0, len(answer), size)] + [
        reader.take("", final=True)
    ]
    assert "".join(part[0] for part in parts) == (answer if text is None else text)
    assert [(call.name, call.arguments) for part in parts for call in part[1]] == calls


@pytest.mark.parametrize(("form", "answer", "text", "calls"), ANSWERS)
def test_a_whole_answer_gives_the_same_at_once(
    form: Form, answer: str, text: str | None, calls: list[tuple[str, str]]
) -> None:
    shown, found = Reader(form, NAMES).take(answer, final=True)
    assert shown == (answer if text is None else text)
    assert [(call.name, call.arguments) for call in found] == calls


def test_text_that_can_begin_no_call_is_not_held_back() -> None:
    for form, text in [
        (Hermes(), "a <to"),
        (Llama(), '{"nay'),
        (Mistral(), "see [2"),
        (Llama(), "Hi {"),
    ]:
        reader = Reader(form, NAMES)
        assert reader.take(text + "!")[0] == text + "!"


def test_the_end_of_a_text_is_held_back_while_it_may_begin_a_call() -> None:
    reader = Reader(Hermes(), NAMES)
    assert reader.take("yes <tool_")[0] == "yes"
    assert reader.take("box>")[0] == " <tool_box>"


def test_half_a_surrogate_in_arguments_stays_an_escape() -> None:
    [call] = Reader(Llama(), NAMES).take(
        '{"name": "f", "parameters": {"a": "\\ud800"}}', final=True
    )[1]
    assert call.arguments == '{"a": "\\ud800"}'


def test_of_more_calls_than_allowed_the_first_are_told() -> None:
    reader = Reader(Hermes(), NAMES, most=1)
    assert [len(reader.take(H + "\n" + H)[1]), len(reader.take(H, final=True)[1])] == [1, 0]


@pytest.mark.parametrize(
    ("template", "knows", "form"),
    [
        (QWEN, True, "hermes"),
        (LLAMA, True, "llama"),
        (MISTRAL, True, "mistral"),
        (UNKNOWN, True, None),
        (NO_TOOLS, False, None),
        ("", False, None),
        ("{% if %}", False, None),
    ],
)
def test_the_template_tells_the_form(template: str, knows: bool, form: str | None) -> None:
    assert knows_tools(template) is knows
    found = form_of(template)
    assert (found and found.name) == form


def test_ids_are_such_as_templates_take() -> None:
    assert len(Mistral().new_id()) == 9
    assert Hermes().new_id().startswith("call_")
