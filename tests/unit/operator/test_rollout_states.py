"""The life of a candidate as it is drawn, and what one more strategy takes."""

from __future__ import annotations

import ast
import random
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import llm_operator
from llm_operator.crds import CandidateStatus, LLMDeploymentStatus
from llm_operator.crds.rollout import RolloutSpec
from llm_operator.plans import rollout as rollout_package
from llm_operator.plans.rollout import Wanted, candidate
from llm_operator.plans.rollout.candidate import Candidate
from llm_operator.plans.rollout.move import Move
from llm_operator.plans.rollout.select import STRATEGIES
from llm_operator.plans.rollout.states import TRANSITIONS, State, mermaid
from llm_operator.plans.rollout.steer import STEER
from llm_operator.reconcile import Pace, reconcile
from llm_operator.state import Key, SmokeOutcome
from unit.operator.fakes import NAMESPACE, World
from unit.operator.fifth_strategy import Soak
from unit.operator.test_rollout_strategies import SLOW, Sim, rollout, shown

SMOKE = {"smokePrompts": {"configMap": "smoke"}}
Way = tuple[State | None, State | None]


def state(sim: Sim) -> State | None:
    """Of the candidate in the status, by the pods as they are now.
    Replaced is one once the operator has seen it."""
    candidate = sim.status.candidate
    if candidate is None:
        return None
    seen = replaced(sim.status, candidate.revision)
    situation = sim.situation() if seen else replace(sim.situation(), wanted=None)
    return Move(situation, sim.status.stable, Candidate.read(candidate)).state


def replaced(status: LLMDeploymentStatus, revision: str) -> bool:
    """Whether history says so, of its last end."""
    return (
        next((each.outcome for each in status.history if each.revision == revision), "")
        == "Replaced"
    )


def look(sim: Sim) -> set[Way]:
    """One look of the operator, and the ways that candidates have taken in it."""
    before = sim.status
    here = state(sim)
    sim.look()
    after = sim.status
    there = state(sim)
    ways = set[Way]()
    old = before.candidate
    new = after.candidate
    same = old is not None and new is not None and old.revision == new.revision
    if same and old is not None and new is not None and (new.outcome or not old.outcome):
        further = new.progressed_at != old.progressed_at
        return (
            {(here, there)} if here is not there or (there is State.TRAFFIC and further) else set()
        )
    if old is not None and not same:
        promoted = after.stable is not None and after.stable.revision == old.revision
        gone = (
            State.REPLACED if replaced(after, old.revision) and here is not State.REPLACED else None
        )
        ways.add((here, State.STABLE if promoted else gone))
    if new is not None:
        # Begun, and perhaps further in the same look.
        ways.add((here if same else None, State.STARTING))
        ways |= {(State.STARTING, there)} - {(State.STARTING, State.STARTING)}
    return ways


def live(strategy: str, seed: int, *, first: bool) -> set[Way]:
    """The ways that are taken while pods, people, registry and figures do what they like."""
    chance = random.Random(seed)
    ways = set[Way]()
    sim = Sim(
        rollout(strategy, gates=[SLOW, SMOKE], progressDeadlineSeconds=60), replicas=3, room=6
    )
    if first:
        sim.status = LLMDeploymentStatus()
        sim.orders = {}
        sim.pods = {}
        sim.never_ready = {"new"}
    former = None
    for number in range(100):
        before = state(sim)
        sim.now += timedelta(seconds=chance.choice([1, 5, 20]))
        if chance.random() < 0.04:
            former = sim.wanted
            sim.wanted = Wanted(f"r{number}", str(number), "i")
            sim.never_ready = chance.choice(
                [sim.never_ready, {each.revision for each in (sim.status.stable,) if each}]
            )
        elif former is not None and chance.random() < (
            0.3 if state(sim) is State.REPLACED else 0.02
        ):
            sim.wanted, former = former, sim.wanted
        assert sim.wanted is not None
        sim.annotations = {STEER: "abort"} if chance.random() < 0.01 else {}
        if chance.random() < 0.2:
            stable = {sim.status.stable.revision} if sim.status.stable else set()
            sim.never_ready = chance.choice([set(), {sim.wanted.revision}, stable])
        smoke = SmokeOutcome(waiting="busy") if chance.random() < 0.3 else SmokeOutcome(1)
        result = "Failed" if chance.random() < 0.02 else "Passed"
        sim.evidence = shown(result, sim.wanted.revision, smoke={"smoke": smoke})
        if sim.status.candidate and sim.status.candidate.outcome and chance.random() < 0.1:
            # Somebody deletes the failed candidate's Deployment.
            sim.orders.pop(sim.wanted.revision, None)
            sim.pods.pop(sim.wanted.revision, None)
        sim.play()
        if before is not state(sim):
            ways.add((before, state(sim)))
        ways |= look(sim)
    return ways


def test_candidates_take_the_ways_that_are_drawn_each_of_them_and_no_other() -> None:
    taken = set[Way]()
    for seed in range(12):
        for strategy in STRATEGIES:
            taken |= live(strategy, seed, first=seed % 2 == 0)
    assert taken == {(source, target) for source, target, _ in TRANSITIONS}


def test_the_diagram_of_the_docs_is_that_of_the_code() -> None:
    assert f"```mermaid\n{mermaid()}\n```" in Path("docs/rollouts.md").read_text(), (
        "run hack/generate"
    )


class Wider(CandidateStatus):
    """With any name of a strategy, and not only those of the CRD."""

    strategy: str | None = None  # type: ignore[assignment]


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> None:
    """A further strategy, by its line in STRATEGIES and its name in the CRD."""
    monkeypatch.setattr(candidate, "CandidateStatus", Wider)
    monkeypatch.setitem(STRATEGIES, "Soak", Soak())


def soaking(**fields: Any) -> RolloutSpec:
    return RolloutSpec.model_validate(fields).model_copy(update={"strategy": "Soak"})


@pytest.mark.usefixtures("soak")
def test_a_further_strategy_is_one_file_one_line_and_its_name_in_the_crd() -> None:
    sim = Sim(soaking(), replicas=2)
    sim.until(lambda s: s.candidate.step_started_at is not None)
    began = sim.now
    assert (sim.candidate.strategy, sim.serving, sim.orders) == (
        "Soak",
        ("old",),
        {"old": 2, "new": 2},
    )
    assert sim.decision is not None
    assert sim.decision.stage == "soaking"
    sim.until(lambda s: s.stable == "2")
    assert 39 <= (sim.now - began).total_seconds() <= 42
    assert sim.serving == ("new",)


@pytest.mark.usefixtures("soak")
@pytest.mark.parametrize("takes", [True, False])
def test_a_further_strategy_answers_itself_whether_its_candidates_are_sent_copies(
    monkeypatch: pytest.MonkeyPatch, *, takes: bool
) -> None:
    monkeypatch.setattr(Soak, "takes_copies", takes)
    sim = Sim(soaking(shadow={"percent": 100, "holdSeconds": 30}), replicas=2)
    copied = False
    for _ in range(300):
        sim.step()
        copied |= sim.decision is not None and sim.decision.copies
    assert sim.stable == "2"
    assert copied is takes


@pytest.mark.parametrize("switches", [True, False])
async def test_gates_count_stable_before_the_switch_where_the_strategy_says_that_it_switches(
    monkeypatch: pytest.MonkeyPatch, *, switches: bool
) -> None:
    monkeypatch.setattr(type(STRATEGIES["Canary"]), "switches", switches)
    world = World()
    await world.deploy(rollout={"strategy": "Canary", "gates": [{"maxErrorRate": 0.01}]})
    key = Key("LLMDeployment", NAMESPACE, "bot")
    await reconcile(key, world.outside, Pace(60, 5))
    world.cluster.play(*world.cluster.named("Deployment"))
    await reconcile(key, world.outside, Pace(60, 5))
    world.registry.aliases["bot"]["champion"] = "2"
    await reconcile(key, world.outside, Pace(60, 5))
    await reconcile(key, world.outside, Pace(60, 5))
    [watched] = world.outside.memory.watched.values()
    assert watched.switched is switches


def test_nobody_compares_a_strategy_by_its_name() -> None:
    """A name stands where strategies are chosen, in a strategy's own file and in the CRDs."""
    operator = Path(str(llm_operator.__file__)).parent
    own = {Path(str(sys.modules[type(each).__module__].__file__)) for each in STRATEGIES.values()}
    allowed = {*own, operator / "plans" / "rollout" / "select.py"}
    for path in sorted(operator.rglob("*.py")):
        if path in allowed or path.is_relative_to(operator / "crds"):
            continue
        tree = ast.parse(path.read_text())
        # Kubernetes' own word for how a Deployment replaces its pods.
        kubernetes = {
            id(value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Dict)
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant) and key.value == "type"
        }
        for node in ast.walk(tree):
            named = isinstance(node, ast.Constant) and node.value in STRATEGIES
            assert not named or id(node) in kubernetes, (
                f"{path.name}:{node.lineno} names a strategy: ask it, by an attribute of Strategy"
            )


def test_no_sentence_for_people_steers_a_rollout() -> None:
    for path in Path(str(rollout_package.__file__)).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            asked = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            asked += (
                [node.func.value]
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                else []
            )
            read = [
                each for each in asked if isinstance(each, ast.Attribute) and each.attr == "message"
            ]
            assert not read, (
                f"{path.name}:{read[0].lineno} decides by a message: give what it says a field of"
                " its own"
            )
