"""A process that dies at any write leaves a world that the next one brings to the same end;
strangers' objects stay."""

from __future__ import annotations

from typing import Any

import pytest

from llm_operator.ports.cluster import Unavailable
from llm_operator.reconcile import Pace, Retry, reconcile
from llm_operator.state import Key, Manifest
from unit.operator.fakes import IMAGE, NAMESPACE, FakeCluster, World

PACE = Pace(verify_seconds=60, settle_seconds=5)
KEY = Key("LLMDeployment", NAMESPACE, "bot")


class FragileCluster(FakeCluster):
    """Loses the connection once, before or after its `fatal`-th write landed."""

    def __init__(self, fatal: int, landed: bool) -> None:
        super().__init__()
        self.left = fatal
        self.landed = landed

    def _store(self, verb: str, key: tuple[str, str, str], after: Manifest) -> Manifest:
        if verb == "person":
            return super()._store(verb, key, after)
        self.left -= 1
        if self.left == 0 and not self.landed:
            raise Unavailable("gone before the write")
        live = super()._store(verb, key, after)
        if self.left == 0:
            raise Unavailable("gone after the write")
        return live


async def settle(world: World) -> None:
    for _ in range(4):
        for name in world.cluster.named("Deployment"):
            world.cluster.play(name)
        try:
            await reconcile(KEY, world.outside, PACE)
        except (Unavailable, Retry):
            world.restarted(IMAGE)


async def road(fatal: int, landed: bool) -> tuple[World, FragileCluster]:
    """From nothing to version 1 to version 2, until version 1 has gone to sleep."""
    world = World()
    cluster = FragileCluster(fatal, landed)
    world.cluster = cluster
    world.restarted(IMAGE)
    await world.deploy(replicas=2)
    await settle(world)
    world.registry.aliases["bot"]["champion"] = "2"
    await settle(world)
    world.clock.pass_seconds(10)
    await settle(world)
    return world, cluster


def end(world: World) -> dict[Any, Any]:
    """Everything that matters at the end; Events may be told twice."""
    return {
        key: (
            found.get("spec"),
            found.get("data"),
            found["metadata"].get("labels"),
            found.get("status"),
        )
        for key, found in world.cluster.objects.items()
        if key[0] not in ("Event", "Deployment")
    } | {
        key: (found["spec"], found["metadata"]["labels"])
        for key, found in world.cluster.objects.items()
        if key[0] == "Deployment"
    }


@pytest.mark.timeout(240)  # A life of the operator for each of its writes.
@pytest.mark.parametrize("landed", [False, True], ids=["before", "after"])
async def test_a_crash_at_any_write_ends_in_the_same_world(landed: bool) -> None:
    whole, counted = await road(-1, landed)
    total = -1 - counted.left
    expected = end(whole)
    assert total > 20
    for fatal in range(1, total + 1):
        broken, cluster = await road(fatal, landed)
        assert cluster.left <= 0
        assert end(broken) == expected, f"write {fatal} of {total}"


@pytest.mark.parametrize("kind", ["Service", "ServiceAccount", "Secret", "PodDisruptionBudget"])
async def test_an_object_of_somebody_else_is_never_taken_or_deleted(kind: str) -> None:
    world = World()
    name = "bot-keys" if kind == "Secret" else "bot"
    theirs = {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"a": "b"},
    }
    world.cluster._store("person", (kind, NAMESPACE, name), theirs)
    before = dict(world.cluster.objects[kind, NAMESPACE, name])
    await world.deploy(replicas=2)
    await reconcile(KEY, world.outside, PACE)
    assert world.cluster.objects[kind, NAMESPACE, name] == before
    assert world.condition("Stalled")["reason"] == "NameTaken"
    assert world.condition("Ready")["status"] == "False"
    assert name in world.condition("Ready")["message"]


USED = {"ServiceAccount": "bot", "Secret": "bot-keys"}


@pytest.mark.parametrize(("kind", "name"), [*USED.items(), ("Secret", "bot-registry")])
async def test_no_pod_is_made_that_would_use_what_is_somebody_elses(kind: str, name: str) -> None:
    """The account whose cloud identity it would get, the Secrets that it would mount."""
    world = World()
    world.cluster._store("person", (kind, NAMESPACE, name), theirs(kind, name))
    await world.deploy()
    await reconcile(KEY, world.outside, PACE)
    assert not world.cluster.named("Deployment")
    assert world.condition("Stalled")["reason"] == "NameTaken"
    del world.cluster.objects[kind, NAMESPACE, name]
    await reconcile(KEY, world.outside, PACE)
    assert world.cluster.named("Deployment")


@pytest.mark.parametrize(("kind", "name"), [*USED.items(), ("Secret", "bot-registry")])
async def test_pods_that_run_stay_and_no_other_joins_them_where_a_name_was_taken_later(
    kind: str, name: str
) -> None:
    world = World()
    await world.deploy()
    await settle(world)
    (deployment,) = world.cluster.named("Deployment")
    del world.cluster.objects[kind, NAMESPACE, name]
    world.cluster._store("person", (kind, NAMESPACE, name), theirs(kind, name))
    await world.deploy(replicas=3)
    await reconcile(KEY, world.outside, PACE)
    assert world.cluster.objects["Deployment", NAMESPACE, deployment]["spec"]["replicas"] == 1
    assert world.condition("Ready")["reason"] == "NameTaken"
    assert world.condition("Available")["status"] == "True"


@pytest.mark.parametrize(("kind", "name"), [*USED.items(), ("Secret", "bot-registry")])
async def test_no_pod_comes_back_to_what_was_taken_while_there_was_none(
    kind: str, name: str
) -> None:
    world = World()
    await world.deploy()
    await settle(world)
    await world.deploy(replicas=0)
    await settle(world)
    (deployment,) = world.cluster.named("Deployment")
    assert world.cluster.objects["Deployment", NAMESPACE, deployment]["spec"]["replicas"] == 0
    del world.cluster.objects[kind, NAMESPACE, name]
    world.cluster._store("person", (kind, NAMESPACE, name), theirs(kind, name))
    await world.deploy(replicas=1)
    await settle(world)
    assert world.cluster.objects["Deployment", NAMESPACE, deployment]["spec"]["replicas"] == 0
    assert world.condition("Stalled")["reason"] == "NameTaken"


async def test_no_pod_is_made_without_what_could_be_somebody_elses_a_moment_later() -> None:
    world = World()
    world.cluster.refuses.add("ServiceAccount")
    await world.deploy()
    with pytest.raises(Retry):
        await reconcile(KEY, world.outside, PACE)
    assert not world.cluster.named("Deployment")
    world.cluster.refuses.clear()
    await reconcile(KEY, world.outside, PACE)
    assert world.cluster.named("Deployment")


def theirs(kind: str, name: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "data": {},
    }
