"""The page says what was measured, and nothing else."""

from pathlib import Path

import pytest

from bench import llama, report
from bench.results import SPEED, Run
from bench.servers import LlamaCpp, Ours, VllmCpu


def run(scenario: str = "peers", **changes: object) -> Run:
    rows = {
        "ours@32": [{SPEED: 300.0}, {SPEED: 340.0}],
        "transformers@32": [{SPEED: 100.0}, {SPEED: 110.0}],
    }
    given = {
        "commit": "abc",
        "date": "2026-11-21",
        "machine": {"cpu": "A CPU", "cores": 2},
        "rows": rows,
        **changes,
    }
    return Run(scenario, "small", "float32", **given)  # type: ignore[arg-type]


def test_the_page_has_medians_spread_and_targets() -> None:
    page = report.page([run()], {})
    assert "| 32 | llm-runtime | 320 (300 to 340) |" in page
    assert (
        "| random Llama, 31.6 M parameters, float32 | tokens/s, 32 clients, over transformers | ≥ 3"
        " | 3.05 | yes |" in page
    )
    assert "A CPU, 2 cores" in page


def test_what_was_not_measured_is_not_on_the_page() -> None:
    page = report.page([run()], {})
    assert "vLLM" not in page
    assert "adapters" not in page
    assert "## Targets" not in report.page([run(rows={})], {})


def test_an_absent_peer_and_a_skipped_scenario_give_their_reason() -> None:
    page = report.page(
        [run(absent={"vllm": "no environment"}), run("adapters", rows={}, skipped="refused")], {}
    )
    assert "vLLM (CPU) is missing, or was only measured in part: no environment" in page
    assert "Not measured: refused" in page


@pytest.mark.timeout(30)  # Importing matplotlib and drawing take longer than a unit test may.
def test_writing_twice_keeps_other_scenarios_and_makes_the_same_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report.write([run()], tmp_path)
    report.write(
        [run("single", rows={"ours@1": [{SPEED: 5.0}], "generate@1": [{SPEED: 4.0}]})], tmp_path
    )
    first = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    report.write([], tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == first
    assert set(first) == {"engine.json", "engine.md", "peers-small-float32.svg"}
    assert b"| 1 | llm-runtime over HTTP | 5 |" in first["engine.md"]


def test_commands_on_the_page_have_no_paths_of_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "weights", lambda model, number_format: model)
    for kind in (Ours, VllmCpu, LlamaCpp):
        text = kind(tmp_path / "model", scratch=tmp_path).described()
        assert "MODEL" in text or "FOLDER" in text
        assert str(tmp_path) not in text
