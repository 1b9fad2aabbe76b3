"""spec.model.uri: a model that is in no registry. Everything that knows MLflow does without it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_operator.crds import LLMDeploymentSpec
from llm_operator.plans.objects import source
from llm_operator.plans.objects.revision import revision_id
from llm_operator.poll import Poll
from llm_operator.ports.registry import CachedRegistry
from llm_operator.reconcile import Done, Pace, reconcile
from llm_operator.state import Key
from unit.operator.fakes import NAMESPACE, World

PACE = Pace(verify_seconds=60, settle_seconds=5)
COMMIT = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
HUB = f"hf://HuggingFaceTB/SmolLM2-135M-Instruct@{COMMIT}"


async def look(world: World) -> Done:
    return await reconcile(Key("LLMDeployment", NAMESPACE, "bot"), world.outside, PACE)


async def serving(world: World, model: dict[str, Any]) -> str:
    """An LLMDeployment that serves `model`; returns its revision."""
    await world.deploy(model=model)
    await look(world)
    revision = str(world.status()["candidate"]["revision"])
    world.cluster.play(f"bot-{revision}")
    await look(world)
    assert world.condition("Ready")["status"] == "True"
    return revision


def config(world: World, revision: str) -> dict[str, Any]:
    data = world.cluster.objects["ConfigMap", NAMESPACE, f"bot-{revision}"]["data"]
    return dict(json.loads(data["config.json"])["model"])


def pod_spec(world: World, revision: str) -> dict[str, Any]:
    return dict(
        world.cluster.objects["Deployment", NAMESPACE, f"bot-{revision}"]["spec"]["template"][
            "spec"
        ]
    )


@pytest.mark.parametrize(
    ("uri", "name", "path"),
    [
        (HUB, "HuggingFaceTB/SmolLM2-135M-Instruct", None),
        ("pvc://weights/bot/3/", "3", "/mnt/claims/weights/bot/3"),
        ("pvc://weights", "weights", "/mnt/claims/weights"),
        ("file:///models/bot", "bot", None),
        ("s3://models/bot/3", "3", None),
    ],
)
async def test_the_pods_are_told_where_the_files_are(uri: str, name: str, path: str | None) -> None:
    world = World()
    revision = await serving(world, {"uri": uri})
    told = config(world, revision)
    pod = pod_spec(world, revision)
    assert (told["uri"], told.keys() & {"mlflow", "path"}) == (uri, set())
    for container in (*pod["initContainers"], *pod["containers"]):
        assert {each["name"]: each.get("value") for each in container["env"]}.get(
            "MODEL_PATH"
        ) == path
    assert world.status()["model"]["name"] == name
    assert world.status()["model"]["source"] == uri
    assert world.registry.asked == 0


def test_a_commit_is_the_version_and_anything_else_a_digest_of_its_address() -> None:
    assert source.version(HUB).version == COMMIT[:12]
    three = source.version("s3://models/bot/3")
    four = source.version("s3://models/bot/4")
    assert three.version != four.version
    assert len(three.version) == 12


async def test_nothing_of_mlflow_is_left_in_status_pod_or_secrets() -> None:
    world = World()
    revision = await serving(world, {"uri": HUB, "credentialsSecretRef": {"name": "hub"}})
    kinds = [each["type"] for each in world.status()["conditions"]]
    assert "RegistryReachable" not in kinds
    assert "connection" not in world.status()["model"]
    assert world.cluster.named("Secret") == ["bot-keys"]
    pod = pod_spec(world, revision)
    assert [volume["name"] for volume in pod["volumes"]] == [
        "config",
        "keys",
        "models",
        "fetch-tmp",
        "tmp",
    ]
    (fetch,), (runtime,) = pod["initContainers"], pod["containers"]
    assert fetch["envFrom"] == [{"secretRef": {"name": "hub"}}]
    assert [each["name"] for each in fetch["env"]] == ["HOME"]
    assert "envFrom" not in runtime


async def test_a_claim_is_mounted_read_only_in_both_containers() -> None:
    world = World()
    revision = await serving(world, {"uri": "pvc://weights/bot"})
    pod = pod_spec(world, revision)
    claim = {"claimName": "weights", "readOnly": True}
    assert {"name": "source", "persistentVolumeClaim": claim} in pod["volumes"]
    for container in (*pod["initContainers"], *pod["containers"]):
        mount = {"name": "source", "mountPath": "/mnt/claims/weights", "readOnly": True}
        assert mount in container["volumeMounts"]


async def test_another_address_is_another_revision_and_rolls_out() -> None:
    world = World()
    old = await serving(world, {"uri": "s3://models/bot/3"})
    new = await serving(world, {"uri": "s3://models/bot/4"})
    assert old != new
    assert world.selected() == new


async def test_from_the_registry_to_a_uri_and_back() -> None:
    world = World()
    first = await serving(world, {"mlflow": {"name": "bot", "alias": "champion"}})
    await serving(world, {"uri": HUB})
    world.clock.pass_seconds(10)
    await look(world)
    await serving(world, {"mlflow": {"name": "bot", "alias": "champion"}})
    assert world.selected() == first
    assert world.status()["model"]["connection"] == "default"
    assert world.condition("RegistryReachable")["status"] == "True"


@pytest.mark.parametrize("uri", [HUB, "pvc://weights/bot", "file:///models/bot"])
async def test_a_lost_status_is_read_off_the_service(uri: str) -> None:
    world = World()
    revision = await serving(world, {"uri": uri})
    version = world.status()["stable"]["version"]
    del world.cluster.objects["LLMDeployment", NAMESPACE, "bot"]["status"]
    await look(world)
    await look(world)
    assert (world.status()["stable"]["revision"], world.status()["stable"]["version"]) == (
        revision,
        version,
    )


async def test_a_deleted_child_is_made_again() -> None:
    world = World()
    revision = await serving(world, {"uri": HUB})
    before = config(world, revision)
    await world.cluster.delete("ConfigMap", NAMESPACE, f"bot-{revision}")
    await look(world)
    assert config(world, revision) == before


async def test_the_poll_asks_no_registry_for_it() -> None:
    world = World()
    await serving(world, {"uri": HUB})
    woken: list[Key] = []

    registry = CachedRegistry(world.registry, 30, 5)
    await Poll(world.cluster, registry, world.connections, woken.append, ()).look()
    assert woken == []


async def test_a_second_look_writes_nothing() -> None:
    world = World()
    await serving(world, {"uri": HUB})
    world.cluster.writes.clear()
    await look(world)
    assert world.cluster.writes == []


def test_credentials_shape_the_pods_and_their_absence_changes_no_revision() -> None:
    def revision(model: dict[str, Any]) -> str:
        spec = LLMDeploymentSpec.model_validate({"model": model})
        return revision_id(spec, source.version(HUB))

    assert revision({"uri": HUB}) == revision({"uri": HUB, "credentialsSecretRef": None})
    assert revision({"uri": HUB}) != revision({"uri": HUB, "credentialsSecretRef": {"name": "hub"}})


async def test_the_cache_s_bound_reaches_the_pods_in_bytes_and_nonsense_is_told() -> None:
    world = World()
    claim = {"claimName": "models"}
    await world.deploy(
        model={"uri": HUB}, modelCache={"persistentVolumeClaim": claim, "maxSize": "2Gi"}
    )
    await look(world)
    (name,) = world.cluster.named("ConfigMap")
    told = json.loads(world.cluster.objects["ConfigMap", NAMESPACE, name]["data"]["config.json"])
    assert told["modelCacheBytes"] == 2 << 30
    await world.deploy(
        model={"uri": HUB}, modelCache={"persistentVolumeClaim": claim, "maxSize": "0"}
    )
    await look(world)
    assert (
        world.condition("Ready")["reason"],
        "write a size above zero" in world.condition("Ready")["message"],
    ) == (
        "InvalidSpec",
        True,
    )
