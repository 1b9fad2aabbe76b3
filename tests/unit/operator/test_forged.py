"""Objects that only say they are an LLMDeployment's,
and Secrets that are others between a look and a write."""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
from contextlib import suppress
from typing import Any

import pytest

from llm_operator import observe
from llm_operator.plans import names
from llm_operator.reconcile import Pace, Retry, reconcile
from llm_operator.settings import Choice, PodPolicy
from llm_operator.state import Key, Manifest
from unit.operator.fakes import NAMESPACE, FakeCluster, World
from unit.operator.test_rollout_gates import look, world_with_prompts

BOT = Key("LLMDeployment", NAMESPACE, "bot")


async def served() -> tuple[World, Manifest]:
    """Version 1 serves; also the resource."""
    world = World()
    await world.deploy()
    await look(world, 3)
    return world, world.cluster.objects["LLMDeployment", NAMESPACE, "bot"]


async def test_a_deployment_with_our_label_and_owner_is_not_taken_for_the_revisions() -> None:
    world, resource = await served()
    revision = world.status()["stable"]["revision"]
    forged = copy.deepcopy(world.cluster.objects["Deployment", NAMESPACE, f"bot-{revision}"])
    forged["metadata"] |= {"name": "aaa"}
    world.cluster._store("forge", ("Deployment", NAMESPACE, "aaa"), forged)
    found = (await observe.deployment(world.outside, resource)).revisions[revision].deployment
    assert found
    assert found["metadata"]["name"] == f"bot-{revision}"


@pytest.mark.parametrize("name", ["bot-registry", "bot-keys"])
async def test_a_secret_that_was_there_before_adds_nothing_of_its_own(name: str) -> None:
    world = World()
    await world.deploy()
    meta = observe.meta_of(world.cluster.objects["LLMDeployment", NAMESPACE, "bot"])
    theirs = {"LLM_ARTIFACT_HOSTS": base64.b64encode(b"elsewhere.example.com").decode()}
    await world.cluster.create(
        {"kind": "Secret", "metadata": names.metadata(meta, name), "data": theirs}
    )
    await look(world, 3)
    assert theirs.keys().isdisjoint(world.cluster.objects["Secret", NAMESPACE, name]["data"])
    assert world.condition("Ready")["status"] == "True"


async def forged_memory(privileged: str) -> Manifest:
    """A revision's ConfigMap with the operator's labels,
    as anybody could write it who knows the specification."""
    world, _ = await served()
    config = copy.deepcopy(
        world.cluster.objects["ConfigMap", NAMESPACE, f"bot-{world.status()['stable']['revision']}"]
    )
    template = json.loads(config["data"]["template.json"])
    template["spec"][privileged] = True
    config["data"]["template.json"] = json.dumps(template)
    config["metadata"] = {
        name: config["metadata"][name] for name in ("name", "namespace", "labels")
    }
    return config


def pod_of(world: World, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = world.cluster.objects["Deployment", NAMESPACE, name]["spec"]["template"][
        "spec"
    ]
    return spec


async def test_a_template_that_was_there_before_its_revision_makes_no_pod() -> None:
    config = await forged_memory("hostNetwork")
    world = World()
    await world.cluster.create(config)
    await world.deploy()
    await look(world, 3)
    assert "hostNetwork" not in pod_of(world, config["metadata"]["name"])
    assert world.condition("Ready")["status"] == "True"
    kept = world.cluster.objects["ConfigMap", NAMESPACE, config["metadata"]["name"]]
    assert "hostNetwork" not in kept["data"]["template.json"]


async def test_a_template_that_is_swapped_changes_no_pod_and_is_put_right() -> None:
    config = await forged_memory("hostNetwork")
    name = config["metadata"]["name"]
    world, _ = await served()
    await world.cluster.delete(
        "ConfigMap",
        NAMESPACE,
        name,
        world.cluster.objects["ConfigMap", NAMESPACE, name]["metadata"]["uid"],
    )
    await world.cluster.create(config)
    await look(world, 3)
    assert "hostNetwork" not in pod_of(world, name)
    kept = world.cluster.objects["ConfigMap", NAMESPACE, name]
    assert "hostNetwork" not in kept["data"]["template.json"]


@pytest.mark.parametrize("text", ["", "[]", "{", None])
async def test_a_memory_that_can_not_be_read_is_put_right(text: str | None) -> None:
    world, _ = await served()
    name = f"bot-{world.status()['stable']['revision']}"
    config = world.cluster.objects["ConfigMap", NAMESPACE, name]
    config["data"] = {} if text is None else {"config.json": text, "template.json": text}
    await look(world, 3)
    assert json.loads(world.cluster.objects["ConfigMap", NAMESPACE, name]["data"]["template.json"])[
        "spec"
    ]
    assert world.condition("Ready")["status"] == "True"


async def test_a_forged_memory_does_not_go_round_the_platforms_policy() -> None:
    world, _ = await served()
    await world.deploy(pod={"priorityClassName": "system-node-critical"})
    await look(world, 1)
    assert world.condition("Ready")["reason"] == "NotPermitted"
    allowed = World()
    allowed.outside = dataclasses.replace(
        allowed.outside, policy=PodPolicy(priority_classes=Choice())
    )
    await allowed.deploy(pod={"priorityClassName": "system-node-critical"})
    await look(allowed, 3)
    name = f"bot-{allowed.status()['stable']['revision']}"
    config = copy.deepcopy(allowed.cluster.objects["ConfigMap", NAMESPACE, name])
    config["metadata"] = {
        each: config["metadata"][each] for each in ("name", "namespace", "labels")
    }
    await world.cluster.create(config)
    await look(world, 2)
    assert world.condition("Ready")["reason"] == "NotPermitted"
    assert ("Deployment", NAMESPACE, name) not in world.cluster.objects


class Swapping(FakeCluster):
    """Somebody puts a Secret of their own in the place of one that was just read."""

    swapped: str = ""

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        found = await super().get(kind, namespace, name)
        if found and name == self.swapped:
            theirs: dict[str, Any] = {
                "kind": kind,
                "metadata": {"name": name, "namespace": namespace},
                "data": {},
            }
            del self.objects[kind, namespace, name]
            self.objects[kind, namespace, name] = {**theirs, "metadata": {**theirs["metadata"], "uid": "theirs",
                                                                         "resourceVersion": self._next()}}  # fmt: skip
            self.swapped = ""
        return found


async def test_a_secret_that_is_swapped_after_the_look_is_not_written_to() -> None:
    world, _ = await served()
    world.cluster.__class__ = Swapping
    assert isinstance(world.cluster, Swapping)
    world.outside.memory.given.clear()
    await world.deploy(access={"tiers": [{"name": "standard", "requestsPerMinute": 5}]})
    world.cluster.swapped = "bot-keys"
    for _ in range(2):
        with suppress(Retry):
            await reconcile(BOT, world.outside, Pace(60, 5))
    assert world.condition("Stalled")["reason"] == "NameTaken"
    found = world.cluster.objects["Secret", NAMESPACE, "bot-keys"]
    assert (found["metadata"]["uid"], found["data"]) == ("theirs", {})


async def test_a_pod_that_only_has_the_labels_gets_no_key_and_judges_nothing() -> None:
    world = await world_with_prompts()
    world.pods.asked.clear()
    await reconcile(BOT, world.outside, Pace(60, 5))
    for name in world.cluster.named("Deployment"):
        world.cluster.play(name)
    for (kind, _, _), found in world.cluster.objects.items():
        if kind == "Pod":
            found["metadata"].pop("ownerReferences", None)
    for _ in range(3):
        await reconcile(BOT, world.outside, Pace(60, 5))
    assert world.pods.asked == []
    assert "candidate's Deployment" in world.status()["candidate"]["gates"][0]["message"]


class Coming(FakeCluster):
    """Somebody makes an object of theirs just before one of ours of that name arrives."""

    coming: tuple[str, str] = ("", "")

    async def create(self, manifest: Manifest) -> Manifest:
        kind = manifest["kind"]
        meta = manifest["metadata"]
        key = (kind, meta["namespace"], meta["name"])
        if (kind, meta["name"]) == self.coming and key not in self.objects:
            about = {"name": meta["name"], "namespace": meta["namespace"], "uid": "theirs"}
            self._store("theirs", key, {"kind": kind, "metadata": about})
        return await super().create(manifest)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("ServiceAccount", "bot"),
        ("Secret", "bot-registry"),
        ("Secret", "bot-keys"),
        ("ConfigMap", ""),
        ("Service", "bot"),
    ],
)
async def test_what_somebody_makes_after_the_look_is_not_taken_over(kind: str, name: str) -> None:
    if not name:
        (name,) = (await served())[0].cluster.named("ConfigMap")
    world = World()
    world.cluster.__class__ = Coming
    assert isinstance(world.cluster, Coming)
    world.cluster.coming = (kind, name)
    await world.deploy()
    for _ in range(3):
        with suppress(Retry):
            await reconcile(BOT, world.outside, Pace(60, 5))
    found = world.cluster.objects[kind, NAMESPACE, name]
    assert (found["metadata"]["uid"], found["metadata"].get("ownerReferences")) == ("theirs", None)
    assert world.condition("Stalled")["reason"] == "NameTaken"
    assert kind == "Service" or not world.cluster.named("Deployment"), "pods would use it"


@pytest.mark.parametrize("name", ["bot-registry", "bot-keys"])
@pytest.mark.parametrize(
    "fixed", [{"immutable": True}, {"type": "example.com/theirs"}], ids=["immutable", "type"]
)
async def test_a_secret_that_nobody_can_change_is_made_anew(
    name: str, fixed: dict[str, Any]
) -> None:
    """With our owner, and keys or hosts of their own: neither would ever be revoked."""
    world = World()
    await world.deploy()
    meta = observe.meta_of(world.cluster.objects["LLMDeployment", NAMESPACE, "bot"])
    theirs = {"keys.json": base64.b64encode(b'{"salt": "", "keys": []}').decode(), "theirs": "eA=="}
    await world.cluster.create(
        {"kind": "Secret", "metadata": names.metadata(meta, name), "data": theirs, **fixed}
    )
    await look(world, 3)
    found = world.cluster.objects["Secret", NAMESPACE, name]
    assert found["data"].get("keys.json") != theirs["keys.json"]
    assert "theirs" not in found["data"]
    assert (found.get("immutable"), found["type"]) == (None, "Opaque")
    assert world.condition("Ready")["status"] == "True"


async def test_the_operators_own_key_is_not_written_into_what_came_in_its_place() -> None:
    world = await world_with_prompts()
    restored = world.cluster.objects["Secret", NAMESPACE, "bot-operator-key"]
    restored["metadata"].pop("ownerReferences")
    world.cluster.__class__ = Swapping
    assert isinstance(world.cluster, Swapping)
    world.cluster.swapped = "bot-operator-key"
    with suppress(Retry):
        await reconcile(BOT, world.outside, Pace(60, 5))
    found = world.cluster.objects["Secret", NAMESPACE, "bot-operator-key"]
    assert (found["metadata"]["uid"], found["data"]) == ("theirs", {})
