"""A version of an adapter that is judged by an evaluation, beside the version that answers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from llm_operator.evaluation import task
from llm_operator.state import Estimate, EvaluationOutcome, Pods
from unit.operator.test_adapter_gates import LEGAL, Gated, served
from unit.operator.test_evaluation_gate import BAD, GOOD, SPEC, asked, end, handed, installed, jobs

GATE = {"evaluation": {**SPEC, "maxDropVsStable": 0.02}}
JUDGED = {**LEGAL, "gates": [GATE]}
UNSURE = dataclasses.replace(GOOD, drop=Estimate(0.03, 0.01, 0.06))


async def moved(replicas: int = 1, gates: Any = None, **spec: Any) -> Gated:
    """Version 3 answers; version 4 is loaded and its evaluation runs."""
    adapter = {**LEGAL, "gates": gates or [GATE]}
    world = await served(replicas, adapters=[{**LEGAL, "gates": []}])
    installed(world)
    await world.deploy(replicas=replicas, adapters=[adapter], **spec)
    world.move("4")
    await world.run(2)
    return world


async def test_both_versions_are_asked_the_same_records_by_names_of_which_clients_know_one() -> (
    None
):
    world = await moved()
    given = task.from_json(handed(world, "task.json"))
    assert given.candidate.model.startswith("bot:legal@4.")
    assert given.stable is not None
    assert (given.stable.model, given.stable.version) == ("bot:legal", "3")
    assert (given.model, given.made_by, given.connection) == ("law", "run", "default")
    assert given.key.startswith("llmk_")
    assert asked(world) == Pods(("127.0.0.1",), ("127.0.0.1",))
    (told,) = world.candidate()["gates"]
    assert told["state"] == "Waiting"
    assert world.versions() == {"legal": "3"}
    end(world, GOOD)
    await world.run()
    assert (world.versions(), world.candidates()) == ({"legal": "4"}, {})
    assert "passed: gate evaluation golden" in world.status()["adapters"][0]["judged"]
    assert jobs(world) == []


async def test_a_version_that_is_worse_never_answers_and_its_job_is_deleted() -> None:
    world = await moved()
    end(world, BAD)
    await world.run()
    assert (world.versions(), world.candidate()["outcome"]) == ({"legal": "3"}, "Failed")
    said = world.condition("AdaptersReady")
    assert (said["status"], said["reason"]) == ("False", "AdapterRefused")
    assert (
        "gate evaluation golden is 0.1 (between 0.05 and 0.17), allowed is 0.02"
        in (said["message"])
    )
    assert jobs(world) == []
    other = {"evaluation": {**SPEC, "maxDropVsStable": 0.2}}
    await world.deploy(adapters=[{**LEGAL, "gates": [other]}])
    await world.run(2)
    assert "outcome" not in world.candidate()
    assert len(jobs(world)) == 1


@pytest.mark.parametrize(
    ("policy", "seconds", "version"),
    [("Hold", 0, "3"), ("Hold", 700, "3"), ("RollBack", 0, "3"), ("Promote", 0, "4")],
)
async def test_what_decides_nothing_is_held_as_the_policy_says(
    policy: str, seconds: int, version: str
) -> None:
    world = await moved(rollout={"onInconclusive": policy, "maxHoldSeconds": 600})
    end(world, UNSURE)
    await world.run(2)
    if policy == "Hold":
        said = world.condition("AdaptersReady")
        assert said["reason"] == "AdapterJudged"
        assert "held until 2026-01-01T00:10:00Z at the latest" in said["message"]
        done = await world.look()
        assert done.after_seconds is not None
        assert done.after_seconds <= 601
    world.clock.pass_seconds(seconds)
    await world.run(2)
    assert world.versions() == {"legal": version}
    refused = policy == "RollBack" or seconds == 700
    held = world.status().get("adapterCandidates", [])
    assert [each.get("outcome") for each in held] == (
        ["Failed"] if refused else [None] if policy == "Hold" else []
    )
    if refused:
        said = world.condition("AdaptersReady")
        assert said["reason"] == "AdapterRefused"
        assert "was refused by rollout.onInconclusive" in said["message"]
        assert "evaluation golden is 0.03" in said["message"]
    if policy == "Promote":
        assert "not judged: gate evaluation golden" in world.status()["adapters"][0]["judged"]


@pytest.mark.parametrize(
    ("allowed", "outcome", "version"),
    [
        ({"minScore": 0.9}, dataclasses.replace(GOOD, drop=None), "3"),
        ({"minScore": 0.95}, dataclasses.replace(BAD, drop=None), None),
        ({"maxDropVsStable": 0.02}, dataclasses.replace(BAD, drop=None), "3"),
    ],
)
async def test_of_a_first_version_the_score_alone_decides(
    allowed: dict[str, float], outcome: EvaluationOutcome, version: str | None
) -> None:
    world = Gated()
    installed(world)
    await world.deploy(adapters=[{**LEGAL, "gates": [{"evaluation": {**SPEC, **allowed}}]}])
    await world.run(6)
    assert task.from_json(handed(world, "task.json")).stable is None
    assert asked(world) == Pods(("127.0.0.1",), ())
    end(world, outcome)
    await world.run()
    assert world.versions() == ({"legal": version} if version else {})


async def test_it_is_told_of_pods_that_come_and_waits_until_each_has_loaded_the_version() -> None:
    world = await moved()
    world.broken = {"legal@4": "ModelCorrupt"}
    await world.deploy(replicas=2, adapters=[JUDGED])
    world.idle = True
    await world.run(2)
    assert asked(world) == Pods(("127.0.0.1",), ("127.0.0.1",))
    end(world, GOOD)
    await world.run(2)
    (told,) = world.candidate()["gates"]
    assert told["state"] == "Passed"
    assert world.versions() == {"legal": "3"}
    assert "not loaded in pod" in world.condition("AdaptersReady")["message"]
    world.broken = {}
    world.idle = False
    await world.run(2)
    assert world.versions() == {"legal": "4"}


async def test_another_operator_goes_on_with_the_job_and_keeps_its_verdict() -> None:
    world = await moved()
    before = [job["metadata"]["uid"] for job in jobs(world)]
    world.restarted("example.com/runtime:1")
    installed(world)
    world.clock.pass_seconds(-100)
    await world.run(2)
    assert [job["metadata"]["uid"] for job in jobs(world)] == before
    end(world, UNSURE)
    await world.run(1)
    [job] = jobs(world)
    del world.cluster.objects["Job", "operators", job["metadata"]["name"]]
    world.restarted("example.com/runtime:1")
    installed(world)
    await world.run(2)
    assert jobs(world) == []
    assert world.candidate()["gates"][0]["state"] == "Inconclusive"


async def test_the_job_of_a_version_that_nobody_wants_any_more_is_deleted() -> None:
    world = await moved()
    [first] = jobs(world)
    world.move("5")
    await world.run(2)
    [second] = jobs(world)
    assert first["metadata"]["uid"] != second["metadata"]["uid"]
    world.move("3")
    await world.run(2)
    assert jobs(world) == []


async def test_a_model_and_an_adapter_are_evaluated_side_by_side() -> None:
    world = await moved()
    await world.deploy(adapters=[JUDGED], rollout={"gates": [GATE]})
    world.registry.aliases["bot"]["champion"] = "2"
    await world.run(3)
    assert len(jobs(world)) == 2
    world.move("3")
    await world.run(2)
    assert len(jobs(world)) == 1
    assert task.from_json(handed(world, "task.json")).candidate.model == "bot"


async def test_prompts_and_an_evaluation_have_to_be_passed_both() -> None:
    world = await moved(gates=[GATE, {"smokePrompts": {"configMap": "legal-smoke"}}])
    await world.run(2)
    assert [each["state"] for each in world.candidate()["gates"]] == ["Waiting", "Passed"]
    assert world.versions() == {"legal": "3"}
    end(world, GOOD)
    await world.run(2)
    assert world.versions() == {"legal": "4"}
