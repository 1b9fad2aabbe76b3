"""Chat templates in the manner of the families that people serve say here what they say in
Transformers."""

from pathlib import Path
from typing import Any

import pytest

from llm_runtime.api.openai.messages import ChatMessage, for_template
from llm_runtime.text import templates
from llm_runtime.text.templates import BadTemplate, render
from llm_runtime.tools.forms import knows_tools, rendered_call

transformers = pytest.importorskip("transformers.utils.chat_template_utils")

FAMILIES = sorted((Path(__file__).parent / "chat_templates").glob("*.jinja"))
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
CALL = {
    "id": "abcDEF123",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Kiel", "days": 3}},
}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Of <a> city", "parameters": PARAMETERS},
}

SYSTEM = {"role": "system", "content": "Be kind."}
ASKED = {"role": "user", "content": 'Weather in "Kiel" & <Köln>?'}
SAID = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nRain.", "reasoning_content": "hm"}
CALLED: list[dict[str, Any]] = [
    ASKED,
    {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning": "I'll look."},
    {"role": "tool", "tool_call_id": CALL["id"], "name": "weather", "content": '{"sky": "grey"}'},
]
CONVERSATIONS = {
    "one question": ([ASKED], []),
    "a system message": ([SYSTEM, ASKED], []),
    "several turns": ([SYSTEM, ASKED, SAID, ASKED], []),
    "ends with the assistant": ([ASKED, SAID], []),
    "tools": ([SYSTEM, ASKED], [TOOL]),
    "a call and its result": (CALLED, [TOOL]),
    "a call is the last": (CALLED[:2], [TOOL]),
    "a call without tools": (CALLED, []),
}


def name(file: Path) -> str:
    return file.stem


@pytest.mark.parametrize("prompt", [True, False], ids=["with a generation prompt", "without"])
@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=list(CONVERSATIONS))
@pytest.mark.parametrize("family", FAMILIES, ids=name)
def test_a_family_is_rendered_as_transformers_renders_it(
    family: Path, conversation: Any, prompt: bool
) -> None:
    template, (messages, tools) = family.read_text(encoding="utf-8"), conversation
    try:
        [expected], _ = transformers.render_jinja_template(
            conversations=[messages],
            tools=tools or None,
            chat_template=template,
            add_generation_prompt=prompt,
            **SPECIAL,
        )
    except Exception:
        with pytest.raises(BadTemplate):
            render(template, messages, tools, SPECIAL, add_generation_prompt=prompt)
    else:
        assert render(template, messages, tools, SPECIAL, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("said", ["Rain.", " Rain, and ", ""])
@pytest.mark.parametrize("family", FAMILIES, ids=name)
def test_a_last_message_goes_on_as_in_transformers(family: Path, said: str) -> None:
    template = family.read_text(encoding="utf-8")
    if "content" not in template:
        pytest.skip("Transformers looks for the word, and this template writes messages whole")
    messages = [ASKED, {"role": "assistant", "content": said}]
    try:
        [expected], _ = transformers.render_jinja_template(
            conversations=[messages],
            chat_template=template,
            continue_final_message=True,
            **SPECIAL,
        )
    except Exception:
        with pytest.raises(BadTemplate):
            render(template, messages, (), SPECIAL, add_generation_prompt=False, continued=True)
    else:
        found = render(template, messages, (), SPECIAL, add_generation_prompt=False, continued=True)
        assert found == expected


def test_a_template_that_drops_the_last_message_can_not_go_on_with_it() -> None:
    with pytest.raises(BadTemplate, match="does not show the last message"):
        render("{{ messages[0].content }}", [ASKED, SAID], continued=True)


@pytest.mark.parametrize("family", FAMILIES, ids=name)
def test_every_family_renders_a_question(family: Path) -> None:
    text = render(family.read_text(encoding="utf-8"), [ASKED], [TOOL], SPECIAL)
    # Some write it escaped, or only count.
    assert ASKED["content"] in text or family.stem in (
        "json-options",
        "dict-and-namespace",
        "generation-scope",
    )


def test_there_are_fifty_families() -> None:
    assert len(FAMILIES) >= 50


@pytest.mark.parametrize(
    "fault",
    [
        "{{ 1 // 0 }}",
        "{{ 2.0 ** 5000 }}",
        "{% for i in range(10000000) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages | first | int | nope }}",
        "{{ '%d' | format('x') }}",
        "{{ [1] | map(attribute='a.b') | sum }}",
        "{{ {} | tojson(indent=object) }}{{ messages | tojson(indent=messages) }}",
        "{{ ({}).pop('x') }}",
        "{{ 'x'.encode('no-such-codec') }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ ''.__class__.__mro__ }}",
    ],
)
def test_whatever_goes_wrong_inside_a_template_is_the_templates_fault(fault: str) -> None:
    with pytest.raises(BadTemplate) as caught:
        render(fault, [ASKED])
    assert str(caught.value)


def test_a_template_that_is_no_jinja_is_said_to_be_none() -> None:
    with pytest.raises(BadTemplate, match="unknown tag 'generate'"):
        templates.compiled("{% generate %}{% endgenerate %}")
    assert templates.variables("{% generate %}") == frozenset()


def test_a_template_that_wants_arguments_as_text_gets_them_as_text() -> None:
    wants = "{% for m in messages %}{% for c in m.tool_calls %}"
    wants += "{{ '```json\n' + c.function.arguments + '\n```' }}{% endfor %}{% endfor %}"
    assert render(wants, CALLED, [TOOL]) == '```json\n{"city": "Kiel", "days": 3}\n```'
    with pytest.raises(BadTemplate, match="can only concatenate"):
        render("{% for m in messages %}{{ 'a' + 5 }}{% endfor %}", CALLED, [TOOL])


CALLERS = [
    family
    for family in FAMILIES
    if knows_tools(family.read_text()) and rendered_call(family.read_text())
]


@pytest.mark.parametrize("family", CALLERS, ids=name)
@pytest.mark.parametrize(
    "arguments", ['{"city": "Kiel", "da', '{"city": "Kiel', '["Kiel"', "Kiel, please", "", "{"]
)
def test_a_call_that_was_cut_is_sent_back_and_goes_to_the_model_as_it_was(
    family: Path, arguments: str
) -> None:
    """What the answer gave, `finish_reason: length` and all, is part of the next request,
    as agents do it."""
    function = {"name": "weather", "arguments": arguments}
    said = [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "abcDEF123", "function": function}],
        },
        {"role": "tool", "tool_call_id": "abcDEF123", "content": "the arguments are no JSON"},
    ]
    messages = for_template([ChatMessage.model_validate(message) for message in said])
    text = render(family.read_text(), messages, [TOOL], SPECIAL)
    assert "weather" in text.partition("Weather?")[2]
    assert ("Kiel" in text) is ("Kiel" in arguments)


def test_what_a_tool_says_in_python_changes_no_call() -> None:
    echoed = [*CALLED[:2], {**CALLED[2], "content": str(CALL["function"]["arguments"])}]
    writes = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}"
    writes += "{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    assert '{"city": "Kiel", "days": 3}' in render(writes, echoed, [TOOL])


def test_options_are_variables_but_take_the_place_of_no_other() -> None:
    says = (
        "{{ documents and documents[0].text }} {{ thinking }} {{ tools }} {{ messages | length }}"
        " {{ bos_token }}"
    )
    options = {
        "documents": [{"text": "d"}],
        "thinking": True,
        "tools": 1,
        "messages": [],
        "bos_token": "no",
    }
    assert render(says, [ASKED], [], SPECIAL, options) == "d True None 1 <s>"
