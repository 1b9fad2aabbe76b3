"""The benchmark's arithmetic: percentiles, ratios, targets, and what becomes of old runs."""

import math

import pytest

from bench.load import Answer, Load, events
from bench.results import SPEED, Run, from_json, merged, verdicts
from bench.stats import percentile, ratio, rounded


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (50, 50), (99, 99), (100, 100)])
def test_percentile_is_the_nearest_rank(percent: float, expected: float) -> None:
    assert percentile(list(range(100, 0, -1)), percent) == expected


def test_nothing_measured_is_not_a_number_and_never_gets_into_json() -> None:
    assert math.isnan(percentile([], 50))
    assert rounded(math.nan) is None
    assert ratio(1.0, math.nan) is None
    assert ratio(1.0, 0.0) is None


def test_figures_take_tokens_from_all_answers_and_gaps_from_each() -> None:
    load = Load(2.0, [Answer(0.1, [0.01, 0.03], 3), Answer(0.3, [0.02], 2)])
    assert load.figures() == pytest.approx(
        {
            "tokens_per_second": 2.5,
            "ttft_p50_ms": 100,
            "ttft_p99_ms": 300,
            "itl_p50_ms": 20,
            "itl_p99_ms": 30,
        }
    )


def test_an_event_has_the_time_of_its_last_byte() -> None:
    pieces = [
        (1.0, b'data: {"a": 1}\n\nda'),
        (2.0, b'ta: {"b": 2}\r\n\r\n: beat\n\n'),
        (3.0, b"data: [DONE]\n\n"),
    ]
    assert list(events(pieces)) == [(1.0, {"a": 1}), (2.0, {"b": 2})]


def peers(**rows: list[float]) -> Run:
    return Run(
        "peers",
        "small",
        "float32",
        rows={f"{who}@32": [{SPEED: v} for v in each] for who, each in rows.items()},
    )


def test_ratio_compares_rounds_so_that_a_slow_spell_does_not_count() -> None:
    run = peers(ours=[100, 10, 100], vllm=[50, 5, 50])
    assert run.ratio("ours@32", "vllm@32", SPEED) == 2.0
    assert run.value("ours@32", SPEED) == 100


def test_a_target_is_spoken_of_only_when_both_sides_were_measured() -> None:
    assert verdicts(peers(ours=[100])) == []
    [found] = verdicts(peers(ours=[100], vllm=[101]))
    assert (found.ratio, found.met, found.bound) == (0.99, False, "≥ 1")
    assert verdicts(Run("single", "small", "float32", rows=peers(ours=[1], vllm=[1]).rows)) == []


def test_at_most_targets_are_met_from_below() -> None:
    rows = {"ours@32": [{"itl_p99_ms": 9.0}], "vllm@32": [{"itl_p99_ms": 10.0}]}
    [found] = verdicts(Run("peers", "small", "float32", rows=rows))
    assert (found.bound, found.ratio, found.met) == ("≤ 1", 0.9, True)


def test_a_run_replaces_the_one_of_its_scenario_model_and_format_only() -> None:
    old = [
        Run("peers", "small", "float32", commit="a"),
        Run("single", "small", "float32", commit="a"),
    ]
    new = [
        Run("peers", "small", "float32", commit="b"),
        Run("peers", "small", "bfloat16", commit="b"),
    ]
    kept = {run.key: run.commit for run in merged(old, new)}
    assert kept == {
        ("peers", "small", "float32"): "b",
        ("peers", "small", "bfloat16"): "b",
        ("single", "small", "float32"): "a",
    }


def test_the_record_can_be_read_again() -> None:
    run = peers(ours=[100, 120], vllm=[50, 60])
    assert from_json(run.as_json()) == run
    assert run.as_json()["medians"]["ours@32"] == {SPEED: 110}
