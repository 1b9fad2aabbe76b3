"""A pod's phase, conditions and exit states, as the kubelet words them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from node.status import Record, conditions, phase, terminated, waiting

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = datetime(2026, 1, 2, 3, 5, 5, tzinfo=UTC)
RUNNING: dict[str, Any] = {"running": {"startedAt": "2026-01-02T03:04:05Z"}}
BACKOFF = waiting("CrashLoopBackOff")


def ended(code: int) -> dict[str, Any]:
    return terminated(code, NOW, NOW, "", "process://1")


def record(
    state: dict[str, Any], *, ready: bool = False, last: dict[str, Any] | None = None
) -> Record:
    return Record("main", "image", state, last or {}, ready=ready)


@pytest.mark.parametrize(
    ("inits", "mains", "policy", "expected"),
    [
        ([], [RUNNING], "Always", "Running"),
        ([], [waiting("ContainerCreating")], "Always", "Pending"),
        ([RUNNING], [waiting("PodInitializing")], "Always", "Pending"),
        ([ended(1)], [waiting("PodInitializing")], "Always", "Pending"),
        ([ended(1)], [waiting("PodInitializing")], "Never", "Failed"),
        ([ended(0)], [ended(0)], "Never", "Succeeded"),
        ([], [ended(0), ended(2)], "Never", "Failed"),
        ([], [ended(2)], "OnFailure", "Running"),
        ([], [ended(0)], "OnFailure", "Succeeded"),
        ([], [ended(0)], "Always", "Running"),
    ],
)
def test_phase(inits: list[Any], mains: list[Any], policy: str, expected: str) -> None:
    assert (
        phase([record(each) for each in inits], [record(each) for each in mains], policy)
        == expected
    )


def test_container_that_waits_after_a_crash_leaves_the_pod_running() -> None:
    assert phase([], [record(BACKOFF, last=ended(1))], "Always") == "Running"


def test_exit_by_signal_reads_128_and_the_signal() -> None:
    state = ended(-9)["terminated"]
    assert (state["exitCode"], state["signal"], state["reason"]) == (137, 9, "Error")


def by_type(pod: dict[str, Any], mains: list[Record], now: datetime) -> dict[str, dict[str, Any]]:
    return {each["type"]: each for each in conditions(pod, [], mains, "Running", now)}


def test_transition_time_moves_only_with_the_status() -> None:
    pod: dict[str, Any] = {"spec": {}}
    first = by_type(pod, [record(RUNNING, ready=True)], NOW)
    pod["status"] = {"conditions": list(first.values())}
    same = by_type(pod, [record(RUNNING, ready=True)], LATER)
    assert (
        same["Ready"]["lastTransitionTime"]
        == first["Ready"]["lastTransitionTime"]
        == "2026-01-02T03:04:05Z"
    )
    fallen = by_type(pod, [record(RUNNING)], LATER)
    assert fallen["Ready"]["lastTransitionTime"] == "2026-01-02T03:05:05Z"
    assert fallen["Ready"]["message"] == "containers with unready status: [main]"
    assert fallen["Initialized"]["lastTransitionTime"] == "2026-01-02T03:04:05Z"


def test_readiness_gate_holds_the_pod_back() -> None:
    pod: dict[str, Any] = {"spec": {"readinessGates": [{"conditionType": "dev/gate"}]}}
    found = by_type(pod, [record(RUNNING, ready=True)], NOW)
    assert (found["ContainersReady"]["status"], found["Ready"]["status"]) == ("True", "False")
    pod["status"] = {"conditions": [{"type": "dev/gate", "status": "True"}]}
    assert by_type(pod, [record(RUNNING, ready=True)], NOW)["Ready"]["status"] == "True"
