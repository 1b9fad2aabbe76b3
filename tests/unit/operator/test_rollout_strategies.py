"""Strategies on a simulated cluster with a clock:
how a candidate gets traffic, and what becomes of a bad one."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llm_operator.crds import CandidateStatus, GateVerdict, LLMDeploymentStatus, StableStatus
from llm_operator.crds.rollout import GateSpec, RolloutSpec
from llm_operator.plans.evidence import gates
from llm_operator.plans.rollout import Decision, Situation, Wanted, advance, stamp
from llm_operator.plans.rollout.canary import Canary
from llm_operator.plans.rollout.candidate import Candidate
from llm_operator.plans.rollout.move import Move
from llm_operator.plans.rollout.pin import ROLLBACK
from llm_operator.plans.rollout.steer import STEER
from llm_operator.state import Evidence, Fault, Manifest, Occurrence, RevisionChildren, SmokeOutcome

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FULL = (
    "0/1 nodes are available: 1 Insufficient gpu. preemption: 0/1 nodes are available: "
    "1 No preemption victims found for incoming pod."
)
NO_ROOM = Fault("PodUnschedulable", f"pod new-1 finds no node: not enough gpu: {FULL}")
STEPS = [{"weight": 20, "holdSeconds": 30}, {"weight": 50, "holdSeconds": 30}]
SLOW = {"maxErrorRate": 0.01, "minRequests": 10}


@dataclass
class Pod:
    ready: bool = False
    leaving: bool = False
    restarts: int = 0
    sidecar_restarts: int = 0
    placed: bool = True
    """It has a node."""
    said: str = FULL
    """What the scheduler says of it as long as it has none."""
    phase: str = "Running"

    def manifest(self) -> Manifest:
        meta = {"name": "pod"} | ({"deletionTimestamp": "now"} if self.leaving else {})
        conditions = [{"type": "Ready", "status": "True" if self.ready else "False"}]
        containers = [
            {"name": "runtime", "restartCount": self.restarts, "state": {}},
            {"name": "istio-proxy", "restartCount": self.sidecar_restarts, "state": {}},
        ]
        spec: Manifest = {"containers": [{"resources": {"requests": {"gpu": "1"}}}]}
        if self.placed:
            spec["nodeName"] = "node"
        else:
            conditions.append(
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": self.said,
                }
            )
        status = {"phase": self.phase, "conditions": conditions, "containerStatuses": containers}
        return {"metadata": meta, "spec": spec, "status": status}

    @property
    def counts(self) -> bool:
        """It is one of its Deployment's pods."""
        return not self.leaving and self.phase == "Running"


@dataclass
class Sim:
    """Deployments, pods that come and go, and a status that outlives every operator."""

    spec: RolloutSpec
    replicas: int = 2
    room: int = 100
    """Pods that the cluster holds."""
    now: datetime = NOW
    status: LLMDeploymentStatus = field(
        default_factory=lambda: LLMDeploymentStatus(
            stable=StableStatus(revision="old", version="1", image="i")
        )
    )
    wanted: Wanted | None = field(default_factory=lambda: Wanted("new", "2", "i"))
    orders: dict[str, int] = field(default_factory=dict)
    pods: dict[str, list[Pod]] = field(default_factory=dict)
    never_ready: set[str] = field(default_factory=set)
    said: str = FULL
    """What the scheduler says."""
    nowhere: set[str] = field(default_factory=set)
    """Revisions whose pods fit on no node, however empty."""
    coming: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    kept: dict[str, Wanted] = field(default_factory=dict)
    evidence: Evidence = field(
        default_factory=lambda: Evidence("new", smoke={"smoke": SmokeOutcome(1)})
    )
    routed: bool = False
    serving: tuple[str, ...] = ("old",)
    told: list[Occurrence] = field(default_factory=list)
    decision: Decision | None = None

    def __post_init__(self) -> None:
        self.orders, self.pods = (
            {"old": self.replicas},
            {"old": [Pod(ready=True) for _ in range(self.replicas)]},
        )

    def children(self, revision: str) -> RevisionChildren:
        ready = self.ready(revision)
        deployment = {
            "metadata": {"generation": 1},
            "spec": {"replicas": self.orders[revision]},
            "status": {"observedGeneration": 1, "readyReplicas": ready},
        }
        pods = tuple(pod.manifest() for pod in self.pods.get(revision, []))
        return RevisionChildren(revision, deployment, {}, pods)

    def faults(self) -> dict[str, Fault]:
        waiting = {
            r for r, pods in self.pods.items() if any(pod.counts and not pod.placed for pod in pods)
        }
        return dict.fromkeys(waiting, NO_ROOM)

    def full(self) -> bool:
        pods = [pod for pods in self.pods.values() for pod in pods]
        return sum(pod.placed and pod.phase == "Running" for pod in pods) >= self.room

    def situation(self) -> Situation:
        return Situation(
            status=self.status,
            wanted=self.wanted,
            revisions={revision: self.children(revision) for revision in self.orders},
            faults=self.faults(),
            spec=self.spec,
            replicas=self.replicas,
            settle_seconds=5,
            now=self.now,
            annotations=self.annotations,
            kept=self.kept,
            evidence=self.evidence,
            routed=self.routed,
            coming=self.coming,
        )

    def look(self) -> Decision:
        """One reconcile of an operator that remembers nothing but the status."""
        decision = advance(self.situation())
        self.status = LLMDeploymentStatus(
            stable=decision.stable,
            candidate=decision.candidate.status() if decision.candidate else None,
            history=decision.history,
            directive=decision.directive,
            rollback=decision.rollback,
        )
        self.serving = decision.serving
        self.decision = decision
        self.told += decision.occurrences
        self.orders = dict(decision.replicas) | {
            r: 0 for r in self.orders if r not in decision.replicas
        }
        self.orders = {
            r: n for r, n in self.orders.items() if n or r in decision.replicas or self.pods.get(r)
        }
        return decision

    def play(self, leave: bool = True) -> None:
        """The Deployment controllers, the scheduler and the kubelets."""
        for revision, pods in self.pods.items():
            if leave:
                pods[:] = [pod for pod in pods if not pod.leaving]
            staying = sorted(
                (pod for pod in pods if pod.counts), key=lambda pod: (pod.placed, pod.ready)
            )
            for pod in staying[: max(0, len(staying) - self.orders.get(revision, 0))]:
                pod.leaving = True
            pods[:] = [pod for pod in pods if pod.placed or not pod.leaving]
        for revision, wanted in self.orders.items():
            pods = self.pods.setdefault(revision, [])
            pods += [
                Pod(placed=False, said=self.said)
                for _ in range(wanted - sum(pod.counts for pod in pods))
            ]
            for pod in pods:
                if not pod.placed and revision not in self.nowhere and not self.full():
                    pod.placed = True
                pod.ready = (
                    pod.placed and pod.phase == "Running" and revision not in self.never_ready
                )

    def step(self, seconds: float = 1) -> Decision:
        self.now += timedelta(seconds=seconds)
        decision = self.look()
        self.play()
        return decision

    def run(self, looks: int = 200, seconds: float = 1) -> Sim:
        for _ in range(looks):
            self.step(seconds)
        return self

    def until(self, holds: Any, looks: int = 300) -> Sim:
        for _ in range(looks):
            self.step()
            if holds(self):
                return self
        raise AssertionError(f"it did not happen: {self.status.candidate}")

    @property
    def stable(self) -> str:
        assert self.status.stable is not None
        return self.status.stable.version

    @property
    def candidate(self) -> Any:
        assert self.status.candidate is not None
        return self.status.candidate

    def ready(self, revision: str) -> int:
        return sum(pod.ready and pod.counts for pod in self.pods.get(revision, []))

    def share(self) -> float:
        """Percent of the pods behind the Service that are the candidate's."""
        new = self.ready("new") if "new" in self.serving else 0
        old = self.ready("old") if "old" in self.serving else 0
        return 100 * new / (new + old) if new + old else 0


def rollout(strategy: str, **fields: Any) -> RolloutSpec:
    if strategy == "Canary":
        fields.setdefault("canary", {"steps": STEPS})
    return RolloutSpec.model_validate({"strategy": strategy, "onInconclusive": "Promote", **fields})


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        ("Auto", ["rollout.canary.steps have no effect with strategy Auto: write strategy Canary"]),
        ("Rolling", ["rollout.canary.steps have", "rollout.blueGreen has no effect"]),
        ("Canary", ["rollout.blueGreen has no effect with strategy Canary"]),
        ("Recreate", []),
    ],
)
def test_settings_of_another_strategy_are_told_whether_a_roll_out_is_under_way_or_not(
    strategy: str, told: list[str]
) -> None:
    spec = rollout(strategy, canary={"steps": STEPS}, blueGreen={"holdSeconds": 5})
    sim = Sim(spec)
    for _ in range(2):
        assert sim.decision is None or sim.decision.candidate is None
        remarks = sim.look().remarks
        assert len(remarks) == len(told)
        assert all(map(str.startswith, remarks, told))
        sim.until(lambda s: s.decision and s.decision.candidate is None)


def shown(state: str, revision: str = "new", **more: Any) -> Evidence:
    """What the gate SLOW says of a candidate's traffic."""
    fields = {"name": "maxErrorRate", "state": state, "estimate": "0.4", "threshold": "0.01"}
    verdict = GateVerdict.model_validate(fields)
    return Evidence(revision, traffic={gates.key(GateSpec.model_validate(SLOW)): verdict}, **more)


@pytest.mark.parametrize("strategy", ["Auto", "BlueGreen", "Rolling", "Canary", "Recreate"])
def test_a_good_candidate_arrives_and_the_old_pods_go(strategy: str) -> None:
    sim = Sim(rollout(strategy), replicas=4).run()
    assert (sim.stable, sim.serving, sim.status.candidate) == ("2", ("new",), None)
    assert (sim.ready("new"), sim.ready("old")) == (4, 0)
    assert sim.status.history[0].outcome == "Superseded"


def test_a_canary_gets_its_weight_holds_it_and_only_then_more() -> None:
    sim = Sim(rollout("Canary"), replicas=4)
    sim.until(lambda s: s.serving == ("old", "new"))
    assert (sim.orders, sim.candidate.weight, sim.share()) == ({"old": 4, "new": 1}, 20, 20)
    began = sim.now
    sim.until(lambda s: s.candidate.step == 2)
    assert (sim.now - began).total_seconds() >= 29
    sim.until(lambda s: s.share() == 50)
    assert sim.orders == {"old": 4, "new": 4}


def test_a_canary_whose_one_pod_would_be_too_much_runs_its_step_without_traffic() -> None:
    sim = Sim(rollout("Canary"), replicas=2)
    sim.run(20)
    assert (sim.candidate.step, sim.candidate.weight, sim.serving) == (1, 0, ("old",))
    assert sim.orders == {"old": 2, "new": 1}
    sim.until(lambda s: s.serving == ("old", "new"))
    assert sim.candidate.step == 2


def test_pods_of_a_third_revision_keep_the_candidate_out_of_the_service_until_they_leave() -> None:
    for strategy in ("Canary", "Rolling"):
        sim = Sim(rollout(strategy), replicas=4)
        for _ in range(20):
            sim.orders["stray"] = 1
            sim.pods["stray"] = [Pod(ready=True)]
            sim.step()
            assert sim.serving == ("old",)
            assert sim.ready("old") == 4
        assert sim.run().stable == "2"


def test_with_a_route_the_weight_is_exact_and_the_service_stays_with_the_stable_revision() -> None:
    sim = Sim(rollout("Canary"), replicas=2, routed=True)
    sim.until(lambda s: s.candidate.weight == 20)
    assert sim.serving == ("old",)
    assert sim.decision is not None
    assert sim.decision.weight == 20
    sim.run()
    assert (sim.stable, sim.serving) == ("2", ("new",))


def test_a_rolling_surge_never_has_less_than_all_replicas_and_one_pod_more() -> None:
    sim = Sim(rollout("Rolling"), replicas=3, room=4)
    while sim.stable == "1":
        sim.step()
        assert sim.ready("old") + sim.ready("new") >= 3
        assert sum(len(p) for p in sim.pods.values()) <= 4
    assert sim.status.history[0].revision == "old"


@pytest.mark.parametrize("strategy", ["Auto", "Rolling"])
def test_without_room_for_a_surge_one_pod_goes_first(strategy: str) -> None:
    sim = Sim(rollout(strategy), replicas=3, room=3)
    least = 3
    while sim.stable == "1":
        sim.step()
        least = min(least, sim.ready("old") + sim.ready("new"))
        assert sim.now - NOW < timedelta(minutes=5)
    assert least == 2
    assert any(
        each.reason == "StrategyChosen" and "Insufficient gpu" in each.message for each in sim.told
    )


@pytest.mark.parametrize("strategy", ["Auto", "BlueGreen", "Rolling", "Canary"])
def test_the_only_pod_is_never_stopped_for_a_new_one_that_finds_no_room(strategy: str) -> None:
    sim = Sim(rollout(strategy, progressDeadlineSeconds=300), replicas=1, room=1)
    for _ in range(400):
        sim.step()
        assert (sim.serving, sim.ready("old")) == (("old",), 1)
    assert sim.candidate.reason == "ProgressDeadlineExceeded"
    assert "Insufficient gpu" in sim.candidate.message
    assert "permit an interruption by name, rollout.strategy: Recreate" in sim.candidate.message


def test_a_first_revision_that_finds_no_room_is_not_told_to_interrupt_anything() -> None:
    sim = Sim(
        rollout("Auto", progressDeadlineSeconds=300),
        replicas=1,
        room=0,
        status=LLMDeploymentStatus(),
    ).run(400)
    assert sim.candidate.reason == "ProgressDeadlineExceeded"
    assert "Insufficient gpu" in sim.candidate.message
    assert "Recreate" not in sim.candidate.message


def test_a_single_pod_that_waits_for_room_says_so_and_takes_it_when_it_comes() -> None:
    sim = Sim(rollout("Auto"), replicas=1, room=1).run(120)
    assert sim.decision is not None
    assert "free room, add a node" in sim.decision.advice
    assert "it waits for room" in sim.candidate.strategy_reason
    sim.room = 2
    while sim.stable == "1":
        sim.step()
        assert sum(sim.ready(revision) for revision in sim.serving) == 1
    assert (sim.ready("new"), sim.run(10).ready("old")) == (1, 0)


def test_an_interruption_is_permitted_by_its_name_while_the_candidate_waits() -> None:
    sim = Sim(rollout("Auto"), replicas=1, room=1).run(60)
    sim.spec = rollout("Recreate")
    assert sim.run(20).stable == "2"


def test_an_interruption_that_an_older_operator_has_begun_is_gone_through_with() -> None:
    """Until 2026-11-28 Auto chose Recreate for a single pod:
    after the upgrade its old pod may be gone already."""
    sim = Sim(rollout("Recreate"), replicas=1, room=1).run(2)
    assert not sim.ready("old")
    sim.spec = rollout("Auto")
    assert sim.run(20).stable == "2"


def test_scaled_down_to_one_pod_in_the_middle_it_is_not_stopped_either() -> None:
    for strategy in ("Auto", "Rolling"):
        sim = Sim(rollout(strategy), replicas=2, room=2, never_ready={"new"})
        sim.until(lambda s: s.candidate.surge == 0)
        sim.replicas = 1
        sim.room = 1
        for _ in range(100):
            sim.step()
            assert sim.ready("old") == 1


def test_where_one_new_pod_has_found_room_auto_has_never_less_ready_pods() -> None:
    sim = Sim(rollout("Auto"), replicas=3, room=4)
    while sim.stable == "1":
        sim.step()
        assert sum(sim.ready(revision) for revision in sim.serving) >= 3
        assert sim.now - NOW < timedelta(minutes=5)


@pytest.mark.parametrize("strategy", ["Auto", "Rolling"])
def test_no_old_pod_is_stopped_for_new_ones_that_fit_nowhere(strategy: str) -> None:
    said = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
    sim = Sim(
        rollout(strategy, progressDeadlineSeconds=300), replicas=3, said=said, nowhere={"new"}
    )
    for _ in range(400):
        sim.step()
        assert sim.ready("old") == 3
    assert sim.candidate.reason == "ProgressDeadlineExceeded"
    assert "stopping an old pod would make no room" in sim.candidate.message


@pytest.mark.parametrize("strategy", ["Auto", "Rolling", "Recreate"])
def test_old_pods_that_were_stopped_in_vain_come_back_before_the_deadline(strategy: str) -> None:
    sim = Sim(rollout(strategy, drainSeconds=10), replicas=3, room=3, nowhere={"new"})
    sim.until(lambda s: s.candidate.outcome == "Failed", 140)
    assert sim.candidate.reason == "PodUnschedulable"
    assert f"stopping old pods ({sim.candidate.strategy}) made no room" in sim.candidate.message
    assert sim.run(5).ready("old") == 3


def test_a_node_that_is_on_its_way_is_waited_for() -> None:
    sim = Sim(
        rollout("Auto"),
        replicas=2,
        room=3,
        coming={"pod": "pod triggered scale-up: [{gpus 1->2 (max: 3)}]"},
    )
    for _ in range(200):
        sim.step()
        assert sim.ready("old") == 2
    assert sim.decision is not None
    assert "a node is on its way for it: pod triggered scale-up" in sim.decision.advice
    sim.room = 4
    assert sim.run(10).stable == "2"
    assert not [each for each in sim.told if each.reason == "StrategyChosen"]


@pytest.mark.parametrize("strategy", ["Auto", "BlueGreen", "Rolling", "Canary", "Recreate"])
@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
def test_pods_at_their_end_are_no_pods(strategy: str, phase: str) -> None:
    """An evicted pod stays listed: of the old revision, of the new one, and of one before."""
    sim = Sim(rollout(strategy, progressDeadlineSeconds=100), replicas=2, room=4)
    sim.pods["old"].append(Pod(phase=phase))
    sim.pods["before"] = [Pod(phase=phase)]
    sim.orders["before"] = 0
    sim.step()
    sim.pods["new"].append(Pod(phase=phase, restarts=2))
    assert sim.run(120).stable == "2"


def test_room_that_comes_in_time_leaves_the_choice_as_it_was() -> None:
    sim = Sim(rollout("Auto"), replicas=2, room=3)
    sim.run(10)
    sim.room = 4
    assert sim.run(10).stable == "2"
    assert not [each for each in sim.told if each.reason == "StrategyChosen"]


def test_a_candidate_that_never_gets_ready_is_given_up_at_its_deadline() -> None:
    for strategy in ("BlueGreen", "Rolling", "Canary", "Recreate"):
        sim = Sim(
            rollout(strategy, progressDeadlineSeconds=60), replicas=2, never_ready={"new"}
        ).run(120)
        assert (sim.stable, sim.candidate.reason) == ("1", "ProgressDeadlineExceeded")
        assert (sim.serving, sim.ready("old"), sim.ready("new")) == (("old",), 2, 0)


def test_a_long_hold_is_not_taken_for_a_missed_deadline() -> None:
    steps = {"steps": [{"weight": 50, "holdSeconds": 300}]}
    sim = Sim(rollout("Canary", canary=steps, progressDeadlineSeconds=20), replicas=2)
    assert sim.run(400).stable == "2"


def test_a_candidate_with_too_many_errors_is_gone_at_the_next_look() -> None:
    sim = Sim(rollout("Canary", gates=[SLOW]), replicas=4)
    sim.until(lambda s: s.serving == ("old", "new"))
    sim.evidence = shown("Failed")
    sim.step()
    assert (sim.serving, sim.orders["new"]) == (("old",), 0)
    assert sim.candidate.reason == "GateFailed"
    assert "maxErrorRate is 0.4, allowed is 0.01" in sim.candidate.message
    assert sim.status.history[0].outcome == "Failed"


def test_what_another_candidate_showed_does_not_count() -> None:
    sim = Sim(rollout("BlueGreen", gates=[SLOW]), replicas=1)
    sim.evidence = shown("Failed", "other")
    assert sim.run(80).stable == "2"


def turned(**fields: Any) -> Sim:
    """BlueGreen after the switch: clients reach the new pods, the old ones are ready, too."""
    sim = Sim(rollout("BlueGreen", **fields), replicas=2)
    sim.until(lambda s: s.serving == ("new",))
    assert (sim.stable, sim.candidate.weight, sim.ready("old")) == ("1", 100, 2)
    return sim


def test_after_the_switch_the_old_pods_stay_for_the_hold_and_the_new_ones_are_judged() -> None:
    sim = turned(blueGreen={"holdSeconds": 30})
    began = sim.now
    sim.until(lambda s: s.stable == "2")
    assert 29 <= (sim.now - began).total_seconds() <= 32
    assert sim.run(20).ready("old") == 0


def test_a_switch_without_gates_that_need_traffic_is_not_held() -> None:
    smoke = {"smokePrompts": {"configMap": "smoke"}}
    for fields in ({}, {"gates": [smoke]}, {"gates": [SLOW], "blueGreen": {"holdSeconds": 0}}):
        sim = Sim(rollout("BlueGreen", **fields), replicas=2).run(10)
        assert (sim.stable, sim.ready("old")) == ("2", 0)


def test_too_many_errors_after_the_switch_turn_the_service_back_to_pods_that_are_ready() -> None:
    sim = turned(gates=[SLOW])
    sim.evidence = shown("Failed")
    sim.step()
    assert (sim.serving, sim.ready("old"), sim.orders["new"]) == (("old",), 2, 0)
    assert sim.candidate.reason == "GateFailed"


def test_a_crash_after_the_switch_turns_the_service_back() -> None:
    sim = turned(gates=[SLOW]).run(15, seconds=2)
    sim.pods["new"][0].restarts += 1
    sim.step()
    assert (sim.serving, sim.candidate.reason) == (("old",), "CandidateCrashed")


def test_new_pods_that_are_lost_after_the_switch_give_the_clients_back_until_they_are_there() -> (
    None
):
    sim = turned(blueGreen={"holdSeconds": 30})
    sim.never_ready = {"new"}
    sim.play()
    sim.run(2)
    assert (sim.serving, sim.candidate.weight, sim.candidate.outcome) == (("old",), 0, None)
    sim.never_ready = set()
    sim.until(lambda s: s.serving == ("new",))
    again = sim.now
    sim.until(lambda s: s.stable == "2")
    assert (sim.now - again).total_seconds() >= 29


def test_a_bad_candidate_keeps_its_clients_as_long_as_nobody_else_could_answer_them() -> None:
    sim = turned(gates=[SLOW])
    sim.never_ready = {"old"}
    sim.play()
    sim.evidence = shown("Failed")
    sim.run(3)
    assert (sim.candidate.outcome, sim.serving, sim.ready("new")) == ("Failed", ("new",), 2)
    sim.never_ready = set()
    assert (sim.run(3).serving, sim.orders["new"]) == (("old",), 0)


def test_a_canary_that_is_told_to_switch_at_once_switches_with_all_its_pods() -> None:
    sim = Sim(rollout("Canary", gates=[SLOW]), replicas=4)
    sim.until(lambda s: s.serving == ("old", "new"))
    sim.spec = rollout("BlueGreen", gates=[SLOW])
    sim.step()
    assert sim.serving == ("old",)
    sim.until(lambda s: s.serving == ("new",))
    assert sim.ready("new") == 4


def test_a_sidecar_that_restarts_says_nothing_of_the_version() -> None:
    for strategy in ("Rolling", "Canary"):
        sim = Sim(rollout(strategy, gates=[SLOW]), replicas=4)
        sim.until(lambda s: s.candidate.traffic_since is not None)
        sim.pods["new"][0].sidecar_restarts += 2
        sim.step()
        assert sim.candidate.outcome is None


def test_a_candidate_that_crashes_after_30_seconds_of_traffic_is_given_up_at_once() -> None:
    for strategy in ("Rolling", "Canary"):
        sim = Sim(rollout(strategy, gates=[SLOW]), replicas=4)
        sim.until(lambda s: s.candidate.traffic_since is not None)
        sim.run(15, seconds=2)
        assert sim.candidate.outcome is None
        sim.pods["new"][0].restarts += 1
        sim.step()
        assert sim.candidate.reason == "CandidateCrashed"
        assert sim.run(5).serving == ("old",)
        assert sim.ready("old") == 4


def test_restarts_before_there_was_traffic_are_no_crash() -> None:
    sim = Sim(rollout("Canary"), replicas=4)
    sim.step()
    sim.pods["new"][0].restarts = 3
    assert sim.run().stable == "2"


def test_a_candidate_that_is_promoted_undecided_is_promoted_with_these_words() -> None:
    sim = Sim(rollout("Canary", gates=[SLOW]), replicas=4)
    sim.evidence = shown("Inconclusive")
    sim.run()
    assert sim.stable == "2"
    assert sim.status.stable is not None
    assert sim.status.stable.judged == "not judged: gate maxErrorRate is 0.4, allowed is 0.01"
    assert "not judged: gate maxErrorRate" in sim.told[-1].message


@pytest.mark.parametrize("strategy", ["Canary", "BlueGreen", "Rolling"])
def test_a_gate_that_does_not_decide_holds_the_candidate_for_a_time_and_then_takes_it_back(
    strategy: str,
) -> None:
    sim = Sim(
        rollout(strategy, gates=[SLOW], onInconclusive="Hold", maxHoldSeconds=300), replicas=4
    )
    sim.evidence = shown("Inconclusive")
    sim.until(lambda s: any(each.reason == "GateUndecided" for each in s.told))
    began = sim.now
    sim.until(lambda s: s.candidate.outcome == "Failed")
    assert (sim.candidate.reason, sim.stable) == ("GateInconclusive", "1")
    assert 298 <= (sim.now - began).total_seconds() <= 305


@pytest.mark.parametrize("strategy", ["Canary", "BlueGreen", "Rolling"])
def test_a_gate_that_decides_while_the_candidate_is_held_lets_it_go_on(strategy: str) -> None:
    sim = Sim(rollout(strategy, gates=[SLOW], onInconclusive="Hold"), replicas=4)
    sim.evidence = shown("Inconclusive")
    sim.until(lambda s: any(each.reason == "GateUndecided" for each in s.told))
    sim.evidence = shown("Passed")
    assert sim.run().stable == "2"
    assert "passed: gate maxErrorRate" in sim.told[-1].message


def test_undecided_gates_take_the_candidate_back_at_the_end_of_the_hold_where_that_is_asked_for() -> (
    None
):
    sim = Sim(rollout("BlueGreen", gates=[SLOW], onInconclusive="RollBack"), replicas=2)
    sim.evidence = shown("Inconclusive")
    sim.until(lambda s: s.candidate is not None and s.candidate.outcome == "Failed")
    assert sim.candidate.reason == "GateInconclusive"


def test_a_hold_for_undecided_gates_is_told_once_and_named_for_its_reader() -> None:
    sim = Sim(rollout("Canary", gates=[SLOW], onInconclusive="Hold"), replicas=4)
    sim.evidence = shown("Inconclusive")
    sim.run(200)
    (told,) = [each for each in sim.told if each.reason == "GateUndecided"]
    assert (
        "maxErrorRate: not decided at the end of the hold; revision new is held until"
        in told.message
    )
    assert sim.decision is not None
    # The step's own end has passed and is not told any more.
    assert (
        "at most 20 % of the traffic; not decided yet: maxErrorRate, held for it until"
        in sim.decision.stage
    )
    assert (
        f"{told.message.split('held until ')[1]} (see .status.candidate.gates)"
        in sim.decision.stage
    )
    assert sim.candidate.undecided_since is not None


def test_pods_that_come_and_go_do_not_make_the_hold_longer() -> None:
    sim = Sim(
        rollout("Canary", gates=[SLOW], onInconclusive="Hold", maxHoldSeconds=100), replicas=4
    )
    sim.evidence = shown("Inconclusive")
    sim.until(lambda s: any(each.reason == "GateUndecided" for each in s.told))
    began = sim.now
    for _ in range(20):
        sim.never_ready ^= {"new"}
        sim.run(6)
    assert (sim.candidate.reason, sim.stable) == ("GateInconclusive", "1")
    assert sim.status.history[0].ended_at == stamp(began + timedelta(seconds=100))


@pytest.mark.parametrize("strategy", ["Canary", "BlueGreen", "Rolling"])
def test_a_decision_after_a_long_hold_is_not_taken_for_a_missed_deadline(strategy: str) -> None:
    sim = Sim(
        rollout(strategy, gates=[SLOW], onInconclusive="Hold", progressDeadlineSeconds=50),
        replicas=4,
    )
    sim.evidence = shown("Inconclusive")
    sim.until(lambda s: any(each.reason == "GateUndecided" for each in s.told)).run(300)
    sim.evidence = shown("Passed")
    sim.pods["new"][0].ready = False
    assert sim.run().stable == "2"


def test_undecided_gates_do_not_keep_a_candidate_from_its_traffic_that_has_lost_it() -> None:
    sim = turned(gates=[SLOW], onInconclusive="Hold")
    sim.evidence = shown("Inconclusive")
    sim.never_ready = {"new"}
    sim.play()
    assert sim.run(2).serving == ("old",)
    sim.never_ready = set()
    assert sim.run(3).serving == ("new",)


def test_without_traffic_there_is_nothing_to_hold_for() -> None:
    assert (
        Sim(rollout("Recreate", gates=[SLOW], onInconclusive="Hold"), replicas=2).run().stable
        == "2"
    )


def test_skip_waits_for_no_decision() -> None:
    sim = Sim(rollout("Canary", gates=[SLOW], onInconclusive="Hold"), replicas=4)
    sim.evidence = shown("Inconclusive")
    sim.until(lambda s: s.candidate is not None and s.candidate.traffic_since is not None)
    sim.annotations = {STEER: "skip"}
    assert sim.run().stable == "2"


def test_smoke_prompts_are_answered_before_the_first_pod_of_a_rolling_gets_traffic() -> None:
    gate = {"smokePrompts": {"configMap": "smoke"}}
    sim = Sim(rollout("Rolling", gates=[gate]), replicas=3)
    sim.evidence = Evidence("new", smoke={"smoke": SmokeOutcome(waiting="busy")})
    sim.run(20)
    assert (sim.serving, sim.ready("old"), sim.ready("new")) == (("old",), 3, 1)
    sim.evidence = Evidence("new", smoke={"smoke": SmokeOutcome(1)})
    assert sim.run().stable == "2"


def test_a_canary_has_no_traffic_before_all_pods_of_its_first_step_are_ready_and_asked() -> None:
    gate = {"smokePrompts": {"configMap": "smoke"}}
    steps = {"steps": [{"weight": 50, "holdSeconds": 10}]}
    sim = Sim(rollout("Canary", gates=[gate], canary=steps), replicas=3, room=5)
    sim.run(20)
    assert (sim.serving, sim.ready("new")) == (("old",), 2)
    sim.room = 6
    sim.until(lambda s: s.serving == ("old", "new"))
    assert sim.ready("new") == 3


@pytest.mark.parametrize("strategy", ["First", "Recreate"])
def test_pods_that_serve_alone_go_on_serving_while_a_late_one_is_asked(strategy: str) -> None:
    gate = {"smokePrompts": {"configMap": "smoke"}}
    sim = Sim(
        rollout("Recreate" if strategy == "Recreate" else "Auto", gates=[gate]), replicas=2, room=2
    )
    if strategy == "First":
        sim.status = LLMDeploymentStatus()
        sim.serving = ()
        sim.orders = {}
        sim.pods = {}
        sim.room = 1
    sim.evidence = Evidence("new", smoke={"smoke": SmokeOutcome(waiting="busy")})
    sim.until(lambda s: s.ready("new") > 0).run(3)
    assert "new" not in sim.serving
    if strategy == "Recreate":
        sim.evidence = Evidence("new", smoke={"smoke": SmokeOutcome(1, pods=1)})
        sim.pods["new"][1].ready = False
        sim.look()
    sim.evidence = Evidence(
        "new", smoke={"smoke": SmokeOutcome(1, pods=1, waiting="the second is being asked")}
    )
    sim.run(3)
    assert sim.serving == ("new",)
    sim.evidence = Evidence("new", smoke={"smoke": SmokeOutcome(1, ("pod b: wrong",), pods=1)})
    sim.run(3)
    assert sim.candidate.reason == "GateFailed"
    assert "new" not in sim.serving


def test_a_rolling_that_fails_at_its_last_pod_answers_until_an_old_pod_is_back() -> None:
    sim = Sim(rollout("Rolling", gates=[SLOW]), replicas=2, room=2)
    sim.until(lambda s: s.ready("old") == 0 and s.ready("new") >= 1)
    sim.evidence = shown("Failed")
    for _ in range(20):
        sim.step()
        assert sum(sim.ready(revision) for revision in sim.serving) >= 1
    assert (sim.serving, sim.ready("old"), sim.ready("new")) == (("old",), 2, 0)


@pytest.mark.parametrize("wanted", ["newer", "old"])
@pytest.mark.parametrize("state", ["Inconclusive", "Failed"])
def test_a_rolling_that_is_replaced_at_its_last_pod_answers_until_an_old_pod_is_back(
    wanted: str, state: str
) -> None:
    sim = Sim(rollout("Rolling", gates=[SLOW]), replicas=2, room=2)
    sim.until(lambda s: s.ready("old") == 0 and s.ready("new") >= 1)
    if state == "Failed":
        sim.evidence = shown("Failed")
        sim.look()
    sim.wanted = Wanted(wanted, {"newer": "3", "old": "1"}[wanted], "i")
    sim.evidence = shown("Passed", "newer")
    sim.never_ready = {"old"}
    for look in range(200):
        if look == 20:
            sim.never_ready = set()
        sim.step()
        assert sum(sim.ready(revision) for revision in sim.serving) >= 1
    assert (sim.serving, sim.ready(wanted), sim.ready("new")) == ((wanted,), 2, 0)
    assert [each.outcome for each in sim.status.history if each.revision == "new"] == [
        "Replaced" if state == "Inconclusive" else "Failed"
    ]


def test_a_replaced_rolling_is_what_serves_where_the_old_pods_do_not_come_back() -> None:
    sim = Sim(rollout("Rolling", gates=[SLOW], progressDeadlineSeconds=60), replicas=2, room=3)
    sim.until(lambda s: s.ready("old") == 0 and s.ready("new") >= 1)
    sim.never_ready.add("old")
    sim.wanted = Wanted("newer", "3", "i")
    sim.evidence = shown("Passed", "newer")
    for _ in range(300):
        sim.step()
        assert sum(sim.ready(revision) for revision in sim.serving) >= 1
    assert sim.stable == "3"


def test_pause_stops_between_steps_and_its_time_does_not_count() -> None:
    sim = Sim(
        rollout("Canary", progressDeadlineSeconds=60), replicas=4, annotations={STEER: "pause"}
    )
    sim.run(300)
    assert (sim.candidate.outcome, sim.candidate.paused, sim.serving) == (None, True, ("old",))
    sim.annotations = {STEER: "resume"}
    assert sim.run().stable == "2"


def test_skip_goes_past_all_holds_of_this_candidate_and_of_no_other() -> None:
    sim = Sim(rollout("Canary"), replicas=4)
    sim.until(lambda s: s.candidate.weight == 20)
    sim.annotations = {STEER: "skip"}
    sim.run(10)
    assert sim.stable == "2"
    sim.wanted = Wanted("newer", "3", "i")
    sim.evidence = Evidence("newer")
    sim.run(25)
    assert (sim.stable, sim.candidate.step) == ("2", 1)


def test_abort_takes_the_candidate_back_and_a_later_one_is_not_meant() -> None:
    sim = Sim(rollout("Canary"), replicas=4)
    sim.until(lambda s: s.candidate.weight == 20)
    sim.annotations = {STEER: "abort"}
    sim.step()
    assert (sim.candidate.reason, sim.serving) == ("Aborted", ("old",))
    sim.wanted = Wanted("newer", "3", "i")
    assert sim.run().stable == "3"


def test_abort_of_a_named_revision_is_about_that_one_alone() -> None:
    sim = Sim(rollout("BlueGreen"), annotations={STEER: "abort:other"})
    assert sim.run(10).stable == "2"
    sim = Sim(rollout("BlueGreen"), annotations={STEER: "abort:new"})
    assert sim.run(10).candidate.reason == "Aborted"


def test_an_annotation_that_can_not_be_read_is_told_once_with_what_can() -> None:
    sim = Sim(rollout("BlueGreen"), annotations={STEER: "halt"}).run(10)
    told = [each.message for each in sim.told if each.reason == "AnnotationIgnored"]
    assert len(told) == 1
    assert "pause, resume, skip, abort" in told[0]
    assert sim.stable == "2"


def test_a_rollback_holds_a_kept_revision_until_something_newer_is_wanted() -> None:
    sim = Sim(rollout("BlueGreen")).run(20)
    sim.kept = {"new": Wanted("new", "2", "i"), "old": Wanted("old", "1", "i")}
    sim.annotations = {ROLLBACK: "old"}
    sim.run(20)
    assert (sim.stable, sim.serving) == ("1", ("old",))
    assert sim.decision is not None
    assert "held at revision old" in sim.decision.remarks[0]
    assert sim.status.history[0].message == "by revision old, as the annotation rollback-to asked"
    sim.wanted = Wanted("newest", "3", "i")
    assert sim.run(20).stable == "3"


def test_a_step_that_holds_says_until_when() -> None:
    spec = RolloutSpec.model_validate(
        {"strategy": "Canary", "canary": {"steps": [{"weight": 50, "holdSeconds": 90}]}}
    )
    began = {"startedAt": "2026-01-02T09:59:00Z", "stepStartedAt": "2026-01-02T10:00:00Z"}
    status = CandidateStatus.model_validate(
        {
            "revision": "new",
            "version": "2",
            "image": "i",
            "strategy": "Canary",
            "step": 1,
            "weight": 50,
            **began,
        }
    )
    told = "canary step 1 of 1, at most 50 % of the traffic, at least until 10:01:30 UTC"
    move = Move(Sim(spec).situation(), None, Candidate.read(status))
    assert Canary().describe(move) == told
    assert "until" not in Canary().describe(move.changed(step_started_at=None, weight=None))


def test_a_rollback_to_what_is_not_kept_lists_what_is() -> None:
    sim = Sim(
        rollout("BlueGreen"), annotations={ROLLBACK: "gone"}, kept={"old": Wanted("old", "1", "i")}
    )
    sim.run(10)
    assert sim.stable == "2"
    assert any(
        "old (version 1)" in each.message for each in sim.told if each.reason == "AnnotationIgnored"
    )


def test_an_alias_moved_three_times_in_a_second_ends_at_the_last() -> None:
    for strategy in ("Auto", "Rolling", "Canary"):
        sim = Sim(rollout(strategy), replicas=4)
        for number in (2, 3, 4):
            sim.wanted = Wanted(f"r{number}", str(number), "i")
            sim.step(0.3)
        assert sim.run().stable == "4"


def test_a_version_deleted_under_a_rollout_leaves_it_to_its_course() -> None:
    sim = Sim(rollout("Canary"), replicas=4)
    sim.until(lambda s: s.candidate.weight == 20)
    sim.wanted = None
    assert sim.run().stable == "2"


@pytest.mark.parametrize("jump", [-86_400, 86_400])
def test_a_clock_that_jumps_ends_with_one_revision_serving(jump: float) -> None:
    for strategy in ("BlueGreen", "Rolling", "Canary"):
        sim = Sim(rollout(strategy), replicas=4)
        sim.run(3)
        sim.now += timedelta(seconds=jump)
        sim.run()
        assert len(sim.serving) == 1
        assert sim.ready(sim.serving[0]) == 4


def test_the_autoscaler_changes_the_size_in_the_middle_of_a_step() -> None:
    for strategy in ("BlueGreen", "Rolling", "Canary"):
        for size in (1, 7):
            sim = Sim(rollout(strategy), replicas=4)
            sim.run(4)
            sim.replicas = size
            sim.run()
            assert (sim.stable, sim.ready("new"), sim.ready("old")) == ("2", size, 0)


@pytest.mark.parametrize("seed", range(90))
def test_whatever_happens_no_promise_is_broken(seed: int) -> None:
    """A random walk: pods, clock, people, registry and figures do what they like;
    then quiet, and it ends."""
    chance = random.Random(seed)
    strategy = chance.choice(["Auto", "Rolling", "BlueGreen", "Canary", "Recreate"])
    gates = [SLOW, {"smokePrompts": {"configMap": "smoke"}}]
    policy = {"onInconclusive": ["Hold", "Promote", "RollBack"][seed % 3], "maxHoldSeconds": 60}
    spec = rollout(strategy, gates=gates, progressDeadlineSeconds=100, **policy)
    sim = Sim(spec, replicas=chance.randint(1, 6), room=chance.choice([6, 7, 8, 100]))
    sim.room = sim.replicas if chance.random() < 0.3 else sim.room
    versions = 2
    for _ in range(80):
        sim.now += timedelta(seconds=chance.choice([0, 0.5, 1, 2, 5, 20]))
        happening = chance.random()
        if happening < 0.03:
            versions += 1
            sim.wanted = Wanted(f"r{versions}", str(versions), "i")
        elif happening < 0.06:
            sim.annotations = {STEER: chance.choice(["pause", "resume", "skip", "abort", "?"])}
        elif happening < 0.08 and (pods := sim.pods.get(chance.choice(list(sim.pods)))):
            chance.choice(pods).restarts += 1
        elif happening < 0.10:
            sim.now += timedelta(seconds=chance.choice([-500, 50]))
        asked = sim.wanted.revision if sim.wanted else ""
        drawn = chance.random()
        state = "Failed" if drawn < 0.02 else "Inconclusive" if drawn < 0.35 else "Passed"
        outcome = chance.choice([SmokeOutcome(1), SmokeOutcome(1), SmokeOutcome(waiting="busy")])
        sim.evidence = shown(state, asked, smoke={"smoke": outcome})
        before = sim.status
        decision = sim.look()
        promises(sim, before, decision)
        sim.play(leave=chance.random() < 0.7)
        if strategy == "Auto":
            assert sum(sim.ready(revision) for revision in sim.serving) >= min(1, sim.replicas)
    sim.annotations = {}
    sim.evidence = shown("Passed", asked, smoke={"smoke": SmokeOutcome(1)})
    sim.run(400)
    assert sim.decision is not None
    assert not sim.decision.rolling_out
    assert len(sim.serving) == 1
    assert sim.ready(sim.serving[0]) == sim.replicas


def promises(sim: Sim, before: LLMDeploymentStatus, decision: Decision) -> None:
    """The stable revision keeps serving, never are there three, a canary has at most its weight."""
    assert decision.stable is not None
    candidate = decision.candidate
    if candidate is not None and candidate.strategy == "Recreate":
        takes_turns(sim, decision, (decision.stable.revision, candidate.revision))
        return
    if (
        decision.serving != (decision.stable.revision,)
        and candidate is not None
        and candidate.strategy == "BlueGreen"
    ):
        assert decision.serving == (candidate.revision,)
        assert sim.ready(candidate.revision)
        assert decision.replicas[decision.stable.revision] == sim.replicas
        return
    assert decision.stable.revision in decision.serving
    assert len(decision.serving) <= 2
    if len(decision.serving) == 2:
        others = [revision for revision in sim.pods if revision not in decision.serving]
        assert not any(not pod.leaving for revision in others for pod in sim.pods[revision])
    if (
        candidate is None
        or candidate.revision not in decision.serving
        or candidate.outcome is not None
    ):
        return
    if candidate.strategy == "Canary":
        new = decision.replicas[candidate.revision]
        old = sim.ready(decision.stable.revision)
        assert candidate.weight
        assert 100 * new <= candidate.weight * (new + old)
    if candidate.strategy == "Rolling":
        given = decision.replicas[decision.stable.revision] + sim.ready(candidate.revision)
        assert given >= sim.replicas - (0 if candidate.surge else 1)
    assert before.stable is not None


def takes_turns(sim: Sim, decision: Decision, both: tuple[str, str]) -> None:
    """Recreate: one of the two is behind the Service,
    and none gets a pod as long as the other has one."""
    assert len(decision.serving) == 1
    assert set(decision.serving) <= set(both)
    for revision, other in (both, both[::-1]):
        if decision.replicas.get(revision):
            assert not decision.replicas.get(other)
            assert not sim.pods.get(other)
