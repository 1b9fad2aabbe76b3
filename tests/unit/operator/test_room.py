"""What schedulers, quotas and autoscalers say, and whether an old pod is stopped because of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llm_operator.crds import LLMDeploymentStatus, StableStatus
from llm_operator.crds.rollout import RolloutSpec
from llm_operator.plans.rollout import Situation, room
from llm_operator.plans.rollout.candidate import Candidate
from llm_operator.plans.rollout.move import Move
from llm_operator.state import RevisionChildren

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HELPS = True
IN_VAIN = False
ONE = "preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
NEVER = "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."


def old(**requests: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "old"},
        "spec": {"containers": [{"resources": {"requests": requests}}]},
    }


OLD = old(cpu="500m", memory="2Gi", **{"nvidia.com/gpu": "1"})


@pytest.mark.parametrize(
    ("said", "helps"),
    [
        # Resources that the old pod holds, and one that it does not.
        (f"0/1 nodes are available: 1 Insufficient cpu. {ONE}", HELPS),
        (
            f"0/1 nodes are available: 1 Insufficient memory. no new claims to deallocate, {ONE}",
            HELPS,
        ),
        ("0/4 nodes are available: 3 Insufficient nvidia.com/gpu, 1 Insufficient memory.", HELPS),
        (f"0/1 nodes are available: 1 Insufficient amd.com/gpu. {ONE}", IN_VAIN),
        (
            (
                "0/1 nodes are available: 1 Insufficient hugepages-2Mi, 1 node(s) had untolerated"
                " taint {a: b}."
            ),
            IN_VAIN,
        ),
        # More than a whole node has: the scheduler says that no pod's going would help.
        (f"0/1 nodes are available: 1 Insufficient cpu. {NEVER}", IN_VAIN),
        # Places that pods take from each other.
        (f"0/1 nodes are available: 1 Too many pods. {ONE}", HELPS),
        (
            (
                "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod"
                f" ports. {ONE}"
            ),
            HELPS,
        ),
        (f"0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules. {ONE}", HELPS),
        (
            (
                "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity"
                f" rules. {ONE}"
            ),
            HELPS,
        ),
        (
            (
                "0/2 nodes are available: 2 node(s) didn't match pod topology spread constraints."
                f" {ONE}"
            ),
            HELPS,
        ),
        (
            (
                "0/1 nodes are available: 1 node has pod using PersistentVolumeClaim with the same"
                " name and ReadWriteOncePod access mode."
            ),
            HELPS,
        ),
        (
            (
                "0/1 nodes are available: 1 node(s) unavailable due to PersistentVolumeClaim with"
                f" ReadWriteOncePod access mode already in-use by another pod. {ONE}"
            ),
            HELPS,
        ),
        (f"0/1 nodes are available: 1 node(s) exceed max volume count. {ONE}", HELPS),
        (
            f"0/1 nodes are available: 1 cannot allocate all claims. still not schedulable, {ONE}",
            HELPS,
        ),
        (f"0/1 nodes are available: 1 node(s) are of a kind not known here yet. {ONE}", HELPS),
        # Other schedulers.
        (
            (
                "No nodes with enough resources were found for the pod: Node-Group: 1 node: not"
                " enough GPUs"
            ),
            HELPS,
        ),
        ("0/1 nodes are unavailable: 1 insufficient cpu", HELPS),
        # What stays as it is when a pod goes.
        (
            (
                "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
                f" {NEVER}"
            ),
            IN_VAIN,
        ),
        ("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.", IN_VAIN),
        (
            (
                "0/1 nodes are available: 1 node(s) had untolerated taint {nvidia.com/gpu:"
                f" present}}. {NEVER}"
            ),
            IN_VAIN,
        ),
        (f"0/1 nodes are available: 1 node(s) were unschedulable. {NEVER}", IN_VAIN),
        (f"0/1 nodes are available: 1 node(s) didn't match pod affinity rules. {NEVER}", IN_VAIN),
        (f"0/2 nodes are available: 2 node(s) had volume node affinity conflict. {NEVER}", IN_VAIN),
        (
            f"0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. {NEVER}",
            IN_VAIN,
        ),
        ('0/1 nodes are available: persistentvolumeclaim "models" not found.', IN_VAIN),
        ("0/1 nodes are available: 1 node(s) did not have enough free storage.", IN_VAIN),
        (
            "0/1 nodes are available: 1 node(s) didn't find available persistent volumes to bind.",
            IN_VAIN,
        ),
        (
            (
                "0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints"
                " (missing required label)."
            ),
            IN_VAIN,
        ),
        ("no nodes available to schedule pods", IN_VAIN),
        (
            (
                "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
                " preemption: not eligible due to preemptionPolicy=Never."
            ),
            IN_VAIN,
        ),
        # Several nodes: one where it helps is enough.
        (
            (
                "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable."
                " preemption: 0/3 nodes are available: 1 No preemption victims found for incoming"
                " pod, 2 Preemption is not helpful for scheduling."
            ),
            HELPS,
        ),
        (
            (
                "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable."
                " preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
            ),
            IN_VAIN,
        ),
    ],
)
def test_an_old_pod_is_stopped_only_where_its_going_can_make_the_room(
    said: str, helps: bool
) -> None:
    assert room.freed(said, [OLD]) is helps
    assert not room.freed(said, [])


def move(status: dict[str, Any], pods: tuple[dict[str, Any], ...] = ()) -> Move:
    deployment = {"metadata": {}, "spec": {"replicas": 1}, "status": status}
    stable = StableStatus(revision="old", version="1", image="i")
    situation = Situation(
        status=LLMDeploymentStatus(stable=stable),
        wanted=None,
        revisions={
            "old": RevisionChildren("old", {"spec": {"replicas": 1}}, {}, (OLD,)),
            "new": RevisionChildren("new", deployment, {}, pods),
        },
        faults={},
        spec=RolloutSpec(),
        replicas=1,
        settle_seconds=5,
        now=NOW,
    )
    return Move(situation, stable, Candidate("new", "2", "i"))


@pytest.mark.parametrize(
    ("said", "helps"),
    [
        ("exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2", HELPS),
        (
            (
                "exceeded quota: q, requested: requests.cpu=2,requests.memory=500Mi, used:"
                " requests.cpu=4,requests.memory=1Gi, limited: requests.cpu=5,requests.memory=1Gi"
            ),
            HELPS,
        ),
        (
            (
                "exceeded quota: q, requested: limits.memory=8Gi, used: limits.memory=2Gi, limited:"
                " limits.memory=4Gi"
            ),
            IN_VAIN,
        ),
        ("failed quota: q: must specify limits.cpu for: runtime", IN_VAIN),
        ("maximum cpu usage per Container is 2, but limit is 4", IN_VAIN),
        ('violates PodSecurity "restricted:latest": runAsNonRoot != true', IN_VAIN),
    ],
)
def test_a_quota_that_is_used_up_is_a_lack_of_room_and_other_refusals_are_not(
    said: str, helps: bool
) -> None:
    refused = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate"}
    refused["message"] = f'pods "bot-new-x" is forbidden: {said}'
    found = room.lack(move({"conditions": [refused]}))
    assert found is not None
    assert found.freed is helps


def unplaced(**more: Any) -> dict[str, Any]:
    message = f"0/1 nodes are available: 1 Insufficient cpu. {ONE}"
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
    }
    return {"metadata": {"name": "new"}, "spec": {}, "status": {"conditions": [condition], **more}}


def test_only_pods_that_are_still_to_run_lack_room() -> None:
    assert room.lack(move({}, (unplaced(),))) is not None
    assert room.lack(move({}, (unplaced(phase="Failed"),))) is None
    leaving = unplaced()
    leaving["metadata"]["deletionTimestamp"] = "now"
    assert room.lack(move({}, (leaving,))) is None


def test_a_pod_that_others_are_stopped_for_has_its_room_coming() -> None:
    found = room.lack(move({}, (unplaced(nominatedNodeName="n7"),)))
    assert found is not None
    assert "n7" in found.coming


def event(reason: str, seconds_ago: float, message: str = "") -> dict[str, Any]:
    moment = (NOW - timedelta(seconds=seconds_ago)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"metadata": {}, "reason": reason, "message": message, "lastTimestamp": moment}


def test_a_node_is_expected_until_the_autoscaler_says_otherwise_or_has_had_its_time() -> None:
    added = event("TriggeredScaleUp", 60, "pod triggered scale-up: [{gpus 1->2 (max: 3)}]")
    assert room.coming([added, event("FailedScheduling", 1)], NOW) == added["message"]
    assert room.coming([event("Nominated", 5, "Pod should schedule on: nodeclaim/a")], NOW)
    assert not room.coming([added, event("NotTriggerScaleUp", 5)], NOW)
    assert room.coming([event("NotTriggerScaleUp", 90), added], NOW)
    assert not room.coming([event("TriggeredScaleUp", 1000)], NOW)
    assert not room.coming([], NOW)
