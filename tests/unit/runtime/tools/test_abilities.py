"""What a model can't do is known before anybody asks."""

from pathlib import Path

import pytest

from llm_runtime.tools.abilities import abilities
from unit.runtime.tools.templates import NO_TOOLS, QWEN, UNKNOWN

FAMILIES = Path(__file__).parents[1] / "chat_templates"


@pytest.mark.parametrize(
    ("template", "lacks"),
    [
        ("", ["no chat template", "knows no tools"]),
        ("Answer:", ["leaves out what the user says", "knows no tools"]),
        (
            "{{ messages[-1].content }}{% if tools %}{% endif %}",
            ["earlier answers", "system message", "knows no tools"],
        ),
        (NO_TOOLS, ["knows no tools"]),
        (UNKNOWN, ["a form that this server can't read"]),
        (QWEN, []),
    ],
)
def test_what_a_template_lacks_is_said(template: str, lacks: list[str]) -> None:
    found = abilities(template, template)
    assert len(found.lacks) == len(lacks), found.lacks
    assert all(words in lack for words, lack in zip(lacks, found.lacks, strict=True)), found.lacks
    assert (found.chat, found.tools) == (template not in ("", "Answer:"), template == QWEN)


def test_families_can_what_they_can() -> None:
    qwen, mistral = ((FAMILIES / f"{name}.jinja").read_text() for name in ("qwen3", "mistral-v3"))
    assert (
        abilities(qwen, qwen).calls,
        abilities(qwen, qwen).reasoning,
        abilities(qwen, qwen).lacks,
    ) == (
        "hermes",
        True,
        (),
    )
    assert (abilities(mistral, mistral).calls, abilities(mistral, mistral).lacks) == ("mistral", ())
    plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with_tools = QWEN
    assert abilities(plain, with_tools).calls == "hermes"
