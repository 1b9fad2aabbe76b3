"""A chat template may be anybody's: what it takes has a bound,
and what any real one does stays far below it."""

from collections.abc import Iterator
from typing import Any

import pytest

from llm_runtime.text import bounds, templates
from llm_runtime.text.templates import BadTemplate, render

USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def _low_bounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """So that nothing here takes long, or much, even without a bound."""
    monkeypatch.setattr(bounds, "MAX_STEPS", 20_000)
    monkeypatch.setattr(bounds, "MAX_CHARACTERS", 50_000)
    monkeypatch.setattr(bounds, "MAX_ENTRIES", 50_000)
    monkeypatch.setattr(bounds, "MAX_MADE", 1_000_000)
    monkeypatch.setattr(
        bounds, "weigh", lambda value, left=50_000, weigh=bounds.weigh: weigh(value, left)
    )
    templates._environment.cache_clear()
    templates.compiled.cache_clear()
    yield
    templates._environment.cache_clear()
    templates.compiled.cache_clear()


DOUBLED = (
    "{% set n = namespace(x='0123456789') %}{% for _ in range(14) %}{% set n.x = DOUBLE %}{%"
    " endfor %}"
)
LONG = "{% set l = range(20000) | list %}{% set n = namespace(x=[]) %}"
KEPT = LONG + "{% for _ in range(COUNT) %}{% set n.x = [n.x, NEW] %}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(200) %}{% for b in range(200) %}{% endfor %}{% endfor %}",
        (
            "{% for a in range(200) if a %}{% for b in range(200) %}{{ loop.index }}{% endfor %}{%"
            " endfor %}"
        ),
        (
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{"
            " f(16) }}"
        ),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in [[[[1]]]] * 9 recursive %}{% for _ in range(9000) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 60000 }}",
        "{{ 60000 * 'x' }}",
        "{{ ([1] * 60000) | length }}",
        "{{ ['x' * 40000] * 40000 }}",
        DOUBLED.replace("DOUBLE", "n.x ~ n.x"),
        DOUBLED.replace("DOUBLE", "n.x + n.x"),
        DOUBLED.replace("DOUBLE", "n.x | replace('0', n.x)"),
        DOUBLED.replace("DOUBLE", "n.x.replace('0', n.x)"),
        DOUBLED.replace("DOUBLE", "[n.x, n.x]") + "{{ n.x }}",
        DOUBLED.replace("DOUBLE", "[n.x, n.x]") + "{{ n.x | tojson }}",
        DOUBLED.replace("DOUBLE", "[n.x, n.x]") + "{{ n.x | string }}",
        DOUBLED.replace("DOUBLE", "[n.x, n.x]") + "{{ 'a' ~ n.x }}",
        DOUBLED.replace("DOUBLE", "[n.x, n.x]") + "{{ '%s' % (n.x,) }}",
        DOUBLED.replace("DOUBLE", "[n.x, n.x]") + "{{ '{}'.format(n.x) }}",
        DOUBLED.replace("DOUBLE", "[n.x, n.x]") + "{{ [n.x] | join }}",
        "{{ (['x' * 1000] * 60) | join('y' * 1000) }}",
        "{{ 'ab'.join(['x' * 40000] * 2) }}",
        "{{ 'x' | center(60000) }}",
        "{{ 'x'.center(60000) }}",
        "{{ 'x'.ljust(60000) }}",
        "{{ '1'.zfill(60000) }}",
        "{{ ('\t' * 1000).expandtabs(1000) }}",
        "{{ '%60000d' % 1 }}",
        "{{ '%*d' % (60000, 1) }}",
        "{{ '%60000d' | format(1) }}",
        "{{ '{:60000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 60000) }}",
        "{{ ('x\n' * 10000) | indent(30) }}",
        "{{ [1] | tojson(indent=60000) }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ (1).to_bytes(60000, 'big') }}",
        (
            "{% set n = namespace(x=10) %}{% for _ in range(40) %}{% set n.x = n.x * n.x %}{%"
            " endfor %}"
        ),
        "{% for _ in range(1000) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% for _ in range(1000) %}{% set y = 'x' * 40000 %}{% endfor %}",
        "{% set y %}{% for _ in range(1000) %}{{ 'x' * 1000 }}{% endfor %}{% endset %}",
        "{{ lipsum(60000) }}",
        # One step each, and long: what goes through a list.
        LONG + "{{ 'a' in l }}" * 50,
        LONG + "{{ 'a' is in l }}" * 50,
        LONG + "{{ [l] == [l[:]] }}" * 50,
        LONG + "{{ l | sum }}" * 50,
        LONG + "{{ l.count('a') }}" * 50,
        LONG + "{% set y = 'a' ~ [l] %}" * 50,
        # Made by no call, filter or operator, and kept.
        KEPT.replace("NEW", "l[:]").replace("COUNT", "20"),
        KEPT.replace("NEW", "l[:], " * 3 + "0").replace("COUNT", "7"),
        KEPT.replace("NEW", "1, " * 40 + "0").replace("COUNT", "4000"),
        KEPT.replace("NEW", "{" + ", ".join(f"'{n}': 1" for n in range(40)) + "}").replace(
            "COUNT", "400"
        ),
        KEPT.replace("NEW", "(l, " + "1, " * 40 + ")").replace("COUNT", "4000"),
        "{% set y = 'x' * 40000 %}"
        + KEPT.replace("NEW", "b")
        .replace("COUNT", "100")
        .replace("{% set n.x", "{% set b %}{{ y }}{% endset %}{% set n.x"),
    ],
)
def test_what_takes_too_much_is_ended(template: str) -> None:
    with pytest.raises(BadTemplate):
        render(template, USER)


def test_processor_time_is_bounded_whatever_a_step_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_SECONDS", 0.0)
    with pytest.raises(BadTemplate, match="took more than"):
        render("{% for _ in range(1000) %}{% endfor %}", USER)


@pytest.mark.parametrize("dear", ["'a' in l", "l | sum", "l[:] | length", "'a' is in l"])
def test_the_clock_is_looked_at_where_one_step_takes_long(
    monkeypatch: pytest.MonkeyPatch, dear: str
) -> None:
    monkeypatch.setattr(bounds, "MAX_SECONDS", 0.0)
    with pytest.raises(BadTemplate, match="took more than"):
        render("{% set l = range(1500) | list %}" + f"{{{{ {dear} }}}}" * 3, USER)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }} {% endfor %}",
            "1/1True ",
        ),
        ("{% for k, v in {'a': 1}.items() %}{{ k ~ v ~ none ~ missing }}{% endfor %}", "a1None"),
        ("{% for x in missing %}{% else %}none{% endfor %}", "none"),
        (
            "{% for x in [1, [2, [3]]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}",
            "123",
        ),
        ("{{ messages | map(attribute='content') | join(', ') }}{{ {'a': [1]} }}", "hi{'a': [1]}"),
        ("{{ 'a%sc' % 'b' }}{{ 'x' * 3 }}{{ 2 ** 10 }}{{ 7 // 2 }}", "abcxxx10243"),
        (
            "{{ '{}-{:>3}'.format('a', 'b') }}{{ '%s' | format('x') }}{{ 'a' | center(3) }}",
            "a-  bx a ",
        ),
        (
            "{{ 'a,b'.split(',') | join('\n  ') | indent(2) }}{{ ' '.join(['a', 'b']) }}",
            "a\n    ba b",
        ),
    ],
)
def test_what_templates_do_is_done_as_before(template: str, text: str) -> None:
    assert render(template, USER) == text


def test_each_rendering_is_metered_for_itself() -> None:
    template = "{% for _ in range(15000) %}{% endfor %}done"
    assert [render(template, USER) for _ in range(3)] == ["done"] * 3


def test_two_thousand_messages_are_no_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    many: list[dict[str, Any]] = [{"role": "user", "content": "word " * 100}] * 2048
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] | trim +"
        " '<|im_end|>\n' }}{% endfor %}"
    )
    assert render(template, many).count("<|im_start|>") == 2048
