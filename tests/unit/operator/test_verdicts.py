"""How roll-outs ended reaches the registry once, through crashes and outages,
and holds up nothing."""

from __future__ import annotations

import pytest

from llm_operator.plans.status import verdicts
from llm_operator.plans.status.verdicts import Ended
from llm_operator.ports.registry import (
    ModelDenied,
    RegistryDenied,
    RegistryUnreachable,
    VersionNotFound,
)
from llm_operator.reconcile import Done, Pace, Retry, reconcile
from llm_operator.state import Connection, Key, Verdict
from unit.operator.fakes import IMAGE, NAMESPACE, World

OWNER = Key("LLMDeployment", NAMESPACE, "bot")
VERDICT = Key("Verdict", NAMESPACE, "bot")
TAG = f"{NAMESPACE}/bot"
FORMER = f"llm-operator.{NAMESPACE}.bot"


async def step(world: World) -> Done:
    return await reconcile(OWNER, world.outside, Pace(60, 5))


async def rolled(world: World, ready: int | None = None) -> Done:
    """The wanted version's pods get ready, or do not within their deadline;
    returns the last reconcile."""
    await step(world)
    for name in world.cluster.named("Deployment"):
        world.cluster.play(name, ready if world.selected() not in name else None)
    world.clock.pass_seconds(1 if ready is None else 2000)
    return await step(world)


async def told(world: World) -> None:
    assert VERDICT in dict((await step(world)).later)
    await reconcile(VERDICT, world.outside, Pace(60, 5))


def value(world: World, version: str) -> str:
    return world.registry.tags_of.get(("bot", version), {}).get(TAG, "")


def outcome(world: World, version: str) -> str:
    return value(world, version).partition(" (")[0].partition(":")[0]


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
    revision = world.status()["stable"]["revision"]
    assert world.registry.tags_of["bot", "2"] == {
        TAG: f"Promoted (revision {revision}, 2026-01-01 00:00 UTC)"
    }
    writes = world.registry.tag_writes
    assert VERDICT not in dict((await step(world)).later)
    await reconcile(VERDICT, world.outside, Pace(60, 5))
    assert world.registry.tag_writes == writes


async def test_a_promoted_version_says_which_gates_did_not_judge_it_also_when_the_next_has_taken_over(
    world: World,
) -> None:
    await world.deploy(rollout={"strategy": "Recreate", "gates": [{"maxErrorRate": 0.01}]})
    world.registry.aliases["bot"]["champion"] = "2"
    for _ in range(4):
        await rolled(world)
    await told(world)
    said = value(world, "2")
    assert said.startswith(
        "Promoted: not judged: gate maxErrorRate: too few requests to judge: 0, 50 are needed (rev"
    )
    world.registry.aliases["bot"]["champion"] = "3"
    for _ in range(4):
        await rolled(world)
    await told(world)
    assert value(world, "2") == said


async def test_a_failed_version_is_tagged_with_the_reason_and_the_one_that_serves_is_left_alone(
    world: World,
) -> None:
    world.registry.aliases["bot"]["champion"] = "2"
    await rolled(world, ready=0)
    await told(world)
    assert outcome(world, "2") == "Failed"
    assert value(world, "2").startswith(
        "Failed: ProgressDeadlineExceeded: 0 of 1 pods were ready after 1800 s"
    )
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
    writes = world.registry.tag_writes
    reads = world.registry.tag_reads
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


async def test_a_registry_that_refuses_is_told_once_and_asked_again_with_the_next_verdict(
    world: World,
) -> None:
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
    assert {TAG, f"{NAMESPACE}/other"} == world.registry.tags_of["bot", "1"].keys()


async def failed_and_promoted(world: World) -> None:
    """Version 2 fails, and serves once it is tried again."""
    world.registry.aliases["bot"]["champion"] = "2"
    await rolled(world, ready=0)
    await told(world)
    await world.deploy(rollout={"progressDeadlineSeconds": 3000}, engine={"maxModelLength": 64})
    await rolled(world)
    await told(world)


async def test_a_version_that_is_promoted_later_is_still_known_to_have_failed(world: World) -> None:
    await failed_and_promoted(world)
    now, before = value(world, "2").split(" | ")
    assert now.startswith("Promoted (revision ")
    assert before.startswith("Failed: ProgressDeadlineExceeded")


async def test_a_tag_has_a_bound_and_its_oldest_verdict_goes_first(world: World) -> None:
    world.registry.tags_of["bot", "2"] = {
        TAG: " | ".join(f"Failed: {n} {'x' * 2000}" for n in range(50))
    }
    world.registry.aliases["bot"]["champion"] = "2"
    await rolled(world)
    await told(world)
    lines = value(world, "2").split(" | ")
    assert [line[:9] for line in lines] == ["Promoted ", *(f"Failed: {n}" for n in range(5))]
    assert len(value(world, "2")) < 3000


@pytest.mark.parametrize("message", ["a | b\nc", "a |\nb\tc", "a\n| b c"])
async def test_a_separator_in_a_message_parts_no_verdict(world: World, message: str) -> None:
    ended = Ended(Verdict("bot", "2", "Failed", message, "r"), "2026-01-01T00:00:00Z")
    meta = world.outside.memory.ledgers[OWNER].meta
    assert verdicts.value(ended, meta, {}).startswith("Failed: a / b c (revision r, ")


async def test_a_version_that_was_taken_back_says_so(world: World) -> None:
    first = world.status()["stable"]["revision"]
    world.registry.aliases["bot"]["champion"] = "2"
    await rolled(world)
    await told(world)
    meta = world.cluster.objects["LLMDeployment", NAMESPACE, "bot"]["metadata"]
    meta["annotations"] = {"llm-operator.dev/rollback-to": first}
    await rolled(world)
    await told(world)
    assert world.status()["stable"]["revision"] == first
    assert world.status()["history"][0]["outcome"] == "RolledBack"
    now, before = value(world, "2").split(" | ")
    assert now.startswith(
        f"RolledBack: by revision {first}, as the annotation rollback-to asked (revision "
    )
    assert before.startswith("Promoted")
    assert outcome(world, "1") == "Promoted"


async def test_the_tags_of_an_earlier_release_become_one(world: World) -> None:
    former = {
        "message": "ModelCorrupt: short",
        "revision": "r1",
        "time": "2025-12-31T10:00:00Z",
        "verdict": "Failed",
    }
    world.registry.tags_of["bot", "2"] = {
        f"{FORMER}.{part}": text for part, text in former.items()
    } | {"mine": "x"}
    world.registry.aliases["bot"]["champion"] = "2"
    await rolled(world)
    await told(world)
    assert world.registry.tags_of["bot", "2"].keys() == {TAG, "mine"}
    assert value(world, "2").endswith(
        " | Failed: ModelCorrupt: short (revision r1, 2025-12-31 10:00 UTC)"
    )


async def test_a_deleted_deployment_takes_its_tags_with_it_and_no_others(world: World) -> None:
    await failed_and_promoted(world)
    world.registry.tags_of["bot", "9"] = {
        f"{FORMER}.verdict": "Failed",
        f"{FORMER}.time": "",
        "team/other": "x",
    }
    world.restarted(IMAGE)  # What an earlier process told goes, too.
    await step(world)
    await world.cluster.delete("LLMDeployment", NAMESPACE, "bot")
    assert VERDICT in dict((await step(world)).later)
    world.registry.tag_fault = RegistryUnreachable("down")
    with pytest.raises(Retry, match="not removed yet"):
        await reconcile(VERDICT, world.outside, Pace(60, 5))
    world.registry.tag_fault = None
    assert (await reconcile(VERDICT, world.outside, Pace(60, 5))).gone
    assert {key for tags in world.registry.tags_of.values() for key in tags} == {"team/other"}
    assert world.outside.memory.ledgers == {}
    assert (await reconcile(VERDICT, world.outside, Pace(60, 5))).gone


async def test_a_tag_that_can_not_be_taken_away_keeps_no_other_from_going(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its version may be deleted at the same time,
    or its model be refused to the operator's user."""
    world.registry.tags_of = {(name, "1"): {TAG: "Promoted"} for name in ("a", "b", "c")}
    untag = world.registry.untag

    async def refuse(connection: Connection, name: str, version: str, key: str) -> None:
        if name != "c":
            raise {"a": VersionNotFound("gone"), "b": ModelDenied("403")}[name]
        await untag(connection, name, version, key)

    monkeypatch.setattr(world.registry, "untag", refuse)
    await world.cluster.delete("LLMDeployment", NAMESPACE, "bot")
    await step(world)
    await reconcile(VERDICT, world.outside, Pace(60, 5))
    assert world.registry.tags_of["c", "1"] == {}
    assert world.outside.memory.ledgers == {}


async def test_a_registry_that_refuses_keeps_the_tags_of_a_deleted_deployment(world: World) -> None:
    await world.cluster.delete("LLMDeployment", NAMESPACE, "bot")
    await step(world)
    world.registry.tag_fault = RegistryDenied("403")
    await reconcile(VERDICT, world.outside, Pace(60, 5))
    assert (outcome(world, "1"), world.outside.memory.ledgers) == ("Promoted", {})
