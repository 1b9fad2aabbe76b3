"""What was ours and has lost its owner, as after a restore, is adopted where it is;
what is somebody else's is not."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from typing import Any

import pytest

from llm_operator.ports.cluster import Conflict
from llm_operator.reconcile import Retry
from llm_operator.state import Key, Manifest
from unit.operator.fakes import NAMESPACE, FakeCluster, World
from unit.operator.test_keyring import settle
from unit.operator.test_reconcile_apikey import BOT, TEAM, issued, known, look
from unit.operator.test_reconcile_llmdeployment import serving

SPEC: dict[str, Any] = {
    "replicas": 2,
    "autoscaling": {"maxReplicas": 3, "metrics": [{"type": "CPU", "target": 80}]},
}


def restored(world: World, *kept: str) -> dict[tuple[str, str, str], Manifest]:
    """The custom resources come back as new ones, with no status;
    their children without owners. Returns these."""
    children = {}
    for key, found in list(world.cluster.objects.items()):
        if key[0] in ("LLMDeployment", "ApiKey"):
            spec = found["spec"]
            labels = found["metadata"].get("labels")
            del world.cluster.objects[key]
            meta = {"name": key[2], "namespace": NAMESPACE, "labels": labels or {}}
            made = {
                "apiVersion": found["apiVersion"],
                "kind": key[0],
                "metadata": meta,
                "spec": spec,
            }
            world.cluster._store("person", key, made)
        elif key[0] not in ("Pod", "ReplicaSet") and found["metadata"].pop("ownerReferences", None):
            children[key] = copy.deepcopy(found)
    world.restarted("image")
    return children


async def with_a_key() -> tuple[World, str]:
    world = World()
    revision = await serving(world, **SPEC)
    await world.put("ApiKey", "team", {"deployments": ["bot"]})
    await settle(world, TEAM)
    return world, revision


def uid(world: World, kind: str, name: str) -> str:
    return str(world.cluster.objects[kind, NAMESPACE, name]["metadata"]["uid"])


async def test_a_restore_changes_no_pod_and_no_key() -> None:
    world, revision = await with_a_key()
    key = issued(world)
    children = restored(world)
    await settle(world, TEAM, BOT)
    assert issued(world) == key
    assert "KeyAdopted" in world.cluster.events()
    assert known(world)["salt"] == uid(world, "LLMDeployment", "bot")
    assert [each["name"] for each in known(world)["keys"]] == [f"{NAMESPACE}/team"]
    for place, before in children.items():
        after = world.cluster.objects[place]
        owner = "ApiKey" if place[2] == "team-llm-key" else "LLMDeployment"
        assert after["metadata"]["ownerReferences"][0]["uid"] == uid(
            world, owner, "team" if owner == "ApiKey" else "bot"
        )
        assert after["metadata"]["uid"] == before["metadata"]["uid"], f"{place} is the same object"
        if place[0] in ("Deployment", "ConfigMap", "Service"):
            assert (after.get("spec"), after.get("data")) == (
                before.get("spec"),
                before.get("data"),
            )
    await settle(world, BOT)
    assert world.status()["stable"]["revision"] == revision
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Ready", "team", "ApiKey")["status"] == "True"


async def test_pods_that_were_made_otherwise_are_not_restarted_by_a_restore() -> None:
    """A newer operator would write another template:
    what the ConfigMap remembers counts, also when it is adopted."""
    world, revision = await with_a_key()
    memory = world.cluster.objects["ConfigMap", NAMESPACE, f"bot-{revision}"]["data"]
    template = json.loads(memory["template.json"])
    template["spec"]["enableServiceLinks"] = True
    memory["template.json"] = json.dumps(template, sort_keys=True)
    made = world.cluster.objects["Deployment", NAMESPACE, f"bot-{revision}"]
    made["spec"]["template"] = template
    del made["metadata"]["annotations"]  # The operator that made it wrote none.
    restored(world)
    await settle(world, BOT)
    kept = world.cluster.objects["Deployment", NAMESPACE, f"bot-{revision}"]["spec"]["template"]
    assert kept["spec"]["enableServiceLinks"] is True


@pytest.mark.parametrize(
    "change",
    [
        {"ownerReferences": [{"kind": "Rollout", "name": "x", "uid": "7", "controller": True}]},
        {
            "labels": {
                "llm-operator.dev/deployment": "other",
                "app.kubernetes.io/managed-by": "llm-operator",
            }
        },
        {"labels": {"llm-operator.dev/deployment": "bot", "app.kubernetes.io/managed-by": "Helm"}},
        {"labels": {}},
    ],
)
async def test_what_is_somebody_elses_is_not_adopted(change: dict[str, Any]) -> None:
    world, _ = await with_a_key()
    restored(world)
    service = world.cluster.objects["Service", NAMESPACE, "bot"]
    service["metadata"] |= change
    before = copy.deepcopy(service)
    await settle(world, BOT)
    assert world.cluster.objects["Service", NAMESPACE, "bot"] == before
    assert world.condition("Stalled")["reason"] == "NameTaken"


async def test_a_copy_of_a_child_under_another_name_stays_what_it_is() -> None:
    world, _ = await with_a_key()
    copied = copy.deepcopy(world.cluster.objects["Service", NAMESPACE, "bot"])
    copied["metadata"] = {
        "name": "copy",
        "namespace": NAMESPACE,
        "labels": copied["metadata"]["labels"],
    }
    await world.cluster.create(copied)
    await look(world, BOT)
    assert "copy" in world.cluster.named("Service")


async def test_a_secret_of_another_apikey_is_not_adopted() -> None:
    world, _ = await with_a_key()
    restored(world)
    secret = world.cluster.objects["Secret", NAMESPACE, "team-llm-key"]
    secret["metadata"]["labels"]["llm-operator.dev/apikey"] = "other"
    await look(world)
    assert world.condition("Stalled", "team", "ApiKey")["reason"] == "SecretNameTaken"


class OrphaningCluster(FakeCluster):
    """`kubectl delete --cascade=orphan` of `victim` comes just before the first call of this verb
    on this kind."""

    victim = BOT
    first: tuple[str, str] | None = None

    def _answer(self, kind: str = "", *asked: str) -> None:
        if asked[:2] == self.first:
            self.first = None
            owner = self.objects[self.victim.kind, self.victim.namespace, self.victim.name][
                "metadata"
            ]
            owner["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            for found in self.objects.values():
                if any(
                    each["uid"] == owner["uid"]
                    for each in found["metadata"].get("ownerReferences") or []
                ):
                    del found["metadata"]["ownerReferences"]
                    found["metadata"]["resourceVersion"] = self._next()
        super()._answer(kind, *asked)


@pytest.mark.parametrize(
    ("adopts", "victim", "first"),
    [
        (False, BOT, ("list", "Deployment")),
        (False, BOT, ("apply", "Service")),
        (True, BOT, ("list", "Deployment")),
        (True, TEAM, ("get", "Secret")),
    ],
)
async def test_a_look_that_is_under_way_gives_no_orphan_its_owner_back(
    adopts: bool, victim: Key, first: tuple[str, str]
) -> None:
    world, _ = await with_a_key()
    if adopts:
        restored(world)
    cluster = OrphaningCluster()
    cluster.__dict__ |= vars(world.cluster)
    world.cluster = cluster
    cluster.victim = victim
    cluster.first = first
    world.restarted("image")
    with suppress(Retry, Conflict):
        await look(world, victim)
    assert cluster.first is None
    going = uid(world, victim.kind, victim.name)
    owned = [
        key
        for key, found in cluster.objects.items()
        if any(each["uid"] == going for each in found["metadata"].get("ownerReferences") or [])
    ]
    assert not owned, "the garbage collector deletes these, as their owner is no more"
