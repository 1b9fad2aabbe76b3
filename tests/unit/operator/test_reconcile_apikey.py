"""ApiKeys: one key per ApiKey, whatever crashes in between."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest

from llm_operator.ports.cluster import Refused
from llm_operator.ports.registry import Reference
from llm_operator.reconcile import Done, Pace, Retry, reconcile
from llm_operator.state import Connection, Key, ModelVersion
from llm_runtime.contract import KeyFile, hash_key, key_id_of
from unit.operator.fakes import NAMESPACE, FakeRegistry, World

PACE = Pace(verify_seconds=60, settle_seconds=5)
TEAM = Key("ApiKey", NAMESPACE, "team")
BOT = Key("LLMDeployment", NAMESPACE, "bot")
FILE = Key("KeyFile", NAMESPACE, "bot")


async def look(world: World, key: Key = TEAM) -> Done:
    return await reconcile(key, world.outside, PACE)


def issued(world: World, name: str = "team-llm-key") -> str:
    return base64.b64decode(
        world.cluster.objects["Secret", NAMESPACE, name]["data"]["api-key"]
    ).decode()


def known(world: World) -> dict[str, Any]:
    return dict(
        json.loads(
            base64.b64decode(
                world.cluster.objects["Secret", NAMESPACE, "bot-keys"]["data"]["keys.json"]
            )
        )
    )


async def test_a_key_is_issued_and_wakes_its_deployments() -> None:
    world = World()
    await world.deploy()
    await world.put("ApiKey", "team", {"deployments": ["bot"], "owner": "web"})
    assert BOT in (await look(world)).wake
    await look(world, BOT)
    uid = world.cluster.objects["LLMDeployment", NAMESPACE, "bot"]["metadata"]["uid"]
    file = KeyFile.model_validate(known(world))
    assert file.keys[0].digest == hash_key(issued(world), uid)
    assert file.keys[0].id == key_id_of(issued(world))
    assert issued(world) not in json.dumps(world.status("team", "ApiKey"))


async def test_a_crash_after_the_secret_issues_no_second_key() -> None:
    world = World()
    await world.put("ApiKey", "team", {"deployments": ["bot"]})
    await look(world)
    first = issued(world)
    del world.cluster.objects["ApiKey", NAMESPACE, "team"]["status"]
    world.restarted("image")
    await look(world)
    assert issued(world) == first


async def test_a_quiet_key_is_not_written_and_wakes_nobody() -> None:
    world = World()
    await world.deploy()
    await world.put("ApiKey", "team", {"deployments": ["bot"]})
    await look(world)
    world.cluster.writes.clear()
    assert (await look(world)).wake == ()
    assert world.cluster.writes == []


async def test_a_deleted_key_lets_every_deployment_of_the_namespace_look() -> None:
    world = World()
    await world.deploy()
    await world.put("ApiKey", "team", {"deployments": ["bot"]})
    await look(world)
    await look(world, BOT)
    del world.cluster.objects["ApiKey", NAMESPACE, "team"]
    assert (await look(world)).wake == (FILE, BOT), "the key file first"
    await look(world, BOT)
    assert known(world)["keys"] == []


class SilentRegistry(FakeRegistry):
    """Answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.asks = asyncio.Event()
        self.answers = asyncio.Event()

    async def resolve(self, connection: Connection, reference: Reference) -> ModelVersion:
        self.asks.set()
        await self.answers.wait()
        return await super().resolve(connection, reference)


async def test_a_revocation_does_not_wait_for_a_silent_registry_and_is_not_undone_when_it_answers() -> (
    None
):
    world = await world_with_a_pod()
    await world.put("ApiKey", "team", {"deployments": ["bot"]})
    await look(world)
    await look(world, BOT)
    before = world.cluster.objects["Pod", NAMESPACE, "pod"]["metadata"]["annotations"]
    world.registry = registry = SilentRegistry()
    world.restarted("image")
    looking = asyncio.create_task(look(world, BOT))
    await registry.asks.wait()
    del world.cluster.objects["ApiKey", NAMESPACE, "team"]
    await look(world, FILE)
    assert known(world)["keys"] == []
    assert world.cluster.objects["Pod", NAMESPACE, "pod"]["metadata"]["annotations"] != before, (
        "the pods are told"
    )
    registry.answers.set()
    await looking
    assert known(world)["keys"] == []
    world.cluster.writes.clear()
    await look(world, BOT)
    await look(world, FILE)
    assert world.cluster.writes == [], "both write the same, and tell the pods once"


async def test_a_revocation_needs_no_valid_specification() -> None:
    world = World()
    await world.deploy(
        access={"tiers": [{"name": "gold", "requestsPerMinute": 5}], "defaultTier": "gold"}
    )
    await world.put("ApiKey", "team", {"deployments": ["bot"]})
    await look(world)
    await look(world, BOT)
    file = known(world)
    await world.put("LLMDeployment", "bot", {"model": "nonsense"})
    await look(world, BOT)
    await world.put("ApiKey", "team", {"deployments": ["bot"], "suspended": True})
    await look(world, FILE)
    assert known(world)["keys"][0]["suspended"]
    assert {**known(world), "keys": file["keys"]} == file, "all else is as it was"


async def test_changed_keys_leave_the_operators_own_and_the_adapters() -> None:
    world = World()
    await world.deploy(
        rollout={"strategy": "Rolling", "gates": [{"smokePrompts": {"configMap": "greet"}}]}
    )
    await look(world, BOT)
    own = known(world)["keys"]
    assert [key["name"] for key in own] == [f"{NAMESPACE}/bot-operator-key"]
    await world.put("ApiKey", "team", {"deployments": ["bot"]})
    await look(world)
    await look(world, FILE)
    assert own[0] in known(world)["keys"]
    assert len(known(world)["keys"]) == 2
    assert "adapters.json" in world.cluster.objects["Secret", NAMESPACE, "bot-keys"]["data"]


async def test_a_key_file_that_is_not_there_is_left_to_its_deployment() -> None:
    world = World()
    await look(world, FILE)
    await world.deploy()
    await look(world, FILE)
    foreign = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "bot-keys", "namespace": NAMESPACE},
    }
    await world.cluster.create({**foreign, "data": {"keys.json": "e30="}})
    await look(world, FILE)
    assert world.cluster.objects["Secret", NAMESPACE, "bot-keys"]["data"] == {"keys.json": "e30="}


async def test_an_apikey_that_cannot_be_read_opens_nothing_and_stops_no_other() -> None:
    world = World()
    await world.deploy()
    await world.put("ApiKey", "team", {"deployments": ["bot"]})
    await look(world)
    await world.put("ApiKey", "odd", {"deployments": ["bot"], "expiresAt": "some day"})
    await look(world, BOT)
    assert [key["name"] for key in known(world)["keys"]] == [f"{NAMESPACE}/team"]
    await look(world, Key("ApiKey", NAMESPACE, "odd"))
    assert "expiresAt" in world.condition("Ready", "odd", "ApiKey")["message"]


async def test_a_key_that_names_its_deployments_asks_for_no_other() -> None:
    """A namespace may have thousands, and each of its keys is looked at every minute."""
    world = World()
    await world.deploy()
    world.cluster.faults["list", "LLMDeployment"] = Refused("too many")
    await world.put("ApiKey", "team", {"deployments": ["bot"]})
    await look(world)
    assert world.condition("Ready", "team", "ApiKey")["reason"] == "Issued"
    await world.put("ApiKey", "team", {"deployments": ["other"]})
    await look(world)
    assert world.condition("Ready", "team", "ApiKey")["reason"] == "DeploymentNotFound"


async def test_a_deployment_that_cannot_be_read_stops_no_key() -> None:
    world = World()
    await world.deploy()
    await world.put("LLMDeployment", "odd", {"access": {"tiers": "many"}})
    await world.put("ApiKey", "team", {"deployments": ["bot"]})
    await look(world)
    assert world.condition("Ready", "team", "ApiKey")["status"] == "True"


async def test_an_expired_key_is_carried_with_its_expiry() -> None:
    world = World()
    await world.deploy()
    await world.put("ApiKey", "team", {"deployments": ["bot"], "expiresAt": "2026-01-01T00:01:00Z"})
    done = await look(world)
    assert done.after_seconds == 60
    await look(world, BOT)
    assert known(world)["keys"][0]["expiresAt"].startswith("2026-01-01T00:01:00")
    world.clock.pass_seconds(61)
    await look(world)
    assert world.condition("Ready", "team", "ApiKey")["reason"] == "Expired"


async def test_a_foreign_secret_is_left_alone() -> None:
    world = World()
    foreign = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "team-llm-key", "namespace": NAMESPACE},
    }
    await world.cluster.create({**foreign, "data": {"password": "eA=="}})
    await world.put("ApiKey", "team", {"deployments": ["bot"]})
    await look(world)
    assert world.condition("Stalled", "team", "ApiKey")["reason"] == "SecretNameTaken"
    assert world.cluster.objects["Secret", NAMESPACE, "team-llm-key"]["data"] == {
        "password": "eA=="
    }


async def world_with_a_pod() -> World:
    """A deployment, and one pod of its first revision."""
    world = World()
    await world.deploy()
    await look(world, BOT)
    revision = world.status()["candidate"]["revision"]
    labels = {"llm-operator.dev/deployment": "bot", "llm-operator.dev/revision": revision}
    meta = {"name": "pod", "namespace": NAMESPACE, "labels": labels}
    await world.cluster.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta})
    return world


async def test_pods_are_nudged_once_per_change_of_the_keys() -> None:
    world = await world_with_a_pod()
    await look(world, BOT)
    before = world.cluster.objects["Pod", NAMESPACE, "pod"]["metadata"]["annotations"][
        "llm-operator.dev/keys"
    ]
    await world.put("ApiKey", "team", {"deployments": ["bot"]})
    await look(world)
    world.cluster.writes.clear()
    world.cluster.refuses = {"ServiceAccount", "Service", "Deployment"}
    with pytest.raises(Retry):
        await look(world, BOT)
    after = world.cluster.objects["Pod", NAMESPACE, "pod"]["metadata"]["annotations"][
        "llm-operator.dev/keys"
    ]
    assert after != before, "a key's revocation waits for no other object"
    assert [name for _, _, name in world.cluster.writes][:2] == ["bot-keys", "pod"]
    world.cluster.refuses = set()
    await look(world, BOT)
    world.cluster.writes.clear()
    await look(world, BOT)
    assert world.cluster.writes == []


async def test_a_pod_that_may_not_be_told_holds_up_nothing_else() -> None:
    world = await world_with_a_pod()
    world.cluster.refuses = {"Pod"}
    await world.put("ApiKey", "team", {"deployments": ["bot"]})
    await look(world)
    with pytest.raises(Retry, match="pod pod could not be told of changed keys"):
        await look(world, BOT)
    assert known(world)["keys"], "the Secret is written all the same"
    assert world.condition("Applied")["reason"] == "ApplyFailed"
