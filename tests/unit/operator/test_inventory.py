"""The operator's metrics by object and condition: what alerts are written on."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from llm_operator.crds import ApiKeyStatus, Condition
from llm_operator.inventory import FAMILIES, Inventory
from llm_operator.reconcile import Pace, reconcile
from llm_operator.state import Key
from unit.operator.fakes import NAMESPACE, World

PACE = Pace(verify_seconds=60, settle_seconds=5)
BOT = Key("LLMDeployment", NAMESPACE, "bot")
TEAM = Key("ApiKey", NAMESPACE, "team")


def series(inventory: Inventory, name: str = "") -> dict[tuple[str, ...], float]:
    """Values by the labels' values, of one metric or of all."""
    return {
        tuple(sample.labels.values()): sample.value
        for family in inventory.collect()
        for sample in family.samples
        if family.name == name or not name
    }


async def serve(world: World) -> None:
    """One version that serves."""
    await world.deploy()
    await reconcile(BOT, world.outside, PACE)
    for name in world.cluster.named("Deployment"):
        world.cluster.play(name)
    for _ in range(3):
        world.clock.pass_seconds(10)
        await reconcile(BOT, world.outside, PACE)


async def test_available_can_be_alerted_on_by_deployment() -> None:
    world = World()
    await world.deploy()
    await reconcile(BOT, world.outside, PACE)
    available = ("LLMDeployment", NAMESPACE, "bot", "Available")
    found = series(world.outside.memory.inventory, "llm_operator_condition")
    assert [found[*available, each] for each in ("true", "false", "unknown")] == [0, 1, 0]
    await serve(world)
    found = series(world.outside.memory.inventory, "llm_operator_condition")
    assert [found[*available, each] for each in ("true", "false", "unknown")] == [1, 0, 0]
    reasons = series(world.outside.memory.inventory, "llm_operator_condition_reason")
    assert reasons[*available, "Serving"] == 1
    assert len([labels for labels in reasons if labels[:4] == available]) == 1


async def test_a_rollout_is_seen_with_its_version_its_beginning_and_its_end() -> None:
    world = World()
    await serve(world)
    inventory = world.outside.memory.inventory
    named = (NAMESPACE, "bot")
    assert series(inventory, "llm_operator_deployment_rollout_in_progress") == {named: 0}
    assert series(inventory, "llm_operator_deployment_replicas_wanted") == {named: 1}
    assert series(inventory, "llm_operator_deployment_replicas_ready") == {named: 1}
    world.registry.aliases["bot"]["champion"] = "2"
    began = world.clock().timestamp()
    await reconcile(BOT, world.outside, PACE)
    assert series(inventory, "llm_operator_deployment_rollout_in_progress") == {named: 1}
    assert series(inventory, "llm_operator_deployment_rollout_started_timestamp_seconds") == {
        named: began
    }
    (told,) = series(inventory, "llm_operator_deployment_rollout_info")
    assert (told[2], told[4], told[5]) == ("2", "BlueGreen", "")
    (serving,) = series(inventory, "llm_operator_deployment_info")
    assert serving[2:4] == ("bot", "1")


async def test_a_deleted_deployment_leaves_no_series() -> None:
    world = World()
    await serve(world)
    assert series(world.outside.memory.inventory)
    del world.cluster.objects["LLMDeployment", NAMESPACE, "bot"]
    await reconcile(BOT, world.outside, PACE)
    assert series(world.outside.memory.inventory) == {}


async def test_keys_are_counted_by_phase_with_their_expiry_and_go_when_deleted() -> None:
    world = World()
    await world.put("ApiKey", "team", {"deployments": ["bot"], "expiresAt": "2026-01-02T00:00:00Z"})
    await reconcile(TEAM, world.outside, PACE)
    inventory = world.outside.memory.inventory
    assert series(inventory, "llm_operator_apikey_info") == {(NAMESPACE, "team", "Active"): 1}
    assert series(inventory, "llm_operator_apikey_expiry_timestamp_seconds") == {
        (NAMESPACE, "team"): 1767312000
    }
    world.clock.pass_seconds(2 * 86400)
    await reconcile(TEAM, world.outside, PACE)
    assert series(inventory, "llm_operator_apikey_info") == {(NAMESPACE, "team", "Expired"): 1}
    del world.cluster.objects["ApiKey", NAMESPACE, "team"]
    await reconcile(TEAM, world.outside, PACE)
    assert series(inventory) == {}


def test_a_reason_that_nobody_has_listed_makes_no_label_of_its_own() -> None:
    inventory = Inventory()
    condition = Condition(
        type="Ready",
        status="False",
        last_transition_time="2026-01-01T00:00:00Z",
        reason="Made47",
        message="?",
    )
    resource = {"kind": "ApiKey", "metadata": {"namespace": NAMESPACE, "name": "team"}, "spec": {}}
    inventory.note(resource, ApiKeyStatus(conditions=(condition,)))
    assert [labels[-1] for labels in series(inventory, "llm_operator_condition_reason")] == [
        "Other"
    ]


async def test_a_specification_that_can_not_be_read_still_has_its_conditions() -> None:
    world = World()
    await world.put("LLMDeployment", "bot", {"replicas": "many"})
    await reconcile(BOT, world.outside, PACE)
    found = series(world.outside.memory.inventory, "llm_operator_condition")
    assert found["LLMDeployment", NAMESPACE, "bot", "Stalled", "true"] == 1


def test_every_metric_is_one_that_prometheus_takes() -> None:
    registry = CollectorRegistry()
    registry.register(Inventory())
    assert sorted(family.name for family in registry.collect()) == sorted(FAMILIES)
