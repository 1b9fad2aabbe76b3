"""What a node does to pods that served:
told when it happens, told for a while after, and stuck when it lasts."""

from __future__ import annotations

from typing import Any

import pytest

from llm_operator.ports.cluster import Refused
from llm_operator.reconcile import Done, Pace, reconcile
from llm_operator.state import Key
from unit.operator.fakes import NAMESPACE, World

PACE = Pace(verify_seconds=60, settle_seconds=5)
KEY = Key("LLMDeployment", NAMESPACE, "bot")
BEGAN = "2026-01-01T00:00:00Z"
SAID = '{"reason": "OutOfMemory", "message": "the limit is 3072 MiB, of which 3072 MiB were used at most"}'


async def look(world: World) -> Done:
    return await reconcile(KEY, world.outside, PACE)


async def serving(world: World, **spec: Any) -> str:
    await world.deploy(rollout={"progressDeadlineSeconds": 600}, **spec)
    await look(world)
    revision = world.status()["candidate"]["revision"]
    world.cluster.play(f"bot-{revision}")
    await look(world)
    assert world.condition("Ready")["status"] == "True"
    return str(revision)


def befall(world: World, revision: str, ready: str = "False", **container: Any) -> None:
    """The kubelet's word about the only pod's container."""
    pod = world.cluster.objects["Pod", NAMESPACE, f"bot-{revision}-played-0"]
    pod["status"] = {
        "phase": "Running" if ready == "True" or "restartCount" in container else "Pending",
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": ready, "lastTransitionTime": BEGAN},
        ],
        "containerStatuses": [{"name": "runtime", "image": "img", **container}],
    }
    ready_count = int(ready == "True")
    world.cluster.objects["Deployment", NAMESPACE, f"bot-{revision}"]["status"]["readyReplicas"] = (
        ready_count
    )


def killed(count: int = 1, at: str = BEGAN, **ended: Any) -> dict[str, Any]:
    last = {"exitCode": 1, "finishedAt": at, "message": SAID, **ended}
    return {"restartCount": count, "state": {"running": {}}, "lastState": {"terminated": last}}


def told(world: World, reason: str) -> list[dict[str, Any]]:
    return [
        o
        for (kind, _, _), o in world.cluster.objects.items()
        if kind == "Event" and o["reason"] == reason
    ]


async def test_a_killed_engine_is_told_while_its_pod_is_not_ready_and_for_a_day_after() -> None:
    world = World()
    revision = await serving(world)
    befall(world, revision, **killed())
    world.clock.pass_seconds(2)
    await look(world)
    ready = world.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "OutOfMemory")
    assert "the limit is 3072 MiB" in ready["message"]
    befall(world, revision, ready="True", **killed())
    await look(world)
    ready = world.condition("Ready")
    assert ready["status"] == "True"
    assert (
        f"containers were restarted 1 time, most recently in pod bot-{revision}-played-0 at {BEGAN}"
        in ready["message"]
    )
    world.clock.pass_seconds(86_400)
    await look(world)
    assert "restarted" not in world.condition("Ready")["message"]


async def test_each_restart_is_one_event_however_often_one_looks() -> None:
    world = World()
    revision = await serving(world)
    for ready in ("False", "False", "True"):
        befall(world, revision, ready=ready, **killed())
        await look(world)
    world.restarted("example.com/runtime:1")
    await look(world)
    [event] = told(world, "OutOfMemory")
    assert (event["type"], event["count"]) == ("Warning", 1)
    assert "restart 1 of container runtime" in event["message"]
    befall(world, revision, ready="True", **killed(count=2))
    await look(world)
    assert len(told(world, "OutOfMemory")) == 2


async def test_an_old_restart_is_no_news_to_an_operator_that_starts() -> None:
    world = World()
    revision = await serving(world)
    world.clock.pass_seconds(3600)
    befall(world, revision, ready="True", **killed())
    await look(world)
    assert told(world, "OutOfMemory") == []


async def test_an_evicted_pod_is_one_event_also_when_others_serve_on() -> None:
    world = World()
    revision = await serving(world, replicas=2)
    evicted = {
        "phase": "Failed",
        "reason": "Evicted",
        "message": "Pod ephemeral local storage usage exceeds the limit",
    }
    pod = world.cluster.objects["Pod", NAMESPACE, f"bot-{revision}-played-0"]
    world.cluster.objects["Pod", NAMESPACE, "gone"] = {
        **pod,
        "metadata": {**pod["metadata"], "name": "gone", "uid": "gone"},
        "status": {
            **evicted,
            "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": BEGAN}],
        },
    }
    for _ in range(2):
        await look(world)
    world.restarted("example.com/runtime:1")
    await look(world)
    assert world.condition("Ready")["status"] == "True"
    [event] = told(world, "PodEvicted")
    assert (event["type"], event["count"]) == ("Warning", 1)
    assert "pod gone was ended by its node" in event["message"]


async def test_an_image_that_stays_away_from_serving_pods_stalls_after_the_progress_deadline_and_heals() -> (
    None
):
    world = World()
    revision = await serving(world)
    gone = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}
    befall(world, revision, **gone)
    world.clock.pass_seconds(100)
    done = await look(world)
    assert world.condition("Stalled")["status"] == "False"
    assert world.condition("Available")["reason"] == "ImagePullFailed"
    assert done.after_seconds is not None
    assert done.after_seconds <= 500, (
        "it looks again when the deadline is over, whatever happens meanwhile"
    )
    world.clock.pass_seconds(501)
    await look(world)
    stalled = world.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "ImagePullFailed")
    assert "0 of 1 pods are ready, for more than 600 s" in stalled["message"]
    assert world.condition("Reconciling")["status"] == "False"
    assert told(world, "ImagePullFailed")
    world.cluster.play(f"bot-{revision}")
    await look(world)
    assert (world.condition("Stalled")["status"], world.condition("Ready")["status"]) == (
        "False",
        "True",
    )


async def test_events_of_a_pod_that_waits_for_containers_are_read_again_within_seconds() -> None:
    world = World()
    revision = await serving(world)
    befall(world, revision, state={"waiting": {"reason": "ContainerCreating"}})
    done = await look(world)
    assert done.after_seconds is not None
    assert done.after_seconds <= 3
    name = f"bot-{revision}-played-0"
    event = {
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "namespace": NAMESPACE},
        "involvedObject": {"name": name}, "reason": "FailedCreatePodSandBox", "lastTimestamp": BEGAN,
        "message": 'no runtime for "nvidia" is configured',
    }  # fmt: skip
    await world.cluster.create(event)
    await look(world)
    assert world.condition("Available")["reason"] == "SandboxFailed"
    assert "nvidia" in world.condition("Ready")["message"]


@pytest.mark.parametrize("state", [{"running": {}}, {"waiting": {"reason": "PodInitializing"}}])
async def test_a_node_that_falls_silent_under_a_pod_that_starts_is_named(
    state: dict[str, Any],
) -> None:
    """The control plane takes Ready from pods that have it, and leaves all others as they were."""
    world = World()
    revision = await serving(world)
    befall(world, revision, state=state)
    pod = world.cluster.objects["Pod", NAMESPACE, f"bot-{revision}-played-0"]
    pod["spec"] = {"nodeName": "n7"}
    node = {
        "metadata": {"name": "n7"},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }
    world.cluster.objects["Node", "", "n7"] = node
    world.clock.pass_seconds(60)
    done = await look(world)
    assert "does not answer" not in world.condition("Available")["message"]
    assert done.after_seconds is not None
    assert done.after_seconds <= 20, "nothing tells that it falls silent"
    node["status"] = {"conditions": [{"type": "Ready", "status": "Unknown"}]}
    await look(world)
    available = world.condition("Available")
    assert (available["status"], available["reason"]) == ("False", "NodeLost")
    assert "node n7 of pod" in available["message"]


async def test_an_operator_that_may_not_ask_for_nodes_does_without() -> None:
    world = World()
    revision = await serving(world)
    befall(world, revision, state={"running": {}})
    world.cluster.objects["Pod", NAMESPACE, f"bot-{revision}-played-0"]["spec"] = {"nodeName": "n7"}
    world.cluster.faults["get", "Node"] = Refused("nodes is forbidden")
    world.clock.pass_seconds(60)
    await look(world)
    assert world.condition("Available")["reason"] == "NoReadyPods"
