"""A version of an adapter that waits for ever: how long it may, and what becomes of it."""

from __future__ import annotations

import pytest

from llm_operator.ports.pods import Answer
from llm_operator.ports.registry import RegistryUnreachable
from unit.operator.test_adapter_gates import LEGAL, RIGHT, Gated, served

BUSY = Answer(503, "busy")
ROLLOUT = {"progressDeadlineSeconds": 600}


async def waiting(replicas: int = 1) -> Gated:
    """Version 3 answers; version 4 is loaded, and nobody answers its prompts."""
    world = await served(replicas, rollout=ROLLOUT)
    world.pods.answer = BUSY
    world.move("4")
    await world.run(2)
    assert world.candidate()["waitingSince"] == "2026-01-01T00:00:00Z"
    return world


async def passed(world: Gated, seconds: int) -> None:
    world.clock.pass_seconds(seconds)
    await world.run(1)


async def test_a_version_that_gets_no_further_is_refused_and_the_pods_let_it_go() -> None:
    world = await waiting()
    await passed(world, 590)
    assert "outcome" not in world.candidate()
    done = await world.look()
    assert done.after_seconds is not None
    assert done.after_seconds <= 11
    await passed(world, 11)
    assert (world.candidate()["outcome"], world.versions()) == ("Failed", {"legal": "3"})
    assert world.delivered().candidates == ()
    said = world.condition("AdaptersReady")
    assert (said["status"], said["reason"]) == ("False", "AdapterRefused")
    assert (
        "was refused by rollout.progressDeadlineSeconds, as it got no further in 600 s: gate"
        " smokePrompts legal-smoke: pod" in said["message"]
    )
    assert "version 3 of law goes on answering" in said["message"]
    assert "AdapterRefused" in world.cluster.events()
    world.pods.answer = RIGHT
    await world.run(3)
    assert world.versions() == {"legal": "3"}
    world.move("3")
    await world.run(2)
    world.move("4")
    await world.run(3)
    assert world.versions() == {"legal": "4"}


async def test_one_that_no_pod_can_load_is_refused_with_the_reason() -> None:
    world = await served(rollout=ROLLOUT)
    world.broken = {"legal@4": "ModelCorrupt"}
    world.move("4")
    await world.run(2)
    assert world.condition("AdaptersReady")["reason"] == "ModelCorrupt"
    await passed(world, 601)
    assert world.candidate()["outcome"] == "Failed"
    assert ": ModelCorrupt" in world.candidate()["message"]


async def test_a_first_version_is_tried_on_as_clients_have_no_other_and_the_condition_says_so() -> (
    None
):
    world = Gated()
    world.pods.answer = BUSY
    await world.deploy(adapters=[LEGAL], rollout=ROLLOUT)
    await world.run(4)
    await passed(world, 601)
    assert "outcome" not in world.candidate()
    said = world.condition("AdaptersReady")
    assert (said["status"], said["reason"]) == ("False", "ProgressDeadlineExceeded")
    assert "got no further in 600 s and is tried on; no version answers" in said["message"]
    assert "ProgressDeadlineExceeded" in world.cluster.events()
    done = await world.look()
    assert done.after_seconds is not None
    assert done.after_seconds >= 2
    world.pods.answer = RIGHT
    await world.run(2)
    assert world.versions() == {"legal": "3"}


async def test_whatever_brings_it_further_begins_the_deadline_anew() -> None:
    world = await waiting(replicas=2)
    first, second = world.cluster.named("Pod")
    world.pods.answers = {first: RIGHT}
    await passed(world, 590)
    assert world.candidate()["waitingSince"] == "2026-01-01T00:09:50Z"
    await passed(world, 590)
    assert "outcome" not in world.candidate()
    world.pods.answers[second] = RIGHT
    await passed(world, 1)
    assert world.versions() == {"legal": "4"}


async def test_without_a_ready_pod_and_without_the_registry_it_stands_still() -> None:
    world = await waiting()
    await world.deploy(suspend=True, adapters=[LEGAL], rollout=ROLLOUT)
    await world.run(2)
    await passed(world, 5000)
    assert "outcome" not in world.candidate()
    assert "waitingSince" not in world.candidate()
    await world.deploy(adapters=[LEGAL], rollout=ROLLOUT)
    await world.run(3)
    assert "waitingSince" in world.candidate()
    world.registry.faults["law"] = RegistryUnreachable("silence")
    await passed(world, 5000)
    assert "waitingSince" not in world.candidate()
    world.registry.faults = {}
    await world.run(2)
    assert "outcome" not in world.candidate()
    await passed(world, 601)
    assert world.candidate()["outcome"] == "Failed"


@pytest.mark.parametrize(("seconds", "outcome"), [(590, None), (601, "Failed")])
async def test_it_counts_on_where_the_operator_restarts(seconds: int, outcome: str | None) -> None:
    world = await waiting()
    world.restarted("example.com/runtime:1")
    await passed(world, seconds)
    assert world.candidate().get("outcome") == outcome


async def test_a_clock_that_is_set_back_begins_it_anew() -> None:
    world = await waiting()
    await passed(world, -3600)
    await passed(world, 590)
    assert "outcome" not in world.candidate()
    await passed(world, 20)
    assert world.candidate()["outcome"] == "Failed"
