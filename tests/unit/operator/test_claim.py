"""Several installations that see the same namespace:
one of them works there, the others keep off and say so."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from llm_operator.observe import Outside
from llm_operator.ports.cluster import Refused
from llm_operator.reconcile import Done, Pace, reconcile
from llm_operator.reconcile.claim import CONFIG_MAP
from llm_operator.reconcile.keyfile import KIND as KEY_FILE
from llm_operator.state import Key
from unit.operator.fakes import IMAGE, NAMESPACE, World

BOT = Key("LLMDeployment", NAMESPACE, "bot")
TEAM = Key("ApiKey", NAMESPACE, "team")
ALL = (
    BOT,
    TEAM,
    Key(KEY_FILE, NAMESPACE, "bot"),
    Key("SecretCheck", NAMESPACE, "bot"),
    Key("Verdict", NAMESPACE, "bot"),
)


def installed(world: World, name: str) -> Outside:
    """An operator of an installation, with an image of its own."""
    return replace(world.restarted(f"{name}/{IMAGE}"), installation=f"{name}/llm-operator")


async def look(outside: Outside, *keys: Key) -> list[Done]:
    return [await reconcile(key, outside, Pace(60, 5)) for key in keys or ALL]


@pytest.fixture
async def world() -> World:
    made = World()
    await made.deploy()
    await made.put("ApiKey", "team", {"deployments": ["bot"]})
    return made


def images(world: World) -> set[str]:
    found = [o for (kind, _, _), o in world.cluster.objects.items() if kind == "Deployment"]
    return {
        each["spec"]["template"]["spec"]["containers"][0]["image"].partition("/")[0]
        for each in found
    }


async def test_the_first_has_the_namespace_and_another_touches_nothing_and_says_so_once(
    world: World,
) -> None:
    first = installed(world, "first")
    second = installed(world, "second")
    await look(first)
    before = copy.deepcopy(world.cluster.objects)
    for _ in range(2):
        done = await look(second)
    told = {key: found for key, found in world.cluster.objects.items() if key not in before}
    assert {key: found for key, found in world.cluster.objects.items() if key in before} == before
    assert sorted((e["involvedObject"]["kind"], e["reason"], e["count"]) for e in told.values()) == [
        ("ApiKey", "OtherInstallation", 1), ("LLMDeployment", "OtherInstallation", 1),
    ]  # fmt: skip
    assert "belongs to the operator of first/llm-operator" in next(iter(told.values()))["message"]
    assert [each.after_seconds for each in done[:2]] == [60, 60], "the namespace may be moved"
    assert all(each.gone for each in done[2:])


async def test_a_restart_and_an_upgrade_change_nothing_about_it(world: World) -> None:
    await look(installed(world, "first"))
    await look(installed(world, "second"))
    await look(installed(world, "first"))
    assert images(world) == {"first"}


async def test_a_namespace_moves_by_a_word_in_its_config_map(world: World) -> None:
    first = installed(world, "first")
    second = installed(world, "second")
    await look(first)
    await look(second)
    await world.cluster.patch(
        "ConfigMap", NAMESPACE, CONFIG_MAP, {"data": {"installation": "second/llm-operator"}}
    )
    await world.deploy(resources={"limits": {"cpu": "2"}})
    await look(first)
    assert images(world) == {"first"}
    assert len(world.cluster.named("Deployment")) == 1, "the first has stopped"
    await look(second)
    assert images(world) == {"second"}, (
        "whose candidate takes the place of one that had no ready pod"
    )


async def test_what_is_gone_claims_nothing(world: World) -> None:
    world.cluster.objects.clear()
    await look(installed(world, "first"))
    assert world.cluster.named("ConfigMap") == []


async def test_a_claim_that_is_refused_leaves_nobody_without_an_operator(world: World) -> None:
    world.cluster.faults["create", "ConfigMap", CONFIG_MAP] = Refused("exceeded quota")
    await look(installed(world, "first"))
    assert images(world) == {"first"}
