"""Random walks with gates of every kind at once: nothing gets on undecided, and everything ends."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest

from llm_operator.crds import GateVerdict, LLMDeploymentStatus
from llm_operator.crds.rollout import GateSpec
from llm_operator.plans.evidence import gates
from llm_operator.plans.rollout import Decision, Wanted
from llm_operator.plans.rollout.candidate import Candidate
from llm_operator.plans.rollout.move import Move
from llm_operator.plans.rollout.select import STRATEGIES
from llm_operator.plans.rollout.states import State
from llm_operator.plans.rollout.steer import STEER
from llm_operator.state import Estimate, EvaluationOutcome, Evidence, ProbeOutcome, SmokeOutcome
from unit.operator.fakes import NAMESPACE, World
from unit.operator.test_loadprobe import look as look_at
from unit.operator.test_rollout_strategies import Sim, promises, rollout

EVALUATION = {"evaluation": {"dataset": "golden", "scorers": [{"type": "Exact"}], "minScore": 0.95}}
PROBE = {"loadProbe": {"maxTimeToFirstTokenRatio": 1.3}}
SMOKE = {"smokePrompts": {"configMap": "smoke"}}
COPIES = {"shadowAgreement": {"minExact": 0.95}}
ERRORS = {"maxErrorRate": 0.01}
TOKENS = {"maxTokensPerAnswerRatio": 1.5}
KINDS = (EVALUATION, PROBE, SMOKE, COPIES, ERRORS, TOKENS)
ENDS = 700
"""Seconds in which all deadlines and holds of these roll-outs are over, one after the other."""
SCORES = {
    "Passed": EvaluationOutcome(score=Estimate(1.0, 0.99, 1.0), samples=500),
    "Inconclusive": EvaluationOutcome(score=Estimate(1.0, 0.5, 1.0), samples=8),
    "Failed": EvaluationOutcome(score=Estimate(0.1, 0.0, 0.2), samples=500),
    "Waiting": EvaluationOutcome(waiting="the dataset is away"),
}


def shown(sim: Sim, revision: str, state: str, only: dict[str, Any] | None = None) -> Evidence:
    """Gates of a candidate that say this: all of them, or one kind, and the others have passed."""
    traffic = dict[str, GateVerdict]()
    shadow = dict[str, GateVerdict]()
    evaluations = dict[str, EvaluationOutcome]()
    probes: dict[Any, ProbeOutcome] = {}
    smoke = dict[str, SmokeOutcome]()
    for spec in sim.spec.gates or ():
        says = state if only is None or spec == GateSpec.model_validate(only) else "Passed"
        if spec.evaluation:
            evaluations[gates.key(spec)] = SCORES[says]
        elif spec.smoke_prompts:
            failures = ("capital: wrong",) if says == "Failed" else ()
            smoke["smoke"] = SmokeOutcome(
                1, failures, waiting="busy" if says == "Waiting" else "", pods=int(says == "Passed")
            )
        elif spec.load_probe:
            verdict = GateVerdict.model_validate(
                {"name": gates.LOAD_PROBE, "state": says, "message": "load"}
            )
            probes[spec.load_probe] = ProbeOutcome(kept=verdict)
        elif spec.shadow_agreement:
            name, says = f"{gates.SHADOW} minExact", says if says != "Waiting" else "Inconclusive"
            fields = {"name": name, "state": says, "threshold": "0.95", "message": "copies"}
            shadow[gates.key(spec)] = GateVerdict.model_validate(fields)
        else:
            says = says if says != "Waiting" else "Inconclusive"
            fields = {"name": gates.traffic_gate(spec)[0], "state": says, "message": "traffic"}
            traffic[gates.key(spec)] = GateVerdict.model_validate(fields)
    return Evidence(
        revision,
        traffic=traffic,
        shadow=shadow,
        evaluations=evaluations,
        probes=probes,
        smoke=smoke,
    )


def specified(
    chance: random.Random, kinds: list[dict[str, Any]], strategy: str, policy: str
) -> Any:
    shadow = {"shadow": {"holdSeconds": chance.choice([0, 20])}} if COPIES in kinds else {}
    fields = {"onInconclusive": policy, "maxHoldSeconds": 60, "progressDeadlineSeconds": 100}
    return rollout(strategy, gates=kinds, **shadow, **fields)


def steps(sim: Sim, decision: Decision, before: Candidate | None) -> None:
    """What a look may not do, by what was known when it was made."""
    candidate = decision.candidate
    known = gates.judge(sim.spec.gates or (), sim.evidence)
    if before is not None and before.traffic_since:
        known = gates.with_shadow_verdicts_kept(known, before.gates)
    bad = {each.name for each in known if each.state in ("Waiting", "Failed")}
    if any(each.reason == "RolledOut" for each in decision.occurrences):
        assert not bad
    if decision.rolling_out and sim.replicas:
        assert decision.requeue_seconds is not None or (candidate is not None and candidate.paused)
    assert decision.requeue_seconds is None or decision.requeue_seconds >= 0.5
    if candidate is None or before is None or before.revision != candidate.revision:
        return
    strategy = STRATEGIES[candidate.strategy or "BlueGreen"]
    move = Move(decision.situation, decision.stable, candidate, takes_copies=strategy.takes_copies)
    if candidate.traffic_since and not before.traffic_since and candidate.strategy != "Recreate":
        assert (
            not {each.name for each in known if gates.without_traffic(each) or "smoke" in each.name}
            & bad
        )
    if candidate.undecided_since and not before.undecided_since and candidate.outcome is None:
        assert any(each.state == "Inconclusive" for each in candidate.gates)
        assert move.state in (State.READY, State.TRAFFIC)
        assert (move.shadow_left if move.state is State.READY else strategy.hold_left(move)) <= 0


def happens(sim: Sim, chance: random.Random, number: int) -> None:
    """Registry, people, pods and clock do what they like."""
    happening = chance.random()
    if happening < 0.04:
        sim.wanted = Wanted(f"r{number}", str(number + 3), "i")
    elif happening < 0.08:
        sim.annotations = {STEER: chance.choice(["pause", "resume", "skip", "abort"])}
    elif happening < 0.10 and (pods := sim.pods.get(chance.choice(list(sim.pods)))):
        chance.choice(pods).restarts += 1
    elif happening < 0.12:
        sim.now += timedelta(seconds=chance.choice([-500, 50]))
    elif happening < 0.15:
        sim.replicas = chance.choice([0, 1, 3])
    elif happening < 0.18 and sim.wanted:
        sim.never_ready ^= {sim.wanted.revision}


@pytest.mark.parametrize("seed", range(60))
def test_gates_of_all_kinds_together_break_no_promise_and_every_candidate_ends(seed: int) -> None:
    chance = random.Random(seed)
    strategy = chance.choice(["Auto", "Rolling", "BlueGreen", "Canary", "Recreate"])
    policy = ["Hold", "Promote", "RollBack"][seed % 3]
    kinds = chance.sample(KINDS, chance.randint(1, len(KINDS)))
    sim = Sim(specified(chance, kinds, strategy, policy), replicas=chance.choice([1, 1, 2, 3, 5]))
    for number in range(80):
        sim.now += timedelta(seconds=chance.choice([0, 0.5, 1, 2, 5, 20]))
        if chance.random() < 0.03:
            kinds = chance.sample(KINDS, chance.randint(0, len(KINDS)))
            sim.spec = specified(
                chance, kinds, strategy, chance.choice(["Hold", "Promote", "RollBack"])
            )
        happens(sim, chance, number)
        drawn = chance.random()
        state = (
            "Failed"
            if drawn < 0.02
            else "Waiting"
            if drawn < 0.2
            else "Inconclusive"
            if drawn < 0.5
            else "Passed"
        )
        asked = sim.wanted.revision if sim.wanted else ""
        sim.evidence = shown(sim, asked, state, chance.choice([*kinds, None]))
        look(sim)
        sim.play(leave=chance.random() < 0.7)
    sim.annotations = {}
    sim.never_ready = set()
    sim.replicas = sim.replicas or 2
    state = chance.choice(["Passed", "Inconclusive", "Waiting"])
    only = chance.choice([*kinds, None])
    flaps = chance.choice([0, 0, 7, 15])
    for second in range(ENDS):
        if flaps and second % flaps == 0 and sim.decision and sim.decision.rolling_out:
            sim.never_ready ^= {asked}
        sim.now += timedelta(seconds=1)
        sim.evidence = shown(sim, asked, state, only)
        look(sim)
        sim.play()
    assert sim.decision is not None
    assert not sim.decision.rolling_out
    assert len(sim.serving) == 1
    assert flaps or sim.ready(sim.serving[0]) == sim.replicas


def look(sim: Sim) -> None:
    before = sim.status
    candidate = Candidate.read(before.candidate) if before.candidate else None
    decision = sim.look()
    if sim.replicas:
        promises(sim, before, decision)
    steps(sim, decision, candidate)


@pytest.mark.parametrize("strategy", ["BlueGreen", "Canary", "Rolling"])
@pytest.mark.parametrize(
    ("kind", "seconds"), [(EVALUATION, 13), (PROBE, 13), (COPIES, 40), (ERRORS, 70)]
)
def test_pods_that_come_and_go_make_no_hold_endless(
    strategy: str, kind: dict[str, Any], seconds: int
) -> None:
    if kind is COPIES and strategy == "Rolling":
        return  # It sends none.
    sim = Sim(specified(random.Random(1), [kind], strategy, "Hold"), replicas=1)
    for second in range(ENDS):
        if second % seconds == 0:
            sim.never_ready ^= {"new"}
        sim.evidence = shown(sim, "new", "Inconclusive")
        sim.step()
        if sim.candidate.outcome:
            break
    assert (sim.candidate.outcome, sim.candidate.reason, sim.serving) == (
        "Failed",
        "GateInconclusive",
        ("old",),
    )
    assert (
        gates.describe(gates.judge(sim.spec.gates or (), sim.evidence)[0]) in sim.candidate.message
    )


@pytest.mark.parametrize(
    ("policy", "state", "seconds", "reason"),
    [
        ("Hold", "Inconclusive", 62, "GateInconclusive"),
        ("RollBack", "Inconclusive", 2, "GateInconclusive"),
        ("Promote", "Inconclusive", 2, None),
        ("Hold", "Passed", 2, None),
        ("Hold", "Waiting", 102, "ProgressDeadlineExceeded"),
    ],
)
@pytest.mark.parametrize("flaps", [0, 13])
def test_an_evaluation_that_is_written_while_a_canary_grows_is_decided_by_the_policy(
    policy: str, state: str, seconds: int, reason: str | None, flaps: int
) -> None:
    sim = Sim(specified(random.Random(1), [], "Canary", policy), replicas=4)
    sim.until(lambda s: s.candidate.step == 3)
    sim.spec = specified(random.Random(1), [EVALUATION], "Canary", policy)
    sim.evidence = shown(sim, "new", state)
    for second in range(seconds):
        if flaps and second % flaps == flaps - 1:
            sim.never_ready ^= {"new"}
        sim.step()
    if reason is None:
        assert sim.stable == "2"
    else:
        assert (sim.candidate.outcome, sim.candidate.reason) == ("Failed", reason)
        assert "evaluation golden" in sim.candidate.message


def test_an_evaluation_that_passes_after_all_ends_the_hold_of_a_canary_that_grows() -> None:
    sim = Sim(specified(random.Random(1), [], "Canary", "Hold"), replicas=4)
    sim.until(lambda s: s.candidate.step == 3)
    sim.spec = specified(random.Random(1), [EVALUATION], "Canary", "Hold")
    sim.evidence = shown(sim, "new", "Inconclusive")
    sim.run(20)
    assert sim.candidate.undecided_since is not None
    sim.never_ready = {"new"}
    sim.run(2)
    sim.evidence = shown(sim, "new", "Passed")
    sim.run(45)
    assert sim.candidate.undecided_since is None
    sim.never_ready = set()
    assert sim.run(5).stable == "2"


LONG = {
    "BlueGreen": {"blueGreen": {"holdSeconds": 3000}},
    "Canary": {"canary": {"steps": [{"weight": 50, "holdSeconds": 3000}]}},
    "Canary without traffic": {"canary": {"steps": [{"weight": 5, "holdSeconds": 3000}]}},
    "BlueGreen with copies": {"shadow": {"holdSeconds": 3000}},
    "Canary with copies": {"shadow": {"holdSeconds": 3000}},
}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("late", [60, 95, 2000])
def test_a_pod_that_is_away_for_a_moment_late_in_a_long_hold_fails_nobody(
    kind: str, late: int
) -> None:
    spec = rollout(kind.split()[0], **LONG[kind], progressDeadlineSeconds=100)
    sim = Sim(spec, replicas=2).run(late)
    sim.never_ready = {"new"}
    sim.run(8)
    sim.never_ready = set()
    sim.run(3)
    assert sim.decision is not None
    assert sim.decision.rolling_out
    sim.never_ready = {"new"}
    sim.run(110)
    assert sim.candidate.reason == "ProgressDeadlineExceeded"


def test_the_same_with_rolling_whose_hold_is_a_minute() -> None:
    sim = Sim(rollout("Rolling", gates=[ERRORS], progressDeadlineSeconds=30), replicas=2)
    sim.evidence = shown(sim, "new", "Inconclusive")
    sim.run(50)
    sim.never_ready = {"new"}
    sim.run(5)
    sim.never_ready = set()
    assert sim.run(200).stable == "2"


@pytest.mark.parametrize("kind", LONG)
def test_pods_that_come_and_go_in_a_long_hold_use_up_the_deadline(kind: str) -> None:
    sim = Sim(rollout(kind.split()[0], **LONG[kind], progressDeadlineSeconds=100), replicas=2)
    for second in range(ENDS):
        if second % 10 in (0, 7):
            sim.never_ready ^= {"new"}
        sim.step()
    assert sim.candidate.reason == "ProgressDeadlineExceeded"


def test_gates_on_traffic_hold_no_canary_up_in_a_step_that_has_lost_its_traffic_for_want_of_pods() -> (
    None
):
    steps = [{"weight": 20, "holdSeconds": 30}, {"weight": 50, "holdSeconds": 30}]
    spec = rollout(
        "Canary", gates=[ERRORS], canary={"steps": steps}, onInconclusive="Hold", maxHoldSeconds=60
    )
    sim = Sim(spec, replicas=5)
    sim.evidence = shown(sim, "new", "Inconclusive")
    sim.until(lambda s: s.candidate.step_started_at is not None and s.candidate.weight)
    sim.replicas = 2
    sim.until(lambda s: s.candidate.step == 2 and s.candidate.weight, looks=50)
    sim.run(20)
    sim.evidence = shown(sim, "new", "Passed")
    assert sim.run(40).stable == "2"


def test_a_switch_back_and_forth_for_want_of_pods_ends_at_the_deadline() -> None:
    sim = Sim(specified(random.Random(1), [ERRORS], "BlueGreen", "Hold"), replicas=2)
    sim.evidence = shown(sim, "new", "Passed")
    for second in range(ENDS):
        if second % 7 == 6:
            sim.never_ready ^= {"new"}
        sim.step()
    assert (sim.candidate.reason, sim.serving) == ("ProgressDeadlineExceeded", ("old",))


@pytest.mark.parametrize("strategy", ["BlueGreen", "Canary", "Rolling", "Recreate"])
@pytest.mark.parametrize("looks", [2, 6, 90])
def test_a_candidate_that_sleeps_without_pods_goes_on_where_it_was(
    strategy: str, looks: int
) -> None:
    sim = Sim(specified(random.Random(1), [ERRORS], strategy, "Hold"), replicas=2)
    sim.evidence = shown(sim, "new", "Inconclusive")
    sim.run(looks)
    sim.replicas = 0
    sim.run(ENDS)
    assert not any(map(sim.ready, sim.pods))
    sim.replicas = 2
    sim.evidence = shown(sim, "new", "Passed")
    assert sim.run(ENDS).stable == "2"


@pytest.mark.parametrize("kind", [SMOKE, EVALUATION])
@pytest.mark.parametrize(
    ("state", "serving"), [("Waiting", ()), ("Failed", ()), ("Passed", ("new",))]
)
def test_a_first_version_that_is_late_is_asked_before_it_serves(
    kind: dict[str, Any], state: str, serving: tuple[str, ...]
) -> None:
    spec = specified(random.Random(1), [kind], "Auto", "Hold")
    sim = Sim(spec, replicas=2, status=LLMDeploymentStatus(), serving=(), never_ready={"new"})
    sim.orders = {}
    sim.pods = {}
    sim.evidence = shown(sim, "new", "Waiting")
    sim.until(lambda s: s.candidate.outcome == "Failed")
    sim.never_ready = set()
    sim.run(5)
    assert (sim.serving, sim.status.stable) == ((), None)
    assert sim.decision is not None
    assert sim.decision.requeue_seconds == 2
    sim.evidence = shown(sim, "new", state)
    sim.run(5)
    assert sim.serving == serving
    if state == "Failed":
        assert sim.candidate.reason == "GateFailed"
    if state == "Passed":
        assert sim.stable == "2"


def test_a_candidate_that_is_held_is_looked_at_though_none_of_its_pods_answer() -> None:
    sim = Sim(specified(random.Random(1), [ERRORS], "Canary", "Hold"), replicas=4)
    sim.evidence = shown(sim, "new", "Inconclusive")
    sim.until(lambda s: s.candidate.undecided_since is not None)
    sim.never_ready = {"new"}
    sim.run(2)
    assert sim.decision is not None
    assert sim.decision.requeue_seconds is not None
    assert sim.decision.requeue_seconds <= 60


async def test_a_first_version_that_is_late_is_still_asked_and_serves_once_it_has_answered() -> (
    None
):
    world = World()
    gates = [{"smokePrompts": {"configMap": "smoke"}}]
    await world.deploy(
        rollout={"gates": gates, "progressDeadlineSeconds": 100},
        access={"authentication": "Disabled"},
    )
    await look_at(world, 3)
    world.clock.pass_seconds(200)
    await look_at(world, 4)
    assert world.status()["candidate"]["reason"] == "ProgressDeadlineExceeded"
    assert "stable" not in world.status()
    data = {"capital": "prompt: The capital of France?\nexpect: {exact: Paris}\n"}
    await world.cluster.create(
        {"kind": "ConfigMap", "metadata": {"name": "smoke", "namespace": NAMESPACE}, "data": data}
    )
    await look_at(world, 3)
    assert "passed: gate smokePrompts smoke" in world.status()["stable"]["judged"]
    assert not world.outside.memory.smoke
