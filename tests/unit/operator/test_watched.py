"""From what pods say of themselves to what the gates say of it."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from llm_operator.crds import GateVerdict
from llm_operator.crds.rollout import GateSpec
from llm_operator.plans.evidence import gates
from llm_operator.plans.evidence.watched import Watched, since
from llm_operator.state import Figures

ERRORS = {"maxErrorRate": 0.01}
LATE = {"maxTimeToFirstTokenP95Ratio": 1.3}
AT = "2026-11-28T12:00:00Z"


def figures(requests: int, errors: int = 0, seconds: float = 0.2) -> Figures:
    bounds = (0.1, 0.2, 0.4, 0.8, inf)
    late = requests // 20
    first = {
        b: float(
            (requests if b >= seconds else 0) - (late if b < 2 * seconds else 0) * (b >= seconds)
        )
        for b in bounds
    }
    return Figures(requests=requests, errors=errors, first_token=first)


class Candidate:
    """A candidate whose gates look at pods named new… beside stable ones named old…"""

    def __init__(self, *specs: dict[str, Any], switched: bool = False) -> None:
        self.specs = [GateSpec.model_validate(spec) for spec in specs]
        self.watched = Watched("new", switched)
        self.said = dict[str, GateVerdict]()

    def look(self, *, traffic: bool = True, **pods: Figures) -> str:
        own = [pod for pod in pods if pod.startswith("new")]
        stable = [pod for pod in pods if pod.startswith("old")]
        found = self.watched.look(self.specs, pods, own=own, stable=stable, traffic=traffic, at=AT)
        self.said = {verdict.name: verdict for verdict in found.values()}
        return next(iter(found.values())).state


def test_errors_are_counted_from_look_to_look() -> None:
    candidate = Candidate(ERRORS)
    candidate.look(traffic=False, old=figures(1000), new=figures(0))
    states = [
        candidate.look(old=figures(1000 + 50 * n), new=figures(20 * n, 10 * n)) for n in range(1, 7)
    ]
    assert states == ["Inconclusive"] * 4 + ["Failed"] * 2
    said = candidate.said["maxErrorRate"]
    assert (said.estimate, said.samples, said.stable_samples, said.since) == ("0.5", 120, 300, AT)
    assert float(said.low or 0) > 0.01


def test_a_pod_that_began_anew_counts_from_its_start() -> None:
    before = figures(100, 5)
    assert since(figures(7, 1), before).requests == 7
    assert since(figures(107, 6), before).errors == 1
    assert since(figures(107), None).requests == 107


def test_restarting_pods_and_counters_that_go_back_never_make_negative_samples() -> None:
    candidate = Candidate(ERRORS, LATE)
    candidate.look(old=figures(1000), new=figures(100))
    for n in range(1, 20):
        candidate.look(old=figures(1000 if n % 3 else 10), new=figures(50 if n % 2 else 5, 2))
    assert all((said.samples or 0) > 0 for said in candidate.said.values())


def test_without_traffic_nothing_is_decided() -> None:
    candidate = Candidate(ERRORS, LATE)
    for _ in range(50):
        assert candidate.look(old=figures(0), new=figures(0)) == "Inconclusive"
    assert "too few requests" in (candidate.said["maxErrorRate"].message or "")


def test_a_stable_that_only_fails_takes_nobody_back() -> None:
    candidate = Candidate(ERRORS)
    for n in range(1, 30):
        assert (
            candidate.look(old=figures(90 * n, 90 * n), new=figures(10 * n, 10 * n))
            == "Inconclusive"
        )


def test_a_gate_added_on_the_way_counts_from_then_on() -> None:
    candidate = Candidate(ERRORS)
    for n in range(1, 10):
        candidate.look(old=figures(900 * n), new=figures(100 * n))
    candidate.specs.append(GateSpec.model_validate(LATE))
    candidate.look(old=figures(9000), new=figures(1000))
    candidate.look(old=figures(9900), new=figures(1100))
    assert candidate.said["maxErrorRate"].samples == 1000
    assert candidate.said["maxTimeToFirstTokenP95Ratio"].samples == 100


@pytest.mark.parametrize("switched", [False, True])
def test_a_slow_version_fails_by_the_buckets_of_an_older_runtime_too(switched: bool) -> None:
    candidate = Candidate(LATE, switched=switched)
    candidate.look(traffic=False, old=figures(0), new=figures(0))
    candidate.look(traffic=False, old=figures(400), new=figures(0))
    states = [
        candidate.look(
            old=figures(400 if switched else 400 + 100 * n), new=figures(20 * n, seconds=0.8)
        )
        for n in range(1, 12)
    ]
    assert states[-1] == "Failed"


def test_gates_of_one_name_and_two_thresholds_are_two() -> None:
    one = GateSpec.model_validate(ERRORS)
    two = GateSpec.model_validate({"maxErrorRate": 0.05})
    assert gates.key(one) != gates.key(two)


def talks(answers: int, tokens: float = 20.0, gap: float = 0.02, **more: Any) -> Figures:
    """A pod that has answered so often, with so many tokens each."""
    said = {10.0: 0.0, tokens: float(answers), inf: float(answers)}
    count = float(answers * 20)
    return Figures(
        requests=answers, answer_tokens=said, token_gap={0.01: 0.0, gap: count, inf: count}, **more
    )


def test_a_version_that_talks_three_times_as_long_fails_and_one_that_is_as_fast_passes() -> None:
    candidate = Candidate({"maxTokensPerAnswerRatio": 1.5}, {"minTokensPerSecondRatio": 0.8})
    for n in range(10):
        candidate.look(old=talks(90 * n), new=talks(10 * n, 60.0))
    assert candidate.said["maxTokensPerAnswerRatio"].state == "Failed"
    assert candidate.said["maxTokensPerAnswerRatio"].estimate == "3"
    assert candidate.said["minTokensPerSecondRatio"].state == "Passed"


def test_a_version_of_half_the_speed_fails_and_is_told_by_its_speed() -> None:
    candidate = Candidate({"minTokensPerSecondRatio": 0.8})
    for n in range(10):
        candidate.look(old=talks(90 * n), new=talks(10 * n, gap=0.04))
    said = candidate.said["minTokensPerSecondRatio"]
    assert (said.state, said.estimate) == ("Failed", "0.5")
    assert float(said.high or 0) < 0.8


def test_a_pod_that_takes_twice_the_memory_fails() -> None:
    candidate = Candidate({"maxMemoryRatio": 1.2})
    for n in range(1, 20):
        large = talks(90 * n, memory_bytes=5e9)
        small = talks(90 * n, memory_bytes=4e9)
        candidate.look(old1=large, old2=small, new=talks(10 * n, memory_bytes=1e10))
    said = candidate.said["maxMemoryRatio"]
    assert (said.state, said.estimate) == ("Failed", "2")


def test_figures_that_an_older_runtime_does_not_tell_decide_nothing_and_it_is_named() -> None:
    budgets = (
        {"maxTokensPerAnswerRatio": 1.5},
        {"minTokensPerSecondRatio": 0.8},
        {"maxMemoryRatio": 1.2},
    )
    candidate = Candidate(*budgets)
    for n in range(1, 20):
        candidate.look(old=figures(90 * n), new=talks(10 * n, memory_bytes=1e10))
    for said in candidate.said.values():
        assert said.state == "Inconclusive"
        assert "the runtime of a stable pod is too old to tell it" in (said.message or "")


def test_restarts_and_no_traffic_decide_nothing_about_budgets() -> None:
    candidate = Candidate({"maxTokensPerAnswerRatio": 1.5})
    for n in range(1, 30):
        assert candidate.look(old=talks(10 * (n % 3)), new=talks(0)) == "Inconclusive"
    candidate = Candidate({"maxTokensPerAnswerRatio": 1.5})
    candidate.look(old=talks(1000), new=talks(100))
    for n in range(1, 30):
        assert (
            candidate.look(old=talks(1000 if n % 3 else 10), new=talks(50 if n % 2 else 5))
            != "Failed"
        )
