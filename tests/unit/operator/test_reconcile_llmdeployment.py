"""One LLMDeployment through its life,
against a cluster and a registry that live in dictionaries."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from llm_operator.plans.rollout import stamp
from llm_operator.ports.cluster import Unavailable
from llm_operator.ports.registry import AliasNotFound, RegistryUnreachable
from llm_operator.reconcile import Done, Pace, Retry, reconcile
from llm_operator.state import Key
from unit.operator.fakes import NAMESPACE, World

PACE = Pace(verify_seconds=60, settle_seconds=5)
KEY = Key("LLMDeployment", NAMESPACE, "bot")
FATAL = 'loading\n{"reason": "ModelCorrupt", "message": "a shard is short"}'


async def look(world: World, key: Key = KEY) -> Done:
    return await reconcile(key, world.outside, PACE)


async def serving(world: World, **spec: Any) -> str:
    """An LLMDeployment that serves; returns its revision."""
    await world.deploy(**spec)
    await look(world)
    revision = world.status()["candidate"]["revision"]
    world.cluster.play(f"bot-{revision}")
    await look(world)
    assert world.condition("Ready")["status"] == "True"
    return str(revision)


def pod(world: World, revision: str, **status: Any) -> None:
    name = f"bot-{revision}-x"
    meta = {
        "name": name,
        "namespace": NAMESPACE,
        "labels": {"llm-operator.dev/deployment": "bot", "llm-operator.dev/revision": revision},
    }
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "status": status}
    world.cluster._store("kubelet", ("Pod", NAMESPACE, name), made)


async def test_all_children_are_made_and_ready_follows_the_pods() -> None:
    world = World()
    revision = await serving(world, replicas=2)
    assert (
        world.cluster.named("Deployment") == [f"bot-{revision}"] == world.cluster.named("ConfigMap")
    )
    assert world.cluster.named("Service") == ["bot"] == world.cluster.named("PodDisruptionBudget")
    assert world.cluster.named("Secret") == ["bot-keys", "bot-registry"]
    assert world.selected() == revision
    assert world.cluster.events() == ["RolloutStarted", "RolledOut"]


async def test_the_first_write_says_unknown() -> None:
    world = World()
    await world.deploy()
    world.registry.fault = RegistryUnreachable("down")
    await look(world)
    first = world.cluster.writes[1]
    assert first == ("status", "LLMDeployment", "bot")


async def test_a_second_look_writes_nothing() -> None:
    world = World()
    await serving(world)
    world.cluster.writes.clear()
    await look(world)
    assert world.cluster.writes == []


async def test_the_service_turns_only_when_all_pods_of_the_new_version_are_ready() -> None:
    world = World()
    old = await serving(world, replicas=2)
    world.registry.aliases["bot"]["champion"] = "2"
    await look(world)
    new = world.status()["candidate"]["revision"]
    world.cluster.play(f"bot-{new}", ready=1)
    await look(world)
    assert world.selected() == old
    world.cluster.play(f"bot-{new}")
    await look(world)
    assert world.selected() == new


async def test_old_pods_stay_until_the_switch_has_settled() -> None:
    world = World()
    old = await serving(world)
    world.registry.aliases["bot"]["champion"] = "2"
    await look(world)
    world.cluster.play(f"bot-{world.status()['candidate']['revision']}")
    done = await look(world)
    assert world.cluster.objects["Deployment", NAMESPACE, f"bot-{old}"]["spec"]["replicas"] == 1
    assert done.after_seconds == 5
    world.clock.pass_seconds(6)
    await look(world)
    assert world.cluster.objects["Deployment", NAMESPACE, f"bot-{old}"]["spec"]["replicas"] == 0


async def test_a_newer_operator_with_another_image_touches_no_deployment() -> None:
    world = World()
    await serving(world)
    world.cluster.writes.clear()
    world.restarted("example.com/runtime:2")
    await look(world)
    assert world.cluster.writes == []


def containers(world: World, revision: str) -> list[Any]:
    pods = world.cluster.objects["Deployment", NAMESPACE, f"bot-{revision}"]["spec"]["template"][
        "spec"
    ]
    return [*pods["initContainers"], *pods["containers"]]


async def test_an_image_of_its_own_counts_over_the_operators_and_the_status_tells_it() -> None:
    world = World()
    own = await serving(world, image="example.com/runtime:cpu")
    assert {each["image"] for each in containers(world, own)} == {"example.com/runtime:cpu"}
    assert world.status()["stable"]["image"] == "example.com/runtime:cpu"
    world.cluster.writes.clear()
    world.restarted("example.com/runtime:2")
    await look(world)
    assert world.cluster.writes == []


async def test_a_changed_image_is_rolled_out_and_without_it_the_revision_from_before_comes_back_as_it_was() -> (
    None
):
    world = World()
    plain = await serving(world)
    image = world.status()["stable"]["image"]
    world.restarted("example.com/runtime:2")
    own = await serving(world, image="example.com/runtime:cpu")
    assert own != plain
    await world.deploy()
    await look(world)
    assert world.status()["stable"]["revision"] == plain
    assert world.status()["stable"]["image"] == image
    assert {each["image"] for each in containers(world, plain)} == {image}


async def test_a_new_revision_without_an_image_of_its_own_takes_the_operators_present_one() -> None:
    world = World()
    await serving(world, image="example.com/runtime:cpu")
    world.restarted("example.com/runtime:2")
    fresh = await serving(world, engine={"maxModelLength": 1024})
    assert world.status()["stable"]["image"] == "example.com/runtime:2"
    assert {each["image"] for each in containers(world, fresh)} == {"example.com/runtime:2"}


async def test_the_fetching_container_has_the_operators_resources_or_its_own() -> None:
    world = World()
    world.outside = replace(world.outside, fetch_resources={"limits": {"memory": "512Mi"}})
    fetch, serve = containers(world, await serving(world))
    assert fetch["resources"] == {"limits": {"memory": "512Mi"}}
    assert "resources" not in serve
    fetch, _ = containers(
        world, await serving(world, pod={"fetchResources": {"requests": {"memory": "1Gi"}}})
    )
    assert fetch["resources"] == {"requests": {"memory": "1Gi"}}


async def test_pods_get_the_operators_pull_secrets_by_their_account_and_keep_their_revision() -> (
    None
):
    world = World()
    revision = await serving(world)
    assert "imagePullSecrets" not in world.cluster.objects["ServiceAccount", NAMESPACE, "bot"]
    world.outside = replace(world.outside, pull_secrets=("registry",))
    await look(world)
    assert world.cluster.objects["ServiceAccount", NAMESPACE, "bot"]["imagePullSecrets"] == [
        {"name": "registry"}
    ]
    assert world.status()["stable"]["revision"] == revision


async def test_an_operator_with_other_resources_for_fetching_touches_no_deployment() -> None:
    world = World()
    await serving(world)
    world.cluster.writes.clear()
    world.outside = replace(world.outside, fetch_resources={"limits": {"memory": "2Gi"}})
    await look(world)
    assert world.cluster.writes == []


async def test_a_moved_registry_reaches_pods_to_come_without_a_new_template() -> None:
    world = World()
    revision = await serving(world)
    template = json.dumps(
        world.cluster.objects["Deployment", NAMESPACE, f"bot-{revision}"]["spec"]["template"]
    )
    world.connections.known = {
        "default": (
            world.connections.known["default"].model_copy(update={"tracking_uri": "http://new"})
        )
    }
    await look(world)
    config = world.cluster.objects["ConfigMap", NAMESPACE, f"bot-{revision}"]["data"]["config.json"]
    assert json.loads(config)["model"]["mlflow"]["trackingUri"] == "http://new"
    after = world.cluster.objects["Deployment", NAMESPACE, f"bot-{revision}"]["spec"]["template"]
    assert json.dumps(after) == template


async def test_a_fatal_report_fails_the_candidate_and_keeps_the_old_version() -> None:
    world = World()
    old = await serving(world)
    world.registry.aliases["bot"]["champion"] = "2"
    await look(world)
    new = world.status()["candidate"]["revision"]
    ended = {"name": "fetch", "state": {"terminated": {"exitCode": 1, "message": FATAL}}}
    pod(world, new, initContainerStatuses=[ended])
    await look(world)
    assert world.condition("Stalled")["reason"] == "ModelCorrupt"
    assert "a shard is short" in world.condition("Ready")["message"]
    assert world.condition("Available")["status"] == "True"
    assert world.selected() == old
    assert world.cluster.objects["Deployment", NAMESPACE, f"bot-{new}"]["spec"]["replicas"] == 0
    assert "RolloutFailed" in world.cluster.events()


async def test_the_deadline_is_kept_by_the_operators_own_clock() -> None:
    world = World()
    await serving(world, rollout={"progressDeadlineSeconds": 60})
    world.registry.aliases["bot"]["champion"] = "2"
    done = await look(world)
    assert done.after_seconds == pytest.approx(60.5)
    world.clock.pass_seconds(61)
    await look(world)
    assert world.condition("Stalled")["reason"] == "ProgressDeadlineExceeded"


async def test_silence_of_the_registry_keeps_the_last_version_ready() -> None:
    world = World()
    await serving(world)
    world.registry.fault = RegistryUnreachable("MLflow does not answer")
    await look(world)
    assert world.condition("RegistryReachable")["status"] == "False"
    assert world.condition("Ready")["status"] == "True"
    world.registry.fault = None
    await look(world)
    assert "RegistryRecovered" in world.cluster.events()


async def test_an_answer_that_there_is_no_alias_stalls_but_stops_no_pod() -> None:
    world = World()
    revision = await serving(world)
    world.registry.fault = AliasNotFound("no alias")
    await look(world)
    assert world.condition("Stalled")["reason"] == "AliasNotFound"
    assert (
        world.cluster.objects["Deployment", NAMESPACE, f"bot-{revision}"]["spec"]["replicas"] == 1
    )


async def test_a_refused_child_claims_no_progress_and_is_tried_again() -> None:
    world = World()
    old = await serving(world)
    world.registry.aliases["bot"]["champion"] = "2"
    await look(world)
    new = world.status()["candidate"]["revision"]
    world.cluster.play(f"bot-{new}")
    world.cluster.refuses = {"Service"}
    with pytest.raises(Retry):
        await look(world)
    assert world.status()["stable"]["revision"] == old
    assert world.condition("Applied")["reason"] == "ApplyFailed"
    world.cluster.refuses = set()
    await look(world)
    assert world.status()["stable"]["revision"] == new


async def test_a_lost_status_is_read_off_the_service() -> None:
    world = World()
    revision = await serving(world)
    del world.cluster.objects["LLMDeployment", NAMESPACE, "bot"]["status"]
    await look(world)
    assert world.status()["stable"]["revision"] == revision
    assert "candidate" not in world.status()


async def test_a_dead_api_server_is_an_exception_and_not_a_state() -> None:
    world = World()
    await world.deploy()
    world.cluster.down = True
    with pytest.raises(Unavailable):
        await look(world)


async def test_only_the_newest_old_revisions_are_kept() -> None:
    world = World()
    await serving(world, rollout={"revisionHistoryLimit": 1})
    for version in ("2", "3", "4"):
        world.registry.aliases["bot"]["champion"] = version
        await look(world)
        world.cluster.play(f"bot-{world.status()['candidate']['revision']}")
        await look(world)
        world.clock.pass_seconds(10)
        await look(world)
    assert len(world.cluster.named("Deployment")) == 2 == len(world.cluster.named("ConfigMap"))
    assert [entry["version"] for entry in world.status()["history"]] == ["3", "2", "1"]


async def test_a_service_monitor_is_made_once_the_cluster_knows_the_kind() -> None:
    world = World()
    await serving(world, monitoring={"serviceMonitor": {"enabled": "Enabled"}})
    assert world.condition("Applied")["reason"] == "ServiceMonitorMissing"
    world.cluster.kinds["ServiceMonitor"] = True
    await look(world)
    assert world.cluster.named("ServiceMonitor") == ["bot"]
    assert world.condition("Applied")["status"] == "True"


async def test_a_resource_that_is_being_deleted_gets_no_children() -> None:
    world = World()
    await world.deploy()
    world.cluster.objects["LLMDeployment", NAMESPACE, "bot"]["metadata"]["deletionTimestamp"] = (
        "now"
    )
    assert (await look(world)).gone
    assert world.cluster.named("Deployment") == []


async def test_a_specification_that_can_not_be_read_leaves_everything_as_it_is() -> None:
    world = World()
    revision = await serving(world)
    await world.deploy(engine={"device": "abacus"})
    await look(world)
    assert world.condition("Stalled")["reason"] == "InvalidSpec"
    assert world.selected() == revision


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        *(("engine", "kvCacheMemory", size) for size in ("0", 0, "-8Gi", "500m")),
        *(("server", "maxRequestBytes", size) for size in ("0", "-1Mi", "1k")),
    ],
)
async def test_a_size_that_nothing_fits_into_is_told_and_what_serves_stays(
    section: str, field: str, value: str | int
) -> None:
    """Stored before the CRD knew better."""
    world = World()
    revision = await serving(world)
    await world.deploy(**{section: {field: value}})
    await look(world)
    told = world.condition("Stalled")
    assert (told["reason"], f"spec.{section}.{field}" in told["message"]) == ("InvalidSpec", True)
    assert "write a size " in told["message"]
    assert world.selected() == revision


async def test_a_changed_key_secret_is_noticed_by_its_resource_version() -> None:
    world = World()
    await serving(world)
    check = Key("SecretCheck", NAMESPACE, "bot")
    assert (await look(world, check)).wake == ()
    await world.cluster.patch("Secret", NAMESPACE, "bot-keys", {"data": {"keys.json": "e30="}})
    assert (await look(world, check)).wake == (KEY,)


async def test_a_node_that_an_autoscaler_adds_is_read_off_the_events_of_the_pod_that_waits_for_it() -> (
    None
):
    world = World()
    await serving(world)
    world.registry.aliases["bot"]["champion"] = "2"
    await look(world)
    new = world.status()["candidate"]["revision"]
    message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    unplaced = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
    }
    pod(world, new, conditions=[unplaced])
    await look(world)
    for kind in ("Ready", "Progressing"):
        assert world.condition(kind)["reason"] == "PodUnschedulable"
        assert "a node is on its way" not in world.condition(kind)["message"]
    added = {
        "metadata": {"name": "scale-up", "namespace": NAMESPACE},
        "involvedObject": {"kind": "Pod", "name": f"bot-{new}-x"},
        "reason": "TriggeredScaleUp",
        "message": "pod triggered scale-up: [{gpus 1->2 (max: 3)}]",
        "lastTimestamp": stamp(world.clock()),
    }
    world.cluster._store("autoscaler", ("Event", NAMESPACE, "scale-up"), added)
    await look(world)
    for kind in ("Ready", "Progressing"):
        assert (
            "a node is on its way for it: pod triggered scale-up"
            in world.condition(kind)["message"]
        )


async def test_recreate_waits_for_the_last_old_pod() -> None:
    world = World()
    old = await serving(world, rollout={"strategy": "Recreate"})
    pod(world, old)
    world.registry.aliases["bot"]["champion"] = "2"
    await look(world)
    new = world.status()["candidate"]["revision"]
    assert world.cluster.objects["Deployment", NAMESPACE, f"bot-{old}"]["spec"]["replicas"] == 0
    assert world.cluster.objects["Deployment", NAMESPACE, f"bot-{new}"]["spec"]["replicas"] == 0
    world.cluster.play(f"bot-{old}")
    await look(world)
    assert world.cluster.objects["Deployment", NAMESPACE, f"bot-{new}"]["spec"]["replicas"] == 0
    del world.cluster.objects["Pod", NAMESPACE, f"bot-{old}-x"]
    await look(world)
    assert world.cluster.objects["Deployment", NAMESPACE, f"bot-{new}"]["spec"]["replicas"] == 1
    assert world.selected() == new
