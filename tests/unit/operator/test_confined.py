"""What tenants write takes time and memory of its own:
schemas, YAML and patterns, pods' figures, queries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm_operator.confined import children, smoke
from llm_operator.confined.children import Confined
from llm_operator.crds.rollout import GateSpec
from llm_operator.plans.evidence import gates
from llm_operator.ports import pods
from llm_operator.ports.prometheus import HttpPrometheus
from llm_operator.state import Evidence, Measured
from llm_runtime import contract


def nested(levels: int, **beside: Any) -> dict[str, Any]:
    """Each level has the one below looked at twice:
    once for itself, once for what it leaves unevaluated."""
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        schema = {"if": schema, "then": {}, **beside}
    return schema


def test_a_schema_that_doubles_with_each_level_is_given_up_after_so_many_keywords() -> None:
    wanted = smoke.Expectation.model_validate(
        {"jsonSchema": nested(25, unevaluatedProperties=False)}
    )
    assert f"more than {smoke.MAX_STEPS} keywords" in (smoke.fault(wanted, '{"a": 1}') or "")


def test_a_schema_as_people_write_them_is_far_from_that_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(smoke, "MAX_STEPS", smoke.MAX_STEPS // 5)
    person = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string", "minLength": 1}},
    }
    wanted = smoke.Expectation.model_validate(
        {"jsonSchema": {"type": "array", "items": person, "maxItems": 100}}
    )
    assert smoke.fault(wanted, json.dumps([{"name": "a"}] * 100)) is None


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("a" * (smoke.MAX_CHARACTERS + 1), "write at most 65536"),
        ("[" * 40 + "]" * 40, "at most 32 levels"),
        ("expect: {jsonSchema: " + '{"not": ' * 40 + "{}" + "}" * 41, "at most 32 levels"),
    ],
)
def test_an_entry_is_refused_by_its_size_and_depth_before_it_is_read(entry: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        smoke.read({"one": entry})


async def test_a_child_is_started_once_for_a_config_map_and_never_for_no_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    confined = Confined()
    data = {"one": "prompt: a\nexpect: {exact: b}"}
    asked = await confined.prompts(data)

    async def run(_: object) -> object:
        raise AssertionError("a child is started")

    monkeypatch.setattr(confined, "_run", run)
    assert await confined.prompts(dict(data)) == asked
    assert await confined.faults(data, {}) == []
    with pytest.raises(AssertionError, match="a child is started"):
        await confined.prompts({"one": "prompt: c\nexpect: {exact: b}"})


def test_the_child_imports_nothing_of_the_planner() -> None:
    code = "import sys, llm_operator.confined.__main__; print(*(n for n in sys.modules if n.startswith('llm_')))"
    found = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(found.stdout.split()) == {
        "llm_operator",
        "llm_operator.confined",
        "llm_operator.confined.__main__",
        "llm_operator.confined.smoke",
    }


async def test_the_child_reads_prompts_and_judges_answers() -> None:
    data = {
        "capital": "prompt: The capital of France?\nexpect: {exact: Paris}",
        "form": "prompt: JSON, please\nexpect: {jsonSchema: {type: object}}",
    }
    asked = await Confined().prompts(data)
    assert asked["capital"] == {
        "prompt": "The capital of France?",
        "max_tokens": 64,
        "temperature": 0,
    }
    assert await Confined().faults(data, {"capital": "Paris", "form": "[]"}) == [
        "form: '[]' is not as jsonSchema says: [] is not of type 'object'"
    ]
    with pytest.raises(ValueError, match="entry capital"):
        await Confined().prompts({"capital": "prompt: [a, b]"})


async def test_what_takes_too_much_ends_with_the_child_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        children, "MEMORY_BYTES", 1 << 20
    )  # What the interpreter has by then counts, too.
    data = {"one": "prompt: " + "a" * 5_000_000}
    with pytest.raises(ValueError, match="write fewer or simpler entries"):
        await Confined().prompts(data)
    (told,) = await Confined().faults(data, {"one": "b"})
    assert "one: comparing its answer takes more than" in told


def test_a_pods_figures_are_read_up_to_a_size_and_only_those_that_are_asked_for() -> None:
    line = f'{contract.METRIC_FIRST_TOKEN}_bucket{{le="1"}} 1\n'
    with pytest.raises(ValueError, match="figures of more than"):
        pods.read(line * (pods.MAX_FIGURES_BYTES // 10))
    with pytest.raises(ValueError, match="in a line"):
        pods.read(f'{contract.METRIC_FIRST_TOKEN}_bucket{{le="{"1" * 2000}"}} 1\n')
    other = "".join(f'somebodys_own{{number="{number}"}} 1\n' for number in range(50_000))
    kind = f"# TYPE {contract.METRIC_FIRST_TOKEN} histogram\n"
    assert pods.read(kind + line + other).first_token == {1.0: 1.0}


async def asked(reply: httpx.Response, **how: Any) -> tuple[Measured, list[httpx.Request]]:
    heard: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        heard.append(request)
        return reply

    prometheus = HttpPrometheus("http://prometheus", transport=httpx.MockTransport(answer), **how)
    found = await prometheus.query("", "sum(payments_total)", "team")
    await prometheus.close()
    return found, heard


SCALAR = {"status": "success", "data": {"resultType": "scalar", "result": [0, "123456"]}}


async def test_a_query_says_whose_it_is_and_how_long_it_may_take() -> None:
    _, (request,) = await asked(httpx.Response(200, json=SCALAR))
    assert (request.url.params["namespace"], request.url.params["timeout"]) == ("team", "5s")


@pytest.mark.parametrize(
    "reply",
    [
        httpx.Response(200, content=b" " * 70_000 + json.dumps(SCALAR).encode()),
        httpx.Response(200, content=b"[" * 60_000),
        httpx.Response(
            200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(b"a little")
        ),
    ],
    ids=["long", "deep", "compressed"],
)
async def test_an_answer_of_prometheus_is_one_number(reply: httpx.Response) -> None:
    found, _ = await asked(reply)
    assert "not Prometheus" in found.waiting


@pytest.mark.parametrize(
    ("most", "state", "said"), [(-1, "Failed", "above -1"), (200_000, "Passed", "at most 2e+05")]
)
async def test_a_figure_that_may_be_another_namespaces_is_not_told(
    most: float, state: str, said: str
) -> None:
    query = {"query": "sum(payments_total)", "max": most}
    for bound in (False, True):
        found, _ = await asked(httpx.Response(200, json=SCALAR), bound=bound)
        gate = GateSpec.model_validate({"prometheusQuery": query})
        assert gate.prometheus_query is not None
        (verdict,) = gates.judge([gate], Evidence(queries={gate.prometheus_query: found}))
        assert verdict.state == state
        assert ("1.235e+05" in verdict.model_dump_json()) is bound
        assert bound or said in (verdict.message or "")


async def test_the_words_of_an_error_tell_no_label_of_another_namespace() -> None:
    def failed(kind: str, words: str) -> httpx.Response:
        return httpx.Response(422, json={"status": "error", "errorType": kind, "error": words})

    # What `vector(1) == on() (count_values("v", payments_total) or …)` is answered with.
    figure = 'found duplicate series for the match group {} on the right hand-side: [{v="123450"}]'
    for bound in (False, True):
        found, _ = await asked(failed("execution", figure), bound=bound)
        assert ("123450" in found.waiting) is bound
        assert bound or "execution" in found.waiting
    found, _ = await asked(failed("bad_data", "1:5: parse error: unexpected end of input"))
    assert "parse error" in found.waiting


async def test_the_child_imports_nothing_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(1)\n")
    monkeypatch.chdir(tmp_path)
    assert "hello" in await Confined().prompts({"hello": "prompt: hi\nexpect: {exact: hi}"})
