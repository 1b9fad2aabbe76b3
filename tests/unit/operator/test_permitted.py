"""A connection belongs to somebody: who may use it, what others are told,
and which account the pods are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_operator.plans.objects import keys
from llm_operator.poll import Poll
from llm_operator.ports.cluster import Unavailable
from llm_operator.ports.registry import CachedRegistry, read_connection
from llm_operator.reconcile import Pace, reconcile
from llm_operator.settings import ConnectionSettings, Settings
from llm_operator.state import Key
from llm_runtime import contract
from unit.operator.fakes import NAMESPACE, URI, World

PACE = Pace(verify_seconds=60, settle_seconds=5)
KEY = Key("LLMDeployment", NAMESPACE, "bot")
REFUSED = "ConnectionNotPermitted"
ADAPTER = [{"name": "legal", "mlflow": {"name": "bot", "alias": "champion", "connection": "other"}}]


def account(folder: Path, user: str) -> Path:
    folder.mkdir()
    (folder / "username").write_text(user)
    (folder / "password").write_text(f"password of {user}")
    return folder


def guarded(tmp_path: Path, **more: Any) -> ConnectionSettings:
    return ConnectionSettings(
        tracking_uri=URI, credentials_folder=account(tmp_path / "operator", "operator"), **more
    )


def label(world: World, **labels: str) -> None:
    world.cluster.objects["Namespace", "", NAMESPACE] = {
        "kind": "Namespace",
        "metadata": {"labels": labels},
    }


async def look(world: World) -> None:
    for name in world.cluster.named("Deployment"):
        world.cluster.play(name)
    await reconcile(KEY, world.outside, PACE)


def credentials(world: World) -> dict[str, str]:
    secret = world.cluster.objects["Secret", NAMESPACE, "bot-registry"]
    return {name: keys.decode(secret, name) or "" for name in secret["data"]}


async def test_another_namespace_gets_neither_model_nor_credentials(tmp_path: Path) -> None:
    world = World()
    world.connections.known = {"default": guarded(tmp_path, namespaces=["team-a"])}
    await world.deploy()
    await look(world)
    assert (
        world.condition("ModelResolved")["reason"]
        == world.condition("Stalled")["reason"]
        == REFUSED
    )
    assert "connections.default.namespaces" in world.condition("Ready")["message"]
    assert (world.registry.asked, credentials(world)) == (0, {})
    assert not world.cluster.named("Deployment")
    world.connections.known = {"default": guarded_again(tmp_path, namespaces=["team-a", NAMESPACE])}
    await look(world)
    assert credentials(world)[contract.ENV_MLFLOW_USERNAME] == "operator"


def guarded_again(tmp_path: Path, **more: Any) -> ConnectionSettings:
    return ConnectionSettings(tracking_uri=URI, credentials_folder=tmp_path / "operator", **more)


@pytest.mark.parametrize(
    ("who", "allowed"),
    [
        ({}, True),
        ({"namespaces": ["*"]}, True),
        ({"namespaces": []}, False),
        ({"namespaces": ["other"]}, False),
        ({"namespaces": ["tea", "team2", "te*"]}, False),
        ({"namespace_selector": {"matchLabels": {"models": "internal"}}}, True),
        ({"namespace_selector": {"matchLabels": {"models": "internal", "tier": "1"}}}, False),
        (
            {
                "namespaces": ["other"],
                "namespace_selector": {"matchLabels": {"models": "internal"}},
            },
            True,
        ),
    ],
)
async def test_who_may(who: dict[str, Any], allowed: bool) -> None:
    world = World()
    label(world, models="internal")
    world.connections.known = {"default": ConnectionSettings(tracking_uri=URI, **who)}
    await world.deploy()
    await look(world)
    assert bool(world.cluster.named("Deployment")) is allowed


async def test_a_namespace_that_can_not_be_looked_at_opens_nothing() -> None:
    world = World()
    selector = {"matchLabels": {"models": "internal"}}
    world.connections.known = {
        "default": ConnectionSettings(tracking_uri=URI, namespace_selector=selector)
    }
    world.cluster.faults["get", "Namespace"] = Unavailable("the API server does not answer")
    await world.deploy()
    with pytest.raises(Unavailable):
        await look(world)
    assert not world.cluster.named("Deployment")


async def test_what_runs_goes_on_when_the_connection_is_withdrawn(tmp_path: Path) -> None:
    world = World()
    world.connections.known = {"default": guarded(tmp_path)}
    await world.deploy()
    await look(world)
    await look(world)
    world.connections.known = {"default": guarded_again(tmp_path, namespaces=[])}
    world.registry.aliases["bot"]["champion"] = "2"
    await look(world)
    assert (world.condition("RegistryReachable")["reason"], world.condition("Ready")["status"]) == (
        REFUSED,
        "True",
    )
    assert world.status()["stable"]["version"] == "1"
    await world.deploy(engine={"maxBatchSize": 8})
    await look(world)
    assert world.condition("Ready")["reason"] == REFUSED
    assert len(world.cluster.named("Deployment")) == 1


async def test_an_adapter_of_a_connection_that_is_not_for_the_namespace_is_not_fetched(
    tmp_path: Path,
) -> None:
    world = World()
    world.connections.known |= {"other": guarded(tmp_path, namespaces=["team-a"])}
    await world.deploy(adapters=ADAPTER)
    await look(world)
    await look(world)
    assert world.condition("AdaptersReady")["reason"] == REFUSED
    assert world.condition("Ready")["status"] == "True"
    secret = world.cluster.objects["Secret", NAMESPACE, "bot-adapters"]
    assert keys.decode(secret, contract.REGISTRIES_FILE) == "{}"


async def test_the_poll_wakes_what_is_shut_out_or_let_in_and_not_what_is_known() -> None:
    world = World()
    woken = list[Key]()
    await world.deploy()
    await look(world)
    await look(world)
    registry = CachedRegistry(world.registry, keep_seconds=0, rest_seconds=0)
    poll = Poll(world.cluster, registry, world.connections, woken.append, ())
    await poll.look()
    assert woken == []
    for namespaces in ([], ["*"]):
        world.connections.known = {
            "default": ConnectionSettings(tracking_uri=URI, namespaces=namespaces)
        }
        await poll.look()
        assert woken == [KEY]
        await look(world)
        woken.clear()
        await poll.look()
        assert woken == []


def test_pods_are_given_their_own_account_and_never_the_operators(tmp_path: Path) -> None:
    reader = account(tmp_path / "pods", "reader")
    found = read_connection(
        "default", {"default": guarded(tmp_path, pod_credentials_folder=reader)}
    )
    assert (found.username, found.for_pods.username, found.for_pods.password) == (
        "operator", "reader", "password of reader",
    )  # fmt: skip
    (reader / "username").unlink()
    (reader / "password").unlink()
    found = read_connection(
        "default", {"default": guarded_again(tmp_path, pod_credentials_folder=reader)}
    )
    assert (found.for_pods.username, found.for_pods.password) == ("", "")


async def test_neither_secret_beside_the_pods_has_the_operators_account(tmp_path: Path) -> None:
    world = World()
    settings = guarded(tmp_path, pod_credentials_folder=account(tmp_path / "pods", "reader"))
    world.connections.known = {"default": settings, "other": settings}
    await world.deploy(adapters=ADAPTER)
    await look(world)
    secrets = [found for (kind, _, _), found in world.cluster.objects.items() if kind == "Secret"]
    told = " ".join(
        keys.decode(secret, name) or "" for secret in secrets for name in secret["data"]
    )
    assert "password of reader" in told
    assert "password of operator" not in told


def test_an_open_connection_with_credentials_is_told_at_the_start(tmp_path: Path) -> None:
    def told(connection: ConnectionSettings) -> list[str]:
        return Settings(runtime_image="i", connections={"default": connection}).warnings()

    open_to_all = guarded(tmp_path)
    assert ["every namespace" in told(open_to_all)[0], "own account" in told(open_to_all)[1]] == [
        True,
        True,
    ]
    assert not told(ConnectionSettings(tracking_uri=URI))
    assert not told(guarded_again(tmp_path, namespaces=["*"], pod_credentials_folder=tmp_path))


async def test_a_connection_that_is_not_there_tells_no_name_of_others() -> None:
    world = World()
    world.connections.known = {
        "ours": ConnectionSettings(tracking_uri=URI, namespaces=(NAMESPACE,)),
        "merger-with-acme": ConnectionSettings(tracking_uri=URI, namespaces=("team-a",)),
    }
    await world.deploy(model={"mlflow": {"name": "bot", "alias": "champion", "connection": "no"}})
    await look(world)
    said = world.condition("ModelResolved")["message"]
    assert "it has: ours)" in said
    assert "merger" not in said
