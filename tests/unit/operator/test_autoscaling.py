"""The autoscaler of an LLMDeployment, what its condition says, and which pods go first."""

from __future__ import annotations

from typing import Any

from llm_operator.ports.cluster import Unavailable
from llm_operator.reconcile.departure import COST
from llm_operator.state import Figures, Load, Manifest
from unit.operator.fakes import NAMESPACE, World
from unit.operator.test_reconcile_llmdeployment import look, serving

METRICS = [
    {"type": "QueueDepth", "target": 4},
    {"type": "CacheUsage", "target": 80},
    {"type": "CPU", "target": 70},
]
SCALED: dict[str, Any] = {"maxReplicas": 4, "metrics": METRICS}
KEDA: dict[str, Any] = {**SCALED, "scaler": "KEDA"}


def scaled_object(world: World, name: str, target: str = "bot", **status: Any) -> None:
    key = ("ScaledObject", NAMESPACE, name)
    made = {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"scaleTargetRef": {"kind": "LLMDeployment", "name": target}},
    }
    world.cluster._store("somebody", key, {**made, "status": status})


def active(world: World) -> tuple[str, str, str]:
    found = world.condition("AutoscalingActive")
    return found["status"], found["reason"], found["message"]


async def test_a_horizontal_pod_autoscaler_asks_for_the_pods_own_metrics() -> None:
    world = World()
    await serving(world, autoscaling=SCALED)
    spec = world.cluster.objects["HorizontalPodAutoscaler", NAMESPACE, "bot"]["spec"]
    queue, cache, cpu = spec["metrics"]
    assert queue["pods"]["metric"] == {"name": "llm_requests_waiting"}
    assert queue["pods"]["target"] == {"type": "AverageValue", "averageValue": "4"}
    assert cache["pods"]["metric"] == {"name": "llm_kv_cache_usage_ratio"}
    assert cache["pods"]["target"]["averageValue"] == "800m"
    assert cpu["resource"]["target"]["averageUtilization"] == 70
    assert active(world)[:2] == ("Unknown", "AutoscalerPending")


async def test_where_no_metrics_of_pods_come_the_condition_says_what_to_do() -> None:
    world = World()
    await serving(world, autoscaling=SCALED)
    key = ("HorizontalPodAutoscaler", NAMESPACE, "bot")
    for reason, advised in (("FailedGetPodsMetric", True), ("FailedGetScale", False)):
        condition = {
            "type": "ScalingActive", "status": "False", "reason": reason, "message": "it failed"
        }  # fmt: skip
        world.cluster.objects[key]["status"] = {"conditions": [condition]}
        object.__setattr__(world.outside, "metrics_advice", lambda: "set metricsApi.enabled")
        await look(world)
        words = "it failed; set metricsApi.enabled" if advised else "it failed"
        assert active(world) == ("False", reason, words)


async def test_keda_gets_a_scaled_object_that_asks_the_pods() -> None:
    world = World()
    world.cluster.kinds["ScaledObject"] = True
    await serving(world, autoscaling={**KEDA, "behavior": {"scaleDown": {"selectPolicy": "Min"}}})
    assert world.cluster.named("HorizontalPodAutoscaler") == []
    made = world.cluster.objects["ScaledObject", NAMESPACE, "bot"]
    queue, cache, cpu = made["spec"]["triggers"]
    assert queue["type"] == "metrics-api"
    assert queue["metadata"] == {
        "url": "http://bot.team:8000/metrics",
        "format": "prometheus",
        "valueLocation": "llm_requests_waiting",
        "targetValue": "4",
        "aggregateFromKubeServiceEndpoints": "true",
        "aggregationType": "sum",
    }
    assert cache["metadata"]["targetValue"] == "0.8"
    assert (cpu["type"], cpu["metadata"]) == ("cpu", {"value": "70"})
    assert made["spec"]["maxReplicaCount"] == 4
    advanced = made["spec"]["advanced"]["horizontalPodAutoscalerConfig"]
    assert advanced == {"behavior": {"scaleDown": {"selectPolicy": "Min"}}}
    assert active(world) == ("Unknown", "AutoscalerPending", "KEDA has not reported yet")
    ready = {"type": "Ready", "status": "True", "message": "it scales"}
    made["status"] = {"conditions": [ready]}
    assert (await look(world)).after_seconds is None
    assert active(world) == ("True", "ScalingActive", "it scales")
    await world.deploy(autoscaling=SCALED)
    await look(world)
    assert world.cluster.named("ScaledObject") == []
    assert world.cluster.named("HorizontalPodAutoscaler") == ["bot"]


async def test_without_keda_the_condition_says_so_and_it_is_looked_for_again() -> None:
    world = World()
    await serving(world, autoscaling=KEDA)
    assert active(world)[:2] == ("False", "KedaMissing")
    assert world.condition("Ready")["status"] == "True"
    assert (await look(world)).after_seconds == 60


async def test_two_autoscalers_are_told_and_only_theirs_scales() -> None:
    world = World()
    world.cluster.kinds["ScaledObject"] = True
    await serving(world, autoscaling=SCALED)
    scaled_object(world, "of-the-team")
    scaled_object(world, "of-others", target="other")
    assert (await look(world)).after_seconds == 60
    status, reason, message = active(world)
    assert (status, reason) == ("False", "AutoscalersContradict")
    assert "delete scaledobject of-the-team" in message
    assert world.cluster.named("HorizontalPodAutoscaler") == []
    assert world.cluster.named("ScaledObject") == ["of-others", "of-the-team"]
    del world.cluster.objects["ScaledObject", NAMESPACE, "of-the-team"]
    await look(world)
    assert world.cluster.named("HorizontalPodAutoscaler") == ["bot"]


def busy(world: World, revision: str, *running: float | None) -> list[str]:
    """The pods run so many requests each; None: it does not answer. Returns their names."""
    names = [f"bot-{revision}-played-{number}" for number in range(len(running))]
    world.pods.known = {
        name: Figures(load=Load(each, 0, 0, 0))
        for name, each in zip(names, running, strict=True)
        if each is not None
    }
    return names


def marked(world: World) -> set[str]:
    return {
        name
        for (kind, _, name), each in world.cluster.objects.items()
        if kind == "Pod" and (each["metadata"].get("annotations") or {}).get(COST) == "-1"
    }


def pod_writes(world: World) -> list[Any]:
    return [each for each in world.cluster.writes if each[1] == "Pod"]


async def test_the_idlest_pods_go_first_and_only_they_are_written_to() -> None:
    world = World()
    revision = await serving(world, replicas=4)
    names = busy(world, revision, 3, 0, None, 1)
    await look(world)  # It tells them of their keys.
    world.cluster.writes.clear()
    await world.deploy(replicas=2)
    await look(world)
    assert marked(world) == {names[1], names[3]}
    assert len(pod_writes(world)) == 2
    await look(world)
    assert len(pod_writes(world)) == 2


async def test_a_pod_that_has_stayed_loses_its_mark_when_others_are_to_go() -> None:
    world = World()
    revision = await serving(world, replicas=3)
    names = busy(world, revision, 0, 5, 5)
    await world.deploy(replicas=2)
    await look(world)
    assert marked(world) == {names[0]}
    await world.deploy(replicas=3)
    await look(world)
    busy(world, revision, 9, 0, 5)
    await world.deploy(replicas=2)
    await look(world)
    assert marked(world) == {names[1]}


async def test_costs_of_the_specification_and_refused_marks_keep_nothing_from_being_scaled() -> (
    None
):
    world = World()
    revision = await serving(world, replicas=2, pod={"annotations": {COST: "7"}})
    busy(world, revision, 0, 1)
    await look(world)
    world.cluster.writes.clear()
    await world.deploy(replicas=1, pod={"annotations": {COST: "7"}})
    await look(world)
    assert not pod_writes(world)

    world = World()
    revision = await serving(world, replicas=2)
    busy(world, revision, 0, 1)
    await look(world)
    world.cluster.faults = {("patch", "Pod"): Unavailable("a webhook is away")}
    await world.deploy(replicas=1)
    await look(world)
    deployment: Manifest = world.cluster.objects["Deployment", NAMESPACE, f"bot-{revision}"]
    assert deployment["spec"]["replicas"] == 1
