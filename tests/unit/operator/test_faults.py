"""Pods in trouble, as a kubelet and a scheduler describe them."""

from __future__ import annotations

from typing import Any

import pytest

from llm_operator.plans import faults

PENDING = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
           "message": "0/4 nodes are available: 3 Insufficient nvidia.com/gpu, 1 Insufficient memory."}  # fmt: skip


EVICTED = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}


def pod(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "p"}, "spec": {"nodeName": "n7"}, "status": status}


def conditions(**statuses: str) -> list[dict[str, str]]:
    return [{"type": kind, "status": status} for kind, status in statuses.items()]


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    container = {"name": "runtime", "image": "img", "state": {"waiting": {"reason": reason, "message": message}}}
    return pod(containerStatuses=[{**container, **more}])


def ended(message: str, **more: Any) -> dict[str, Any]:
    return waiting("CrashLoopBackOff", lastState={"terminated": {"exitCode": 1, "message": message, **more}})


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
                    {"name": "fetch", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
                ]
            ),
            "OutOfMemory",
            "spec.pod.fetchResources.limits.memory",
        ),
        (waiting("CreateContainerConfigError", 'secret "x" not found'), "ContainerConfigError", 'secret "x"'),
        (ended("Traceback\nKeyError"), "CrashLoopBackOff", "KeyError (kubectl logs p -c runtime --previous)"),
        (ended('{"reason": "DiskFull", "message": "needs 4 GB"}'), "DiskFull", "needs 4 GB"),
        (ended("", reason="OOMKilled"), "OutOfMemory", "limits.memory"),
        (pod(**EVICTED), "PodEvicted", "n7: Evicted: The node was low on resource: memory"),
        (pod(conditions=conditions(Ready="False", ContainersReady="True")), "NodeLost", "kubectl describe node n7"),
        (pod(conditions=conditions(Ready="Unknown", ContainersReady="True")), "NodeLost", "kubectl delete node n7"),
    ],
)
def test_each_trouble_names_its_culprit(trouble: dict[str, Any], reason: str, named: str) -> None:
    fault = faults.of_pod(trouble)
    assert fault is not None
    assert fault.reason == reason
    assert named in fault.message


def test_only_reports_that_another_attempt_can_not_mend_are_terminal() -> None:
    for reason, terminal in (("ModelCorrupt", True), ("RegistryUnreachable", False), ("DiskFull", False)):
        fault = faults.of_pod(ended(f'{{"reason": "{reason}", "message": "m"}}'))
        assert fault is not None
        assert fault.terminal is terminal


def test_ready_and_leaving_pods_have_no_fault() -> None:
    assert faults.of_pod(pod(conditions=[{"type": "Ready", "status": "True"}])) is None
    leaving = ended("x")
    leaving["metadata"]["deletionTimestamp"] = "now"
    assert faults.of_pod(leaving) is None


def test_a_pod_that_is_still_loading_is_no_fault() -> None:
    assert faults.of_pod(pod(phase="Running", conditions=conditions(Ready="False", ContainersReady="False"))) is None


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
    assert faults.waits_for_mounts(stuck)
    fault = faults.of_pod(stuck, "claim models not found")
    assert fault is not None
    assert fault.reason == "MountFailed"


def test_a_quota_is_told_although_there_is_no_pod() -> None:
    condition = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}
    fault = faults.worst([], {"metadata": {"name": "d"}, "status": {"conditions": [condition]}}, {})
    assert fault is not None
    assert fault.reason == "PodsRefused"
