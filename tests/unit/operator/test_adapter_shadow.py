"""A version of an adapter that is sent copies of the requests to the version that answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llm_operator.ports.pods import Answer
from llm_operator.state import Figures, Shadowed
from unit.operator.test_adapter_gates import GATES, LEGAL, Gated
from unit.operator.test_evaluation_gate import GOOD, SPEC, end, installed

EXACT = {"shadowAgreement": {"minExact": 0.95}}
SHADOW = {"percent": 50, "maxInFlight": 2, "holdSeconds": 30}
COPIED = {**LEGAL, "gates": [EXACT], "shadow": SHADOW}


class Copying(Gated):
    """Pods that send 40 copies between two looks, where they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.differing = 0.0
        """Share of the answers."""
        self.compared = dict[str, tuple[float, float]]()
        """By candidate: answers, and sum of differences."""
        self.quiet = False

    def _figures(self) -> Figures:
        for each in self.delivered().shadowed:
            count, sum_ = self.compared.get(each.candidate, (0.0, 0.0))
            if not self.quiet:
                self.compared[each.candidate] = count + 40, sum_ + 40 * self.differing
        told = {
            name: Shadowed({"compared": count}, {"exact": count}, {"exact": sum_})
            for name, (count, sum_) in self.compared.items()
        }
        return replace(super()._figures(), shadowed=told)

    async def pass_by(self, seconds: int) -> None:
        """A look every two seconds."""
        for _ in range(seconds // 2):
            self.clock.pass_seconds(2)
            await self.run(1)


async def copied(replicas: int = 1, adapter: Any = None, **spec: Any) -> Copying:
    """Version 3 answers; version 4 is loaded beside it and is sent copies."""
    world = Copying()
    await world.deploy(replicas=replicas, adapters=[{**LEGAL, "gates": []}], **spec)
    await world.run(6)
    assert world.versions() == {"legal": "3"}
    await world.deploy(replicas=replicas, adapters=[adapter or COPIED], **spec)
    world.move("4")
    await world.run(3)
    return world


async def test_the_pods_that_answer_are_told_to_copy_and_a_version_that_agrees_takes_over() -> None:
    world = await copied()
    [order] = world.delivered().shadowed
    stable = world.status()["stable"]["revision"]
    assert (order.adapter, order.pods) == ("legal", f"bot-{stable}")
    assert (order.percent, order.max_in_flight) == (50, 2)
    assert order.candidate == world.delivered().candidates[0].name
    assert world.candidate()["shadowedSince"] == "2026-01-01T00:00:00Z"
    said = world.condition("AdaptersReady")
    assert said["reason"] == "AdapterJudged"
    assert "is sent copies of requests, at least until 00:00:30 UTC" in said["message"]
    await world.pass_by(28)
    assert world.versions() == {"legal": "3"}
    assert world.candidate()["gates"][0]["state"] == "Passed"
    done = await world.look()
    assert done.after_seconds is not None
    assert done.after_seconds <= 2
    await world.pass_by(4)
    assert (world.versions(), world.delivered().shadowed) == ({"legal": "4"}, ())
    assert "passed: gate shadowAgreement minExact is 1" in world.status()["adapters"][0]["judged"]


async def test_a_version_whose_answers_differ_is_refused_before_any_client_has_met_it() -> None:
    world = await copied()
    world.differing = 0.5
    await world.pass_by(20)
    assert (world.versions(), world.candidates()) == ({"legal": "3"}, {})
    assert (world.candidate()["outcome"], world.delivered().shadowed) == ("Failed", ())
    said = world.condition("AdaptersReady")
    assert said["reason"] == "AdapterRefused"
    assert "was refused by gate shadowAgreement minExact is 0.6" in said["message"]
    assert "had another text" in said["message"]


@pytest.mark.parametrize(
    ("policy", "seconds", "version", "outcome"),
    [
        ("Hold", 20, "3", None),
        ("Hold", 60, "3", None),
        ("Hold", 150, "3", "Failed"),
        ("RollBack", 40, "3", "Failed"),
        ("Promote", 20, "3", None),
        ("Promote", 40, "4", None),
    ],
)
async def test_a_quiet_service_waits_for_its_hold_and_then_the_policy_decides(
    policy: str, seconds: int, version: str, outcome: str | None
) -> None:
    world = Copying()
    world.quiet = True
    rollout = {"onInconclusive": policy, "maxHoldSeconds": 100}
    await world.deploy(adapters=[{**LEGAL, "gates": []}], rollout=rollout)
    await world.run(6)
    await world.deploy(adapters=[COPIED], rollout=rollout)
    world.move("4")
    await world.run(3)
    await world.pass_by(seconds)
    assert world.versions() == {"legal": version}
    held = world.status().get("adapterCandidates", [])
    assert [each.get("outcome") for each in held] == ([] if version == "4" else [outcome])
    if version == "4":
        assert "not judged: gate shadowAgreement" in world.status()["adapters"][0]["judged"]


async def test_without_gates_the_copies_show_in_metrics_and_the_version_goes_on() -> None:
    world = await copied(adapter={**LEGAL, "gates": [], "shadow": SHADOW})
    assert world.candidate()["shadowedSince"]
    world.differing = 1
    await world.pass_by(28)
    assert world.versions() == {"legal": "3"}
    await world.pass_by(4)
    assert world.versions() == {"legal": "4"}


async def test_nothing_is_copied_to_a_first_version_and_it_is_not_held_for_that() -> None:
    world = Copying()
    await world.deploy(adapters=[COPIED])
    await world.run(6)
    assert world.versions() == {"legal": "3"}
    assert world.compared == {}
    assert "not judged: gate shadowAgreement" in world.status()["adapters"][0]["judged"]


async def test_copies_begin_when_the_prompts_are_answered_in_every_pod() -> None:
    world = Copying()
    await world.deploy(replicas=2, adapters=[{**LEGAL, "gates": []}])
    await world.run(6)
    late = world.cluster.named("Pod")[1]
    world.mute = {late}
    await world.deploy(replicas=2, adapters=[{**COPIED, "gates": [*GATES, EXACT]}])
    world.move("4")
    await world.run(3)
    assert world.delivered().shadowed == ()
    world.mute = set()
    world.pods.answers[late] = Answer(503, "busy")
    await world.run(3)
    assert world.delivered().shadowed == ()
    world.pods.answers = {}
    await world.run(3)
    assert len(world.delivered().shadowed) == 1
    await world.pass_by(40)
    assert world.versions() == {"legal": "4"}


async def test_a_pod_that_comes_begins_the_hold_anew() -> None:
    world = await copied()
    await world.pass_by(20)
    await world.deploy(replicas=2, adapters=[COPIED])
    world.idle = True
    await world.run(2)
    assert "shadowedSince" not in world.candidate()
    assert world.delivered().shadowed == ()
    world.idle = False
    await world.run(2)
    began = world.candidate()["shadowedSince"]
    assert began > "2026-01-01T00:00:15Z"
    await world.pass_by(20)
    assert world.versions() == {"legal": "3"}
    await world.pass_by(14)
    assert world.versions() == {"legal": "4"}


async def test_the_hold_outlives_a_restart_and_begins_anew_with_a_clock_set_back() -> None:
    world = await copied()
    await world.pass_by(10)
    world.restarted("example.com/runtime:1")
    await world.run(1)
    assert world.candidate()["shadowedSince"] == "2026-01-01T00:00:00Z"
    world.clock.pass_seconds(-3600)
    await world.run(1)
    assert world.candidate()["shadowedSince"] < "2026-01-01T00:00:00Z"
    await world.pass_by(20)
    assert world.versions() == {"legal": "3"}


async def test_an_evaluation_and_copies_judge_side_by_side() -> None:
    gates = [{"evaluation": {**SPEC, "maxDropVsStable": 0.02}}, EXACT]
    world = Copying()
    installed(world)
    await world.deploy(adapters=[{**LEGAL, "gates": []}])
    await world.run(6)
    await world.deploy(adapters=[{**COPIED, "gates": gates}])
    world.move("4")
    await world.run(3)
    await world.pass_by(40)
    assert [each["state"] for each in world.candidate()["gates"]] == ["Waiting", "Passed"]
    assert world.versions() == {"legal": "3"}
    end(world, GOOD)
    await world.run(2)
    assert world.versions() == {"legal": "4"}


async def test_two_adapters_are_copied_to_side_by_side_and_each_by_its_own_counts() -> None:
    french = {**COPIED, "name": "french", "mlflow": {"name": "fr", "alias": "champion"}}
    world = Copying()
    world.registry.aliases["fr"]["champion"] = "5"
    plain = [{**each, "gates": [], "shadow": {"percent": 0}} for each in (COPIED, french)]
    await world.deploy(adapters=plain)
    await world.run(6)
    await world.deploy(adapters=[COPIED, french])
    world.move("4")
    world.registry.aliases["fr"]["champion"] = "6"
    await world.run(3)
    first, second = world.delivered().shadowed
    assert (first.adapter, second.adapter) == ("legal", "french")
    world.compared[second.candidate] = (0.0, 0.0)
    for _ in range(20):
        count, sum_ = world.compared[second.candidate]
        world.compared[second.candidate] = count, sum_ + 20
        await world.pass_by(2)
    assert world.versions() == {"legal": "4", "french": "5"}
    [refused] = world.status()["adapterCandidates"]
    assert (refused["name"], refused["outcome"]) == ("french", "Failed")


async def test_with_percent_zero_and_no_gates_a_version_answers_as_soon_as_it_is_loaded() -> None:
    world = await copied(adapter={**LEGAL, "gates": [], "shadow": {"percent": 0}})
    assert world.versions() == {"legal": "4"}
    assert "bot-operator-key" not in world.cluster.named("Secret")
