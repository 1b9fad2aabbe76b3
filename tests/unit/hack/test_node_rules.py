"""Back-off, probes and refusals: the decisions of the process node."""

from __future__ import annotations

from typing import Any

import pytest

from node.backoff import Backoff
from node.probes import ProbeState
from node.refusals import ignored, refusal


def test_backoff_doubles_from_the_second_restart_to_its_maximum() -> None:
    backoff = Backoff(initial_seconds=1, maximum_seconds=5)
    assert [backoff.next(0.1) for _ in range(6)] == [0, 1, 2, 4, 5, 5]


def test_backoff_starts_over_after_a_long_run() -> None:
    backoff = Backoff()
    assert [backoff.next(1), backoff.next(1), backoff.next(601), backoff.next(1)] == [0, 1, 0, 1]


def test_probe_decides_only_after_enough_results_in_a_row() -> None:
    state = ProbeState(failure_threshold=3, success_threshold=2)
    results = [True, True, False, False, True, False, False, False, True, True]
    expected = [None, True, True, True, True, True, True, False, False, True]
    assert [state.observe(result) for result in results] == expected


def test_startup_probe_is_undecided_while_it_may_still_succeed() -> None:
    state = ProbeState(failure_threshold=3)
    assert [state.observe(result) for result in (False, False, True)] == [None, None, True]


def spec(**more: Any) -> dict[str, Any]:
    container = {"name": "main", "image": "x", "command": ["true"], **more.pop("container", {})}
    return {"spec": {"containers": [container], **more}}


def test_ordinary_pod_is_accepted() -> None:
    assert (
        refusal(
            spec(
                volumes=[
                    {"name": "a", "emptyDir": {}},
                    {"name": "b", "secret": {"secretName": "s"}},
                ]
            )
        )
        is None
    )


@pytest.mark.parametrize(
    ("pod", "words"),
    [
        (spec(container={"command": []}), "'main' has no command"),
        (spec(container={"securityContext": {"privileged": True}}), "privileged"),
        (spec(container={"lifecycle": {"postStart": {}}}), "postStart"),
        (spec(container={"livenessProbe": {"grpc": {"port": 1}}}), "grpc probe"),
        (spec(hostPID=True), "spec.hostPID"),
        (spec(volumes=[{"name": "n", "nfs": {"server": "s"}}]), "volume 'n' is of kind nfs"),
        (
            spec(volumes=[{"name": "h", "hostPath": {"path": "/x", "type": "Socket"}}]),
            "hostPath type Socket",
        ),
        (
            spec(volumes=[{"name": "p", "projected": {"sources": [{"clusterTrustBundle": {}}]}}]),
            "clusterTrustBundle",
        ),
        (
            spec(
                container={"volumeMounts": [{"name": "v", "mountPath": "/v", "subPathExpr": "x"}]}
            ),
            "subPathExpr",
        ),
    ],
)
def test_refusal_names_the_culprit(pod: dict[str, Any], words: str) -> None:
    assert words in str(refusal(pod))


def test_what_cannot_be_enforced_is_listed() -> None:
    pod = spec(container={"securityContext": {"runAsUser": 1}, "resources": {"limits": {"cpu": 1}}})
    assert ignored(pod) == ["resources.limits", "securityContext.runAsUser"]
