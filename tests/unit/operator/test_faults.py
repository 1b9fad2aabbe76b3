"""Pods in trouble, as a kubelet and a scheduler describe them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from llm_operator.plans.status import faults

PENDING = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
           "message": "0/4 nodes are available: 3 Insufficient nvidia.com/gpu, 1 Insufficient memory."}  # fmt: skip


EVICTED = {
    "phase": "Failed",
    "reason": "Evicted",
    "message": "The node was low on resource: memory.",
}


def pod(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "p"}, "spec": {"nodeName": "n7"}, "status": status}


def conditions(**statuses: str) -> list[dict[str, str]]:
    return [{"type": kind, "status": status} for kind, status in statuses.items()]


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    container = {
        "name": "runtime",
        "image": "img",
        "state": {"waiting": {"reason": reason, "message": message}},
    }
    return pod(containerStatuses=[{**container, **more}])


def ended(message: str, **more: Any) -> dict[str, Any]:
    return waiting(
        "CrashLoopBackOff", lastState={"terminated": {"exitCode": 1, "message": message, **more}}
    )


@pytest.mark.parametrize(
    ("trouble", "reason", "named"),
    [
        (pod(conditions=[PENDING]), "PodUnschedulable", "not enough memory, nvidia.com/gpu"),
        (
            waiting("ImagePullBackOff", "not found"),
            "ImagePullFailed",
            "check spec.image (where it is absent: runtimeIm",
        ),
        (
            pod(
                initContainerStatuses=[
                    {
                        "name": "fetch",
                        "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
                    }
                ]
            ),
            "OutOfMemory",
            "spec.pod.fetchResources.limits.memory",
        ),
        (
            waiting("CreateContainerConfigError", 'secret "x" not found'),
            "ContainerConfigError",
            'secret "x"',
        ),
        (
            ended("Traceback\nKeyError"),
            "CrashLoopBackOff",
            "KeyError (kubectl logs p -c runtime --previous)",
        ),
        (ended('{"reason": "DiskFull", "message": "needs 4 GB"}'), "DiskFull", "needs 4 GB"),
        (ended("", reason="OOMKilled"), "OutOfMemory", "limits.memory"),
        (pod(**EVICTED), "PodEvicted", "n7: Evicted: The node was low on resource: memory"),
        (
            pod(phase="Succeeded"),
            "PodEvicted",
            "n7: Evicted: the pod's Events say why; another is made",
        ),
        (
            pod(conditions=conditions(Ready="False", ContainersReady="True")),
            "NodeLost",
            "kubectl describe node n7",
        ),
        (
            pod(conditions=conditions(Ready="Unknown", ContainersReady="True")),
            "NodeLost",
            "kubectl delete node n7",
        ),
    ],
)
def test_each_trouble_names_its_culprit(trouble: dict[str, Any], reason: str, named: str) -> None:
    fault = faults.of_pod(trouble)
    assert fault is not None
    assert fault.reason == reason
    assert named in fault.message


def test_a_deleted_pod_that_ends_well_was_not_evicted() -> None:
    """As roll-outs, drains and `kubectl delete pod` leave it for a moment;
    a kubelet evicts without deleting."""
    ended_well = pod(
        phase="Succeeded", conditions=[{**PENDING, "lastTransitionTime": "2026-11-28T15:10:40Z"}]
    )
    leaving = {**ended_well, "metadata": {"name": "p", "deletionTimestamp": "2026-11-28T15:10:55Z"}}
    assert faults.evictions([leaving]) == []
    [(fault, _)] = faults.evictions([ended_well])
    assert fault.reason == "PodEvicted"


def test_only_reports_that_another_attempt_can_not_mend_are_terminal() -> None:
    for reason, terminal in (
        ("ModelCorrupt", True),
        ("RegistryUnreachable", False),
        ("DiskFull", False),
    ):
        fault = faults.of_pod(ended(f'{{"reason": "{reason}", "message": "m"}}'))
        assert fault is not None
        assert fault.terminal is terminal


def test_a_registry_that_a_pod_can_not_reach_is_told_as_the_pods_trouble() -> None:
    fault = faults.of_pod(
        ended('{"reason": "RegistryUnreachable", "message": "no answer from http://mlflow"}')
    )
    assert fault is not None
    assert "can't reach the registry, whatever the operator can" in fault.message
    assert "NetworkPolicies, DNS and proxies of its own namespace" in fault.message
    assert fault.message.endswith("no answer from http://mlflow")


def test_ready_and_leaving_pods_have_no_fault() -> None:
    assert faults.of_pod(pod(conditions=[{"type": "Ready", "status": "True"}])) is None
    leaving = ended("x")
    leaving["metadata"]["deletionTimestamp"] = "now"
    assert faults.of_pod(leaving) is None


def test_a_pod_that_is_still_loading_is_no_fault() -> None:
    assert (
        faults.of_pod(
            pod(phase="Running", conditions=conditions(Ready="False", ContainersReady="False"))
        )
        is None
    )


def test_a_pod_with_a_readiness_gate_is_not_on_a_lost_node() -> None:
    gated = pod(phase="Running", conditions=conditions(Ready="False", ContainersReady="True"))
    gated["spec"]["readinessGates"] = [{"conditionType": "example.com/turn"}]
    assert faults.of_pod(gated) is None


def test_an_evicted_pod_says_less_than_the_fault_of_the_one_in_its_place() -> None:
    fault = faults.worst([pod(**EVICTED), pod(conditions=[PENDING])], None, {})
    assert fault is not None
    assert fault.reason == "PodUnschedulable"


def test_a_pod_that_has_ended_is_not_ready_whatever_its_conditions_say() -> None:
    assert not faults.ready(pod(phase="Failed", conditions=conditions(Ready="True")))


def test_commands_name_the_namespace() -> None:
    crashing = ended("boom")
    crashing["metadata"]["namespace"] = "team"
    fault = faults.of_pod(crashing)
    assert fault is not None
    assert "(kubectl -n team logs p -c runtime --previous)" in fault.message


def test_the_programs_own_report_is_told_before_anything_else() -> None:
    pods = [pod(conditions=[PENDING]), ended('{"reason": "ModelCorrupt", "message": "m"}')]
    fault = faults.worst(pods, None, {})
    assert fault is not None
    assert fault.reason == "ModelCorrupt"


def test_a_pod_without_containers_is_explained_by_the_kubelets_events() -> None:
    stuck = pod(phase="Pending", conditions=[{"type": "PodScheduled", "status": "True"}])
    assert faults.waits_for_containers(stuck)
    fault = faults.of_pod(stuck, [event("FailedMount", "claim models not found")])
    assert fault is not None
    assert fault.reason == "MountFailed"


def test_a_quota_is_told_although_there_is_no_pod() -> None:
    condition = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}
    fault = faults.worst([], {"metadata": {"name": "d"}, "status": {"conditions": [condition]}}, {})
    assert fault is not None
    assert fault.reason == "PodsRefused"


NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def event(reason: str, message: str = "", at: str = "2026-01-01T11:59:00Z") -> dict[str, Any]:
    return {"reason": reason, "message": message, "lastTimestamp": at}


def starting() -> dict[str, Any]:
    container = {"name": "runtime", "state": {"waiting": {"reason": "ContainerCreating"}}}
    return pod(
        phase="Pending", conditions=conditions(PodScheduled="True"), containerStatuses=[container]
    )


def restarted(
    name: str = "runtime",
    at: str = "2026-01-01T11:59:00Z",
    count: int = 1,
    ready: str = "False",
    **ended: Any,
) -> dict[str, Any]:
    container = {
        "name": name, "restartCount": count, "state": {"running": {}},
        "lastState": {"terminated": {"exitCode": 1, "finishedAt": at, **ended}},
    }  # fmt: skip
    return pod(phase="Running", conditions=conditions(Ready=ready), containerStatuses=[container])


@pytest.mark.parametrize(
    ("told", "reason", "named"),
    [
        ("FailedMount", "MountFailed", "claim models not found"),
        ("FailedMapVolume", "MountFailed", "must exist and be usable"),
        ("FailedAttachVolume", "AttachFailed", "ReadWriteMany"),
        ("FailedCreatePodSandBox", "SandboxFailed", "runtimeClassName"),
        ("NetworkNotReady", "SandboxFailed", "another node may do"),
    ],
)
def test_what_only_events_tell_of_a_pod_without_containers_is_told(
    told: str, reason: str, named: str
) -> None:
    fault = faults.of_pod(starting(), [event("Scheduled"), event(told, "claim models not found")])
    assert fault is not None
    assert (fault.reason, fault.terminal) == (reason, False)
    assert named in fault.message


def test_the_last_trouble_counts_until_the_pod_gets_further() -> None:
    early = event("FailedAttachVolume", "a", "2026-01-01T11:00:00Z")
    late = event("FailedMount", "b")
    fault = faults.of_pod(starting(), [late, early])
    assert fault is not None
    assert fault.reason == "MountFailed"
    assert faults.of_pod(starting(), [early, event("SuccessfulAttachVolume")]) is None
    assert faults.of_pod(starting(), [late, event("Pulling", at="2026-01-01T11:59:30Z")]) is None


def test_a_kill_for_memory_is_told_also_with_exit_code_0() -> None:
    fault = faults.of_pod(restarted(exitCode=0, reason="OOMKilled"), now=NOW)
    assert fault is not None
    assert (fault.reason, fault.terminal) == ("OutOfMemory", False)
    often = faults.of_pod(restarted(exitCode=0, reason="OOMKilled", count=3), now=NOW)
    assert often is not None
    assert often.terminal


def test_the_runtimes_own_words_about_its_killed_engine_are_told_and_pass() -> None:
    said = '{"reason": "OutOfMemory", "message": "the limit is 3072 MiB"}'
    fault = faults.of_pod(restarted(message=said, reason="OOMKilled"), now=NOW)
    assert fault is not None
    assert (fault.reason, fault.message, fault.terminal) == (
        "OutOfMemory",
        "the limit is 3072 MiB",
        False,
    )
    killed = faults.of_pod(
        restarted(message='{"reason": "EngineKilled", "message": "signal 9"}'), now=NOW
    )
    assert killed is not None
    assert (killed.reason, killed.terminal) == ("EngineKilled", False)


def test_an_end_without_words_is_told_while_it_is_news() -> None:
    fault = faults.of_pod(restarted(exitCode=139), now=NOW)
    assert fault is not None
    assert fault.reason == "ContainerRestarted"
    assert "exit code 139 (SIGSEGV)" in fault.message
    assert faults.of_pod(restarted(at="2026-01-01T11:30:00Z"), now=NOW) is None


def test_a_container_that_others_put_into_the_pod_is_named_as_foreign() -> None:
    fault = faults.of_pod(restarted("istio-proxy", reason="OOMKilled", count=9), now=NOW)
    assert fault is not None
    assert not fault.terminal
    assert "istio-proxy of pod p (not one of the operator's)" in fault.message
    assert "spec.resources" not in fault.message


def test_restarts_are_listed_also_of_ready_pods_and_only_of_our_containers() -> None:
    killed = restarted(ready="True", count=2, reason="OOMKilled")
    [found] = faults.restarts(
        [killed, restarted("istio-proxy"), restarted(exitCode=0, reason="Completed")]
    )
    assert (found.count, found.fault.reason, found.finished.minute) == (2, "OutOfMemory", 59)
    assert found.words.startswith("pod p, restart 2 of container runtime: ")


def test_a_fetcher_of_adapters_that_ends_is_told_after_the_server_and_never_ends_a_version() -> (
    None
):
    dead = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-01-01T00:00:00Z"}
    adapters = {
        "name": "adapters",
        "restartCount": 9,
        "state": {"running": {}},
        "lastState": {"terminated": dead},
    }
    alone = pod(initContainerStatuses=[adapters])
    fault = faults.of_pod(alone)
    assert fault
    assert (fault.reason, fault.terminal) == ("OutOfMemory", False)
    assert "spec.pod.fetchResources.limits.memory" in fault.message
    assert [each.container for each in faults.restarts([alone])] == ["adapters"]
    report = {"exitCode": 1, "message": '{"reason": "ModelCorrupt", "message": "cut short"}'}
    server = {"name": "runtime", "restartCount": 1, "state": {"terminated": report}}
    both = faults.of_pod(pod(initContainerStatuses=[adapters], containerStatuses=[server]))
    assert both
    assert both.reason == "ModelCorrupt"
