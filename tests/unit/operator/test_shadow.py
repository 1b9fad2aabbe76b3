"""Shadow traffic as the operator sees it:
when a candidate is sent copies, what their gates say, and what follows."""

from __future__ import annotations

import json
import random
from math import inf
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from llm_operator.crds import GateVerdict
from llm_operator.crds.rollout import GateSpec, RolloutSpec
from llm_operator.plans.evidence import gates
from llm_operator.plans.evidence.copies import Copies, since
from llm_operator.plans.objects import keys
from llm_operator.ports.pods import read
from llm_operator.reconcile import Pace, reconcile
from llm_operator.state import Evidence, Figures, Key, Manifest, Shadowed, SmokeOutcome
from llm_runtime.contract import FINE_BOUNDS_SECONDS, SHADOW_FILE, ShadowFile
from llm_runtime.shadow.agreement import ModelAnswer
from llm_runtime.shadow.tally import Tally
from unit.operator.fakes import NAMESPACE, World
from unit.operator.test_rollout_strategies import Sim, rollout

PACE = Pace(verify_seconds=60, settle_seconds=5)
KEY = Key("LLMDeployment", NAMESPACE, "bot")
AT = "2026-11-28T12:00:00Z"
EXACT = {"shadowAgreement": {"minExact": 0.95}}
ONE = GateSpec.model_validate(EXACT)
STATES = ("Passed", "Inconclusive")
SHADOW = {"percent": 100, "holdSeconds": 30}


def said(state: str, spec: dict[str, Any] = EXACT) -> Evidence:
    """What the gate says of a candidate's copies."""
    gate = GateSpec.model_validate(spec)
    fields = {
        "name": "shadowAgreement minExact",
        "state": state,
        "estimate": "0.5",
        "threshold": "0.95",
    }
    smoke = {"smoke": SmokeOutcome(1)}
    return Evidence(
        "new", shadow={gates.key(gate): GateVerdict.model_validate(fields)}, smoke=smoke
    )


def sim(strategy: str, state: str = "Inconclusive", replicas: int = 4, **fields: Any) -> Sim:
    spec = rollout(
        strategy, **{"shadow": SHADOW, "gates": [EXACT], "onInconclusive": "Hold", **fields}
    )
    return Sim(spec, replicas=replicas, evidence=said(state))


def copies(sim: Sim) -> bool:
    assert sim.decision is not None
    return sim.decision.copies


@pytest.mark.parametrize("strategy", ["Canary", "BlueGreen", "Auto"])
def test_a_candidate_is_sent_copies_before_it_gets_any_traffic(strategy: str) -> None:
    road = sim(strategy, "Passed")
    road.until(copies)
    began = road.now
    assert road.candidate.shadowed_since is not None
    while copies(road):
        assert road.serving == ("old",)
        assert road.candidate.traffic_since is None
        assert road.decision is not None
        assert "it is sent copies of 100 % of the requests" in road.decision.stage
        road.step()
    assert 29 <= (road.now - began).total_seconds() <= 32
    assert road.run().stable == "2"
    assert "shadowAgreement minExact" in (road.status.stable.judged or "")  # type: ignore[union-attr]


@pytest.mark.parametrize("strategy", ["Canary", "BlueGreen"])
def test_a_candidate_whose_answers_differ_never_gets_traffic(strategy: str) -> None:
    road = sim(strategy)
    road.until(copies)
    road.evidence = said("Failed")
    road.step()
    assert (road.candidate.outcome, road.candidate.reason) == ("Failed", "GateFailed")
    assert road.candidate.traffic_since is None
    assert not copies(road)
    assert road.run(20).serving == ("old",)


def test_an_undecided_gate_holds_the_candidate_without_traffic_and_then_takes_it_back() -> None:
    road = sim("Canary", maxHoldSeconds=100)
    road.until(lambda s: s.candidate.undecided_since is not None)
    assert copies(road)
    road.until(lambda s: s.candidate.outcome == "Failed")
    assert road.candidate.reason == "GateInconclusive"
    assert road.candidate.traffic_since is None


def test_an_undecided_gate_that_passes_in_time_lets_the_candidate_go_on() -> None:
    road = sim("BlueGreen", maxHoldSeconds=100)
    road.until(lambda s: s.candidate.undecided_since is not None)
    road.evidence = said("Passed")
    assert road.run(20).stable == "2"


def test_without_traffic_to_copy_the_policy_promote_goes_on_after_the_hold() -> None:
    road = sim("Canary", onInconclusive="Promote").run()
    assert road.stable == "2"
    assert "not judged: gate shadowAgreement minExact" in (road.status.stable.judged or "")  # type: ignore[union-attr]


def test_skip_ends_the_copies() -> None:
    road = sim("BlueGreen")
    road.until(copies)
    road.annotations = {"llm-operator.dev/rollout": "skip"}
    assert road.run(20).stable == "2"


def test_a_pause_stops_the_copies_and_their_hold_begins_anew() -> None:
    road = sim("Canary", "Passed")
    road.until(copies)
    road.annotations = {"llm-operator.dev/rollout": "pause"}
    road.run(60)
    assert (copies(road), road.candidate.traffic_since) == (False, None)
    road.annotations = {}
    road.until(copies)
    began = road.now
    road.until(lambda s: s.candidate.traffic_since is not None)
    assert (road.now - began).total_seconds() >= 29


def test_switched_on_while_a_candidate_has_traffic_nothing_is_copied_and_nothing_is_held() -> None:
    road = Sim(rollout("Canary"), replicas=4)
    road.until(lambda s: s.candidate.traffic_since is not None)
    road.spec = rollout("Canary", shadow=SHADOW, gates=[EXACT], onInconclusive="Hold")
    road.evidence = said("Inconclusive")
    for _ in range(20):
        assert not copies(road)
        road.step()
    assert road.run().stable == "2"


def test_switched_on_while_a_candidate_starts_it_is_sent_copies() -> None:
    road = Sim(rollout("Canary"), replicas=4)
    road.step()
    road.spec = rollout("Canary", shadow=SHADOW, gates=[EXACT])
    assert copies(road.until(copies))


def test_what_the_copies_have_shown_outlives_an_operator_that_restarts() -> None:
    road = sim("Canary", "Passed")
    road.until(lambda s: s.candidate.traffic_since is not None)
    road.evidence = said("Inconclusive")  # It counts anew, and no copies come any more.
    road.step()
    assert [each.state for each in road.candidate.gates] == ["Passed"]


def test_gates_with_one_bound_that_differ_otherwise_keep_each_their_own_result() -> None:
    specs = [GateSpec.model_validate({**EXACT, "minRequests": least}) for least in (20, 500)]
    told = {gates.key(spec): said(state) for spec, state in zip(specs, STATES, strict=True)}
    shown = Evidence("new", shadow={key: each.shadow[gates.key(ONE)] for key, each in told.items()})
    before = gates.judge(specs, shown)
    for order in (specs, specs[::-1]):
        kept = gates.with_shadow_verdicts_kept(gates.judge(order, Evidence("new")), before)
        states = dict(zip(map(gates.key, order), (each.state for each in kept), strict=True))
        assert [states[gates.key(spec)] for spec in specs] == list(STATES)


@pytest.mark.parametrize(
    "fields", [{"shadow": {"percent": 0}, "gates": []}, {"gates": []} | {"shadow": None}]
)
def test_percent_zero_is_as_none(fields: dict[str, Any]) -> None:
    road = sim("BlueGreen", **fields)
    while road.stable == "1":
        road.step()
        assert not copies(road)


def test_with_copies_auto_waits_for_room_as_rolling_could_send_none() -> None:
    road = sim("Auto", replicas=3)
    road.room = 3
    road.run(60)
    assert (road.candidate.strategy, road.ready("old")) == ("BlueGreen", 3)
    assert "rollout.shadow needs the new pods beside the old" in road.candidate.strategy_reason


def test_a_clock_that_is_set_back_begins_the_hold_anew() -> None:
    road = sim("BlueGreen", "Passed")
    road.until(copies)
    road.now = road.now.replace(year=2025)
    road.step()
    assert road.candidate.shadowed_since == road.now.strftime("%Y-%m-%dT%H:%M:%SZ")


def counted(compared: int, difference: float, **more: Any) -> Shadowed:
    shares = {"compared": {"exact": compared}, "difference": {"exact": difference}}
    return Shadowed({"compared": compared}, **{**shares, **more})


def looked(spec: dict[str, Any], *looks: Shadowed) -> GateVerdict:
    seen = Copies()
    found: dict[str, GateVerdict] = {}
    for each in looks:
        found = seen.look([GateSpec.model_validate(spec)], {"old-1": each}, at=AT)
    return next(iter(found.values()))


def test_answers_that_agree_pass_and_the_figures_say_how_many_do() -> None:
    verdict = looked(EXACT, *(counted(40 * n, 0) for n in range(12)))
    assert (verdict.state, verdict.estimate, verdict.samples) == ("Passed", "1", 440)
    assert 0.9 < float(verdict.low or 0) < 1
    assert "copies: 440 compared" in (verdict.message or "")


def test_answers_that_differ_fail() -> None:
    verdict = looked(EXACT, *(counted(40 * n, 20 * n) for n in range(12)))
    assert (verdict.name, verdict.state, verdict.estimate) == (
        "shadowAgreement minExact",
        "Failed",
        "0.5",
    )
    assert float(verdict.high or 1) < 0.95
    assert "220 of 440 answers had another text" in (verdict.message or "")


def test_few_copies_are_judged_by_nobody() -> None:
    assert looked(EXACT, counted(0, 0)).state == "Inconclusive"
    assert looked(EXACT, *(counted(4 * n, 4 * n) for n in range(10))).state == "Inconclusive"


def test_similarity_is_judged_by_its_mean() -> None:
    def shown(mean: float) -> str:
        spec = {"shadowAgreement": {"minSimilarity": 0.8}}
        shares = [
            {"compared": {"similarity": 40 * n}, "difference": {"similarity": 40 * n * (1 - mean)}}
            for n in range(12)
        ]
        return looked(
            spec,
            *(Shadowed({"compared": 40 * n}, **each) for n, each in enumerate(shares)),
        ).state

    assert [shown(mean) for mean in (0.95, 0.5)] == ["Passed", "Failed"]


@pytest.mark.parametrize(("times", "state"), [(1.0, "Passed"), (3.0, "Failed")])
@pytest.mark.parametrize(
    ("bound", "what"), [("maxTokensP95Ratio", "tokens"), ("maxSecondsP95Ratio", "seconds")]
)
def test_lengths_and_times_are_compared_with_stable_s_of_the_same_requests(
    bound: str, what: str, times: float, state: str
) -> None:
    chance = random.Random(7)
    samples = {"stable": list[float](), "candidate": list[float]()}
    looks = []
    for _ in range(60):
        for _ in range(20):
            value = chance.lognormvariate(-2, 0.5)
            samples["stable"].append(value)
            samples["candidate"].append(times * value)
        bounds = (*FINE_BOUNDS_SECONDS, inf)
        fine = {
            (side, what): {b: sum(v <= b for v in values) for b in bounds}
            for side, values in samples.items()
        }
        looks.append(Shadowed({"compared": len(samples["stable"])}, fine=fine))
    assert looked({"shadowAgreement": {bound: 1.5}}, *looks).state == state


def test_equal_versions_are_taken_back_in_one_of_a_hundred_roll_outs_at_most() -> None:
    chance = random.Random(3)
    failed = 0
    for _ in range(200):
        counts = [0, 0]
        looks = []
        for _ in range(60):
            for _ in range(chance.randrange(6)):
                counts[0] += 1
                counts[1] += chance.random() < 0.05
            looks.append(counted(*counts))
        seen = Copies()
        spec = GateSpec.model_validate(EXACT)
        states = [
            seen.look([spec], {"old-1": each}, at=AT)[gates.key(spec)].state for each in looks
        ]
        failed += "Failed" in states
    assert failed <= 2


def test_a_pod_that_began_anew_counts_from_its_start() -> None:
    before = counted(100, 5)
    assert since(counted(7, 1), before).compared == {"exact": 7}
    assert since(counted(107, 6), before).compared == {"exact": 7}
    # Another mix of requests since its start:
    # more copies than before, and fewer answers of one kind.
    assert since(Shadowed({"compared": 107}, {"exact": 3}), before).compared == {"exact": 0}


def test_the_operator_reads_what_the_runtime_tells() -> None:
    tally = Tally()
    tally.follow(["bot-new", "legal@4.a"])
    counts = tally.of("bot-new")
    assert counts is not None
    counts.result("compared")
    counts.compared({"exact": 1.0, "similarity": 0.25})
    counts.sized(ModelAnswer("a", "stop", 100, 0.5), ModelAnswer("b", "stop", 300, 0.7))
    counts.timed(ModelAnswer("a", "stop", 100, 0.5), ModelAnswer("b", "stop", 300, 0.7))
    beside = tally.of("legal@4.a")
    assert beside is not None
    beside.result("refused")
    registry = CollectorRegistry()
    registry.register(tally)
    told = read(generate_latest(registry).decode()).shadowed
    assert told["legal@4.a"] == Shadowed({"refused": 1})
    found = told["bot-new"]
    assert found.results == {"compared": 1}
    assert (found.compared, found.difference) == (
        {"exact": 1, "similarity": 1},
        {"exact": 1, "similarity": 0.25},
    )
    assert found.fine["candidate", "tokens"][inf] == 1
    assert min(b for b, n in found.fine["candidate", "tokens"].items() if n) == pytest.approx(
        0.3, rel=0.05
    )


def shadow_file(world: World) -> ShadowFile | None:
    text = keys.decode(world.cluster.objects["Secret", NAMESPACE, "bot-keys"], SHADOW_FILE)
    return ShadowFile.model_validate_json(text) if text else None


def address(world: World) -> None:
    service: Manifest = world.cluster.objects["Service", NAMESPACE, "bot-candidate"]
    service["spec"]["clusterIP"] = "10.0.0.7"


async def test_pods_that_run_are_told_of_a_candidate_and_nothing_is_restarted() -> None:
    world = World()
    spec = {"strategy": "BlueGreen", "shadow": {"percent": 50, "maxInFlight": 2, "holdSeconds": 30}}
    await world.deploy(rollout=spec)
    await reconcile(KEY, world.outside, PACE)
    [old] = world.cluster.named("Deployment")
    world.cluster.play(old)
    await reconcile(KEY, world.outside, PACE)
    assert shadow_file(world) is None
    before = world.cluster.objects["Deployment", NAMESPACE, old]["spec"]["template"]
    world.registry.aliases["bot"]["champion"] = "2"
    await reconcile(KEY, world.outside, PACE)
    [new] = set(world.cluster.named("Deployment")) - {old}
    assert shadow_file(world) is None
    world.cluster.play(new)
    address(world)
    await reconcile(KEY, world.outside, PACE)
    found = shadow_file(world)
    assert found is not None
    assert (found.stable, found.candidate, found.url) == (old, new, "http://10.0.0.7:80")
    assert (found.percent, found.max_in_flight) == (50, 2)
    assert len(found.token) >= 40
    assert found.token not in json.dumps(world.status())
    # An unchanged look writes nothing; another operator makes another token.
    await reconcile(KEY, world.outside, PACE)
    assert shadow_file(world) == found
    world.restarted("example.com/runtime:2")
    await reconcile(KEY, world.outside, PACE)
    again = shadow_file(world)
    assert again is not None
    assert again.token != found.token
    assert world.cluster.objects["Deployment", NAMESPACE, old]["spec"]["template"] == before
    world.clock.pass_seconds(31)
    await reconcile(KEY, world.outside, PACE)
    await reconcile(KEY, world.outside, PACE)
    assert shadow_file(world) is None
    assert world.selected() == new.removeprefix("bot-")


async def test_copies_that_differ_take_the_candidate_back_before_any_traffic() -> None:
    world = World()
    await world.deploy(
        rollout={"strategy": "BlueGreen", "shadow": {"holdSeconds": 300}, "gates": [EXACT]}
    )
    await reconcile(KEY, world.outside, PACE)
    [old] = world.cluster.named("Deployment")
    world.cluster.play(old)
    await reconcile(KEY, world.outside, PACE)
    world.registry.aliases["bot"]["champion"] = "2"
    await reconcile(KEY, world.outside, PACE)
    [new] = set(world.cluster.named("Deployment")) - {old}
    world.cluster.play(new)
    address(world)
    for count in range(12):
        shares = {"compared": {"exact": 40 * count}, "difference": {"exact": 20 * count}}
        world.pods.known[f"{old}-played-0"] = Figures(
            shadowed={
                "legal@4.a": counted(40 * count, 0),
                new: Shadowed({"compared": 40 * count}, **shares),
            }
        )
        await reconcile(KEY, world.outside, PACE)
    candidate = world.status()["candidate"]
    assert (candidate["outcome"], candidate["reason"]) == ("Failed", "GateFailed")
    assert "shadowAgreement minExact is 0.5" in candidate["message"]
    assert "trafficSince" not in candidate
    assert shadow_file(world) is None
    assert world.selected() == old.removeprefix("bot-")


def test_gates_on_copies_alone_hold_nothing_after_the_switch() -> None:
    spec = RolloutSpec.model_validate({"shadow": {}, "gates": [EXACT]})
    assert spec.switch_hold_seconds == 0
    assert (
        RolloutSpec.model_validate(
            {"shadow": {}, "gates": [EXACT, {"maxErrorRate": 0.1}]}
        ).switch_hold_seconds
        == 60
    )
