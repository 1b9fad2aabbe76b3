"""How roll-outs ended reaches the registry once, through crashes and outages, and holds up nothing."""

from __future__ import annotations

import pytest

from llm_operator.reconcile import Done, Pace, Retry, reconcile
from llm_operator.registry import RegistryDenied, RegistryUnreachable, VersionNotFound
from llm_operator.state import Key
from unit.operator.fakes import IMAGE, NAMESPACE, World

OWNER, VERDICT = Key("LLMDeployment", NAMESPACE, "bot"), Key("Verdict", NAMESPACE, "bot")
PREFIX = f"llm-operator.{NAMESPACE}.bot"


async def step(world: World) -> Done:
    return await reconcile(OWNER, world.outside, Pace(60, 5))


async def rolled(world: World, ready: int | None = None) -> Done:
    """The wanted version's pods get ready, or do not within their deadline; returns the last reconcile."""
    await step(world)
    for name in world.cluster.named("Deployment"):
        world.cluster.play(name, ready if world.selected() not in name else None)
    world.clock.pass_seconds(1 if ready is None else 2000)
    return await step(world)


async def told(world: World) -> None:
    assert VERDICT in dict((await step(world)).later)
    await reconcile(VERDICT, world.outside, Pace(60, 5))


def outcome(world: World, version: str) -> str | None:
    return world.registry.tagged.get(("bot", version), {}).get(f"{PREFIX}.verdict")


@pytest.fixture
async def world() -> World:
    """Version 1 serves, and the registry knows."""
    made = World()
    await made.deploy()
    done = await rolled(made)
    assert VERDICT in dict(done.later)
    await told(made)
    assert outcome(made, "1") == "Promoted"
    return made


async def test_a_promoted_version_is_tagged_once(world: World) -> None:
    world.registry.aliases["bot"]["champion"] = "2"
    assert dict((await rolled(world)).later)[VERDICT] == 0
    await told(world)
    assert outcome(world, "2") == "Promoted"
    tags = world.registry.tagged["bot", "2"]
    assert tags.keys() == {f"{PREFIX}.{part}" for part in ("verdict", "message", "revision", "time")}
    writes = world.registry.tag_writes
    assert VERDICT not in dict((await step(world)).later)
    await reconcile(VERDICT, world.outside, Pace(60, 5))
    assert world.registry.tag_writes == writes


async def test_a_failed_version_is_tagged_with_the_reason_and_the_one_that_serves_is_left_alone(world: World) -> None:
    world.registry.aliases["bot"]["champion"] = "2"
    await rolled(world, ready=0)
    await told(world)
    assert outcome(world, "2") == "Failed"
    assert "ProgressDeadlineExceeded" in world.registry.tagged["bot", "2"][f"{PREFIX}.message"]
    assert outcome(world, "1") == "Promoted"


async def test_a_changed_specification_that_fails_is_not_the_versions_fault(world: World) -> None:
    await world.deploy(engine={"maxModelLength": 64})
    await rolled(world, ready=0)
    assert world.status()["candidate"]["outcome"] == "Failed"
    assert VERDICT not in dict((await step(world)).later)


async def test_a_crash_between_status_and_tag_loses_nothing(world: World) -> None:
    world.registry.aliases["bot"]["champion"] = "2"
    await rolled(world, ready=0)
    world.restarted(IMAGE)
    reads = world.registry.tag_reads
    await told(world)
    assert outcome(world, "2") == "Failed"
    assert world.registry.tag_reads == reads + 1


async def test_a_restart_asks_once_and_writes_nothing_again(world: World) -> None:
    writes, reads = world.registry.tag_writes, world.registry.tag_reads
    world.restarted(IMAGE)
    assert dict((await step(world)).later)[VERDICT] > 0
    await told(world)
    assert (world.registry.tag_writes, world.registry.tag_reads) == (writes, reads + 1)
    assert VERDICT not in dict((await step(world)).later)


async def test_a_registry_that_is_away_is_tried_again_and_the_rollout_went_on(world: World) -> None:
    world.registry.aliases["bot"]["champion"] = "2"
    await rolled(world)
    world.registry.tag_fault = RegistryUnreachable("down")
    for _ in range(3):
        with pytest.raises(Retry, match="not written yet"):
            await told(world)
    assert world.status()["stable"]["version"] == "2"
    world.registry.tag_fault = None
    await told(world)
    assert outcome(world, "2") == "Promoted"


async def test_a_registry_that_refuses_is_told_once_and_asked_again_with_the_next_verdict(world: World) -> None:
    world.registry.aliases["bot"]["champion"] = "2"
    await rolled(world)
    world.registry.tag_fault = RegistryDenied("403")
    assert OWNER in (await reconcile(VERDICT, world.outside, Pace(60, 5))).wake
    assert VERDICT not in dict((await step(world)).later)
    assert world.cluster.events().count("VerdictRefused") == 1
    reachable = world.condition("RegistryReachable")
    assert (reachable["status"], "writeVerdicts: false" in reachable["message"]) == ("True", True)
    world.registry.tag_fault = None
    world.registry.aliases["bot"]["champion"] = "3"
    await rolled(world)
    await told(world)
    await step(world)
    assert outcome(world, "3") == "Promoted"
    assert "verdict" not in world.condition("RegistryReachable")["message"]


async def test_a_version_deleted_meanwhile_is_not_asked_for_again(world: World) -> None:
    world.registry.aliases["bot"]["champion"] = "2"
    await rolled(world)
    world.registry.tag_fault = VersionNotFound("gone")
    await told(world)
    assert VERDICT not in dict((await step(world)).later)


async def test_a_connection_may_leave_verdicts_out(world: World) -> None:
    default = world.connections.known["default"]
    world.connections.known["default"] = default.model_copy(update={"write_verdicts": False})
    world.registry.aliases["bot"]["champion"] = "2"
    assert VERDICT not in dict((await rolled(world)).later)


async def test_two_deployments_of_one_model_keep_apart(world: World) -> None:
    await world.deploy("other")
    other = Key("LLMDeployment", NAMESPACE, "other")
    for _ in range(2):
        await reconcile(other, world.outside, Pace(60, 5))
        for name in world.cluster.named("Deployment"):
            world.cluster.play(name)
    await reconcile(other, world.outside, Pace(60, 5))
    await reconcile(Key("Verdict", NAMESPACE, "other"), world.outside, Pace(60, 5))
    keys = world.registry.tagged["bot", "1"].keys()
    assert {f"{PREFIX}.verdict", f"llm-operator.{NAMESPACE}.other.verdict"} <= keys


async def test_nothing_is_kept_of_a_deleted_deployment(world: World) -> None:
    await world.cluster.delete("LLMDeployment", NAMESPACE, "bot")
    await step(world)
    assert world.outside.ledgers == {}
    assert (await reconcile(VERDICT, world.outside, Pace(60, 5))).gone
