"""The evaluation gate: what it says of figures,
and the Job that makes them, from its creation to its end."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import pytest

from llm_operator.crds.rollout import GateSpec
from llm_operator.evaluation import task
from llm_operator.plans.evidence import gates
from llm_operator.ports.cluster import Unavailable
from llm_operator.reconcile import reconcile
from llm_operator.settings import EvaluationSettings
from llm_operator.state import Estimate, EvaluationOutcome, Evidence, Pods
from unit.operator.fakes import NAMESPACE, World
from unit.operator.test_rollout_gates import KEY, PACE, look

OWN = "operators"
SPEC: dict[str, Any] = {"dataset": "golden", "scorers": [{"type": "Exact"}]}
TEMPLATE = {
    "metadata": {"labels": {"app.kubernetes.io/name": "llm-operator-evaluation"}},
    "spec": {
        "containers": [
            {"name": "evaluation", "image": "operator:1", "args": ["--config=/config.yaml"]}
        ]
    },
}
GOOD = EvaluationOutcome(
    score=Estimate(0.98, 0.95, 0.995), drop=Estimate(0.0, -0.02, 0.02), samples=200
)
BAD = EvaluationOutcome(
    score=Estimate(0.9, 0.84, 0.94), drop=Estimate(0.1, 0.05, 0.17), samples=200, message="run r1"
)


def verdict(outcome: EvaluationOutcome | None, **allowed: float) -> Any:
    gate = GateSpec.model_validate({"evaluation": {**SPEC, **allowed}})
    found = {} if outcome is None else {gates.key(gate): outcome}
    return gates.judge([gate], Evidence(evaluations=found))[0]


@pytest.mark.parametrize(
    ("outcome", "allowed", "state"),
    [
        (GOOD, {"minScore": 0.95}, "Passed"),
        (GOOD, {"maxDropVsStable": 0.02}, "Passed"),
        (BAD, {"minScore": 0.95}, "Failed"),
        (BAD, {"maxDropVsStable": 0.02}, "Failed"),
        (BAD, {"minScore": 0.5, "maxDropVsStable": 0.02}, "Failed"),
        # Below what is allowed, and not surely.
        (
            EvaluationOutcome(score=Estimate(0.94, 0.9, 0.97), samples=90),
            {"minScore": 0.95},
            "Inconclusive",
        ),
        # As allowed, of too few records to exclude what is clearly worse.
        (
            EvaluationOutcome(score=Estimate(1.0, 0.7, 1.0), samples=8),
            {"minScore": 0.95},
            "Inconclusive",
        ),
        # No stable to compare with: minScore alone, or nothing.
        (
            dataclasses.replace(GOOD, drop=None),
            {"minScore": 0.95, "maxDropVsStable": 0.02},
            "Passed",
        ),
        (dataclasses.replace(GOOD, drop=None), {"maxDropVsStable": 0.02}, "Inconclusive"),
        (EvaluationOutcome(waiting="there is no dataset golden"), {"minScore": 0.95}, "Waiting"),
        (None, {"minScore": 0.95}, "Waiting"),
    ],
)
def test_the_gate_is_sure_or_says_that_it_is_not(
    outcome: EvaluationOutcome | None, allowed: dict[str, float], state: str
) -> None:
    assert verdict(outcome, **allowed).state == state


def test_the_worse_of_both_checks_is_told_with_its_interval() -> None:
    told = verdict(BAD, minScore=0.5, maxDropVsStable=0.02)
    assert (told.estimate, told.low, told.high, told.threshold) == ("0.1", "0.05", "0.17", "0.02")
    assert (told.samples, told.stable_samples) == (200, 200)
    assert told.message == "this is the drop below stable; the score is 0.9; run r1"


def test_a_report_fits_into_a_termination_message_and_is_read_as_it_was_written() -> None:
    long = dataclasses.replace(GOOD, message="ä" * 5000)
    assert len(task.report(long).encode()) <= task.REPORT_BYTES
    assert task.outcome(task.report(BAD)) == BAD


def installed(world: World) -> None:
    """As by the chart."""
    world.outside = dataclasses.replace(
        world.outside,
        installation=f"{OWN}/llm-operator",
        evaluation=EvaluationSettings(pod_template=TEMPLATE),
    )


async def world_with_evaluation(**rollout: Any) -> World:
    """Version 1 serves; version 2 has a ready pod and is to be judged by an evaluation."""
    world = World()
    installed(world)
    await world.deploy()
    await look(world, 3)
    await world.deploy(
        rollout={"gates": [{"evaluation": {**SPEC, "maxDropVsStable": 0.02}}], **rollout}
    )
    world.registry.aliases["bot"]["champion"] = "2"
    await look(world, 3)
    return world


def jobs(world: World) -> list[Any]:
    return [
        found
        for (kind, place, _), found in world.cluster.objects.items()
        if (kind, place) == ("Job", OWN)
    ]


def end(world: World, outcome: EvaluationOutcome | None) -> None:
    """The Job's pod ends with this report, or without one."""
    [job] = jobs(world)
    now = world.clock.now.isoformat()
    condition = {
        "type": "Complete" if outcome else "Failed",
        "status": "True",
        "lastTransitionTime": now,
    }
    job["status"] = {"conditions": [condition]}
    ended = (
        {"exitCode": 0, "message": task.report(outcome)}
        if outcome
        else {"exitCode": 1, "message": "boom"}
    )
    name = job["metadata"]["name"]
    meta = {"name": f"{name}-x", "namespace": OWN, "labels": {"batch.kubernetes.io/job-name": name}}
    status = {"containerStatuses": [{"state": {"terminated": ended}}]}
    world.cluster.objects["Pod", OWN, f"{name}-x"] = {
        "kind": "Pod",
        "metadata": meta,
        "status": status,
    }


def handed(world: World, name: str) -> str:
    """A file that the only Job mounts."""
    [job] = jobs(world)
    secret = world.cluster.objects["Secret", OWN, job["metadata"]["name"]]
    return base64.b64decode(secret["data"][name]).decode()


def asked(world: World) -> Pods:
    return task.pods_from_json(handed(world, "pods.json"))


async def test_a_job_beside_the_operator_asks_both_sides_before_there_is_traffic() -> None:
    world = await world_with_evaluation()
    [job] = jobs(world)
    assert job["spec"]["backoffLimit"] == 0
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == [
        "--config=/config.yaml",
        "evaluate",
        "--task=/etc/llm-operator/task/task.json",
        "--report=/dev/termination-log",
    ]
    secret = world.cluster.objects["Secret", OWN, job["metadata"]["name"]]
    assert secret["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    given = task.from_json(handed(world, "task.json"))
    assert given.key.startswith("llmk_")
    assert given.candidate.version == "2"
    assert given.stable is not None
    assert given.stable.version == "1"
    assert given.candidate.model == given.stable.model == "bot"
    assert asked(world) == Pods(("127.0.0.1",), ("127.0.0.1",))
    [told] = world.status()["candidate"]["gates"]
    assert told["state"] == "Waiting"
    assert world.status()["stable"]["version"] == "1"
    assert "trafficSince" not in world.status()["candidate"]


async def test_a_version_that_is_surely_worse_never_gets_traffic_and_its_job_is_deleted() -> None:
    world = await world_with_evaluation()
    end(world, BAD)
    await look(world, 2)
    candidate = world.status()["candidate"]
    assert (candidate["outcome"], candidate["reason"]) == ("Failed", "GateFailed")
    assert (
        "evaluation golden is 0.1 (between 0.05 and 0.17), allowed is 0.02" in candidate["message"]
    )
    assert "trafficSince" not in candidate
    assert world.status()["stable"]["version"] == "1"
    assert jobs(world) == []


async def test_a_version_that_is_as_good_is_promoted_and_says_by_what() -> None:
    world = await world_with_evaluation()
    end(world, GOOD)
    await look(world, 4)
    assert world.status()["stable"]["version"] == "2"
    assert "passed: gate evaluation golden" in world.status()["stable"]["judged"]
    assert jobs(world) == []


@pytest.mark.parametrize(("policy", "version"), [("Hold", "1"), ("Promote", "2")])
async def test_an_evaluation_that_decides_nothing_is_held_before_the_traffic(
    policy: str, version: str
) -> None:
    world = await world_with_evaluation(onInconclusive=policy, maxHoldSeconds=600)
    end(world, dataclasses.replace(GOOD, drop=Estimate(0.03, 0.01, 0.06)))
    await look(world, 4)
    assert world.status()["stable"]["version"] == version
    world.clock.pass_seconds(700)
    await look(world, 2)
    assert world.status()["stable"]["version"] == version
    if policy == "Hold":
        assert world.status()["candidate"]["reason"] == "GateInconclusive"


async def test_each_of_two_evaluations_of_one_dataset_is_waited_for() -> None:
    both = [{"evaluation": {**SPEC, "minScore": least}} for least in (0.5, 0.95)]
    world = await world_with_evaluation(gates=both, strategy="Rolling")
    _, other = jobs(world)
    del world.cluster.objects["Job", OWN, other["metadata"]["name"]]
    end(world, GOOD)
    world.cluster.objects["Job", OWN, other["metadata"]["name"]] = other
    await look(world, 4)
    told = world.status()["candidate"]["gates"]
    assert sorted(each["state"] for each in told) == ["Passed", "Waiting"]
    assert "trafficSince" not in world.status()["candidate"]


async def test_what_cant_be_evaluated_is_told_and_tried_again_while_stable_serves() -> None:
    world = await world_with_evaluation()
    end(
        world,
        EvaluationOutcome(waiting="there is no dataset golden on http://mlflow:5000: create it"),
    )
    await look(world, 1)
    [told] = world.status()["candidate"]["gates"]
    assert told["state"] == "Waiting"
    assert "there is no dataset golden" in told["message"]
    first = jobs(world)[0]["metadata"]["uid"]
    world.clock.pass_seconds(70)
    await look(world, 2)
    assert jobs(world)[0]["metadata"]["uid"] != first
    assert world.status()["stable"]["version"] == "1"


async def test_a_job_that_breaks_is_told_with_what_to_look_at() -> None:
    world = await world_with_evaluation()
    end(world, None)
    await look(world, 1)
    [told] = world.status()["candidate"]["gates"]
    assert "ended without an outcome" in told["message"]
    assert f"kubectl -n {OWN} logs job/" in told["message"]


async def test_a_task_that_was_not_written_is_written_by_the_next_look() -> None:
    world = World()
    installed(world)
    await world.deploy()
    await look(world, 3)
    await world.deploy(
        rollout={"gates": [{"evaluation": {**SPEC, "minScore": 0.9}}]},
        access={"authentication": "Disabled"},
    )
    world.registry.aliases["bot"]["champion"] = "2"
    world.cluster.faults["create", "Secret"] = Unavailable("away")
    await look(world, 3)
    [job] = jobs(world)
    assert ("Secret", OWN, job["metadata"]["name"]) not in world.cluster.objects
    world.cluster.faults.clear()
    await look(world, 1)
    assert ("Secret", OWN, job["metadata"]["name"]) in world.cluster.objects


async def test_the_job_is_told_of_pods_that_come_and_go_and_never_of_anybody_elses() -> None:
    world = await world_with_evaluation()
    [uid] = {job["metadata"]["uid"] for job in jobs(world)}
    [pod] = [name for name in world.cluster.named("Pod") if candidate(world) in name]
    found = world.cluster.objects["Pod", NAMESPACE, pod]
    found["status"]["podIP"] = "10.0.0.7"
    await reconcile(KEY, world.outside, PACE)
    assert asked(world) == Pods(("10.0.0.7",), ("127.0.0.1",))
    found = world.cluster.objects["Pod", NAMESPACE, pod]
    found["metadata"]["ownerReferences"] = []
    await reconcile(KEY, world.outside, PACE)
    assert asked(world) == Pods((), ("127.0.0.1",))
    assert [job["metadata"]["uid"] for job in jobs(world)] == [uid]
    writes = len(world.cluster.writes)
    await reconcile(KEY, world.outside, PACE)
    assert ("patch", "Secret", jobs(world)[0]["metadata"]["name"]) not in world.cluster.writes[
        writes:
    ]


def candidate(world: World) -> str:
    return str(world.status()["candidate"]["revision"])


async def test_a_clock_that_is_set_back_makes_no_second_job() -> None:
    world = await world_with_evaluation()
    before = jobs(world)
    world.clock.pass_seconds(-300)
    await look(world, 3)
    assert jobs(world) == before


async def test_a_verdict_is_kept_though_the_operator_starts_anew_and_its_job_is_gone() -> None:
    world = await world_with_evaluation(maxHoldSeconds=600)
    end(world, dataclasses.replace(GOOD, drop=Estimate(0.03, 0.01, 0.06)))
    await look(world, 2)
    [told] = world.status()["candidate"]["gates"]
    assert told["state"] == "Inconclusive"
    [job] = jobs(world)
    del world.cluster.objects["Job", OWN, job["metadata"]["name"]]
    world.restarted("example.com/runtime:1")
    installed(world)
    await look(world, 2)
    assert jobs(world) == []
    assert world.status()["candidate"]["gates"] == [told]
    # Another gate is judged anew.
    await world.deploy(rollout={"gates": [{"evaluation": {**SPEC, "minScore": 0.9}}]})
    await look(world, 2)
    assert len(jobs(world)) == 1
    assert world.status()["candidate"]["gates"][0]["state"] == "Waiting"


async def test_the_jobs_of_a_replaced_candidate_and_of_a_changed_gate_are_deleted_at_once() -> None:
    world = await world_with_evaluation()
    [first] = jobs(world)
    await world.deploy(rollout={"gates": [{"evaluation": {**SPEC, "minScore": 0.9}}]})
    await look(world, 1)
    [second] = jobs(world)
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    world.registry.aliases["bot"]["champion"] = "3"
    await look(world, 4)
    [third] = jobs(world)
    assert third["metadata"]["uid"] != second["metadata"]["uid"]
    assert task.from_json(handed(world, "task.json")).candidate.version == "3"
    world.cluster.objects["LLMDeployment", NAMESPACE, "bot"]["metadata"]["deletionTimestamp"] = "x"
    await reconcile(KEY, world.outside, PACE)
    assert jobs(world) == []


async def test_the_job_of_a_replaced_candidate_ends_though_it_is_all_that_answers_clients() -> None:
    """After a switch, while the pods of stable are away."""
    rollout = {"strategy": "BlueGreen", "blueGreen": {"holdSeconds": 600}}
    watched = {"maxErrorRate": 0.1}
    world = World()
    installed(world)
    await world.deploy(rollout={**rollout, "gates": [watched]})
    await look(world, 3)
    world.registry.aliases["bot"]["champion"] = "2"
    await look(world, 4)
    assert "trafficSince" in world.status()["candidate"]
    evaluation = {"evaluation": {**SPEC, "minScore": 0.9}}
    await world.deploy(rollout={**rollout, "gates": [watched, evaluation]})
    stable = f"bot-{world.status()['stable']['revision']}"

    async def looked(times: int) -> None:
        for _ in range(times):
            await reconcile(KEY, world.outside, PACE)
            for name in world.cluster.named("Deployment"):
                world.cluster.play(name, 0 if name == stable else None)

    await looked(2)
    [job] = jobs(world)
    world.registry.aliases["bot"]["champion"] = "3"
    await looked(3)
    assert world.status()["candidate"]["version"] == "2"
    assert world.selected() == candidate(world)
    assert jobs(world) == []
    world.registry.aliases["bot"]["champion"] = "2"
    await looked(2)
    [again] = jobs(world)
    assert again["metadata"]["uid"] != job["metadata"]["uid"]


async def test_without_the_charts_template_the_gate_says_so() -> None:
    world = World()
    await world.deploy()
    await look(world, 3)
    await world.deploy(rollout={"gates": [{"evaluation": {**SPEC, "minScore": 0.9}}]})
    world.registry.aliases["bot"]["champion"] = "2"
    await look(world, 3)
    [told] = world.status()["candidate"]["gates"]
    assert "has no evaluation.podTemplate" in told["message"]


async def test_the_jobs_of_a_deployment_that_is_deleted_are_deleted() -> None:
    world = await world_with_evaluation()
    del world.cluster.objects["LLMDeployment", NAMESPACE, "bot"]
    await reconcile(KEY, world.outside, PACE)
    assert jobs(world) == []


@pytest.mark.parametrize(
    ("judge", "told"),
    [
        ({"url": "http://elsewhere/v1", "model": "m"}, "none of evaluation.judges"),
        ({"deployment": "nobody"}, "LLMDeployment nobody, does not exist"),
        (
            {
                "deployment": "bot",
                "keyRef": {"name": "bot-registry", "key": "MLFLOW_TRACKING_PASSWORD"},
            },
            "operator's own",
        ),
    ],
)
async def test_a_judge_that_may_not_be_asked_is_told_and_no_job_is_made(
    judge: dict[str, Any], told: str
) -> None:
    world = World()
    installed(world)
    await world.deploy()
    await look(world, 3)
    scorers = [{"type": "Judge", "judge": judge}]
    await world.deploy(
        rollout={
            "gates": [{"evaluation": {"dataset": "golden", "scorers": scorers, "minScore": 0.5}}]
        }
    )
    world.registry.aliases["bot"]["champion"] = "2"
    await look(world, 3)
    [verdict] = world.status()["candidate"]["gates"]
    assert told in verdict["message"]
    assert jobs(world) == []
