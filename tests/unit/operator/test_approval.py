"""updatePolicy Manual: a moved alias is told and waits for a word."""

from __future__ import annotations

from typing import Any

import pytest

from llm_operator.ports.registry import RegistryUnreachable
from llm_operator.reconcile import Pace, reconcile
from llm_operator.state import Key
from unit.operator.fakes import IMAGE, NAMESPACE, World
from unit.operator.test_poll import polled

KEY = Key("LLMDeployment", NAMESPACE, "bot")
MANUAL = {"mlflow": {"name": "bot", "alias": "champion", "updatePolicy": "Manual"}}


async def settled(world: World) -> None:
    """Every roll-out that was begun is over."""
    for _ in range(2):
        await reconcile(KEY, world.outside, Pace(60, 5))
        for name in world.cluster.named("Deployment"):
            world.cluster.play(name)
    await reconcile(KEY, world.outside, Pace(60, 5))


async def moved(world: World, version: str) -> None:
    world.registry.aliases["bot"]["champion"] = version
    await settled(world)


async def approve(world: World, version: str) -> None:
    change = {"metadata": {"annotations": {"llm-operator.dev/approve-version": version}}}
    await world.cluster.patch("LLMDeployment", NAMESPACE, "bot", change)
    await settled(world)


def serves(world: World) -> str:
    return str(world.status()["stable"]["version"])


def available(world: World) -> Any:
    return world.status()["model"].get("available", {}).get("version")


@pytest.fixture
async def world() -> World:
    """The first version of a Manual deployment, which nobody had to approve."""
    made = World()
    await made.deploy(model=MANUAL)
    await settled(made)
    assert (serves(made), available(made)) == ("1", None)
    assert made.condition("UpdateAvailable")["reason"] == "UpToDate"
    return made


async def test_a_moved_alias_waits_and_the_message_has_the_command(world: World) -> None:
    await moved(world, "2")
    assert (serves(world), available(world)) == ("1", "2")
    told = world.condition("UpdateAvailable")
    assert (told["status"], told["reason"]) == ("True", "ApprovalNeeded")
    assert (
        f"kubectl -n {NAMESPACE} annotate llmd/bot --overwrite llm-operator.dev/approve-version=2"
        in told["message"]
    )
    assert world.condition("Ready")["status"] == "True"
    assert world.cluster.events().count("UpdateAvailable") == 1


async def test_an_approved_version_is_rolled_out_and_stays_without_the_annotation(
    world: World,
) -> None:
    await moved(world, "2")
    await approve(world, "2")
    assert (serves(world), available(world)) == ("2", None)
    assert world.condition("UpdateAvailable")["status"] == "False"
    world.cluster.objects["LLMDeployment", NAMESPACE, "bot"]["metadata"].pop("annotations")
    await settled(world)
    assert serves(world) == "2"


async def test_a_word_for_another_version_changes_nothing(world: World) -> None:
    await moved(world, "3")
    await approve(world, "2")
    assert (serves(world), available(world)) == ("1", "3")


async def test_a_version_may_be_approved_before_it_is_promoted(world: World) -> None:
    await approve(world, "2")
    assert serves(world) == "1"
    await moved(world, "2")
    assert serves(world) == "2"


async def test_an_alias_moved_back_to_what_serves_takes_the_offer_away(world: World) -> None:
    await moved(world, "2")
    await moved(world, "1")
    assert (serves(world), available(world)) == ("1", None)


async def test_the_way_back_from_a_failed_version_needs_no_word(world: World) -> None:
    world.registry.aliases["bot"]["champion"] = "2"
    await world.cluster.patch(
        "LLMDeployment",
        NAMESPACE,
        "bot",
        {"metadata": {"annotations": {"llm-operator.dev/approve-version": "2"}}},
    )
    await reconcile(KEY, world.outside, Pace(60, 5))
    world.clock.pass_seconds(2000)
    await reconcile(KEY, world.outside, Pace(60, 5))
    assert world.status()["candidate"]["outcome"] == "Failed"
    await moved(world, "1")
    assert world.condition("Ready")["status"] == "True"


async def test_beside_a_version_that_failed_the_offer_says_which_one_serves(world: World) -> None:
    await approve(world, "2")
    world.registry.aliases["bot"]["champion"] = "2"
    await reconcile(KEY, world.outside, Pace(60, 5))
    world.clock.pass_seconds(2000)
    await moved(world, "3")
    assert (serves(world), available(world)) == ("1", "3")
    told = world.condition("UpdateAvailable")["message"]
    assert "version 2 stays the target, and version 1 serves" in told


async def test_what_waits_still_waits_while_the_registry_is_away_and_after_a_restart(
    world: World,
) -> None:
    await moved(world, "2")
    world.registry.fault = RegistryUnreachable("down")
    world.restarted(IMAGE)
    await settled(world)
    assert (serves(world), available(world)) == ("1", "2")
    assert world.condition("UpdateAvailable")["status"] == "True"


async def test_a_lost_status_is_no_word(world: World) -> None:
    world.cluster.objects["LLMDeployment", NAMESPACE, "bot"].pop("status")
    await moved(world, "2")
    assert (serves(world), available(world)) == ("1", "2")


async def test_auto_takes_what_waited(world: World) -> None:
    await moved(world, "2")
    await world.deploy()
    await settled(world)
    assert serves(world) == "2"
    assert not [c for c in world.status()["conditions"] if c["type"] == "UpdateAvailable"]


async def test_the_policy_makes_no_new_revision(world: World) -> None:
    revision = world.status()["stable"]["revision"]
    await world.deploy()
    await settled(world)
    assert world.status()["stable"]["revision"] == revision


async def test_the_poll_does_not_wake_for_what_waits_already(world: World) -> None:
    await moved(world, "2")
    poll, queue = await polled(world)
    await poll.look()
    assert queue.added == []
    world.registry.aliases["bot"]["champion"] = "3"
    await poll.look()
    assert queue.added == ["bot"]


FIRST, SECOND, THIRD = (f"2026-01-0{day}T00:00:00.000+00:00" for day in (1, 2, 3))


def registered(world: World, made: str) -> None:
    """The model was deleted and registered anew:
    what has its numbers now was made at another moment."""
    world.registry.registered_at = world.registry.model_made = made


async def test_a_number_that_was_registered_anew_waits_for_a_word_about_the_new_content(
    world: World,
) -> None:
    registered(world, FIRST)
    await approve(world, "1")
    before = world.status()["stable"]["revision"]
    registered(world, SECOND)
    await settled(world)
    assert world.status()["stable"]["revision"] == before, "the word for 1 was about the former"
    assert world.status()["model"]["registeredAt"] == FIRST
    told = world.condition("UpdateAvailable")
    assert (told["status"], available(world)) == ("True", "1")
    poll, queue = await polled(world)
    await poll.look()
    assert not queue.added, "what waits is known"
    word = told["message"].rpartition("=")[2]
    registered(world, THIRD)
    await poll.look()
    assert queue.added == ["bot"]
    await approve(world, word)
    assert world.status()["stable"]["revision"] == before, "and this word is about the second"
    await approve(world, world.condition("UpdateAvailable")["message"].rpartition("=")[2])
    assert world.status()["stable"]["revision"] != before
    assert world.condition("UpdateAvailable")["reason"] == "UpToDate"
    await approve(world, "")
    assert world.status()["model"]["registeredAt"] == THIRD, "it stays without the annotation"
