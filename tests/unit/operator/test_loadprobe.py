"""Load probes: what is made of their figures, and how they are run beside a roll-out."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest

from llm_operator.crds.rollout import LoadProbe
from llm_operator.plans.evidence import loadprobe
from llm_operator.ports.pods import Answer
from llm_operator.reconcile import Pace, reconcile
from llm_operator.reconcile import loadprobe as running
from llm_operator.state import Key, ProbeOutcome
from llm_runtime.contract import LoadFigures
from unit.operator.fakes import NAMESPACE, World, loaded

PACE = Pace(verify_seconds=60, settle_seconds=5)
KEY = Key("LLMDeployment", NAMESPACE, "bot")
PROBE = {"maxTimeToFirstTokenRatio": 1.3, "maxInterTokenRatio": 1.3, "minTokensPerSecondRatio": 0.8}


def probed(
    slower: float, noise: float, chance: random.Random, blocks: int = loadprobe.BLOCKS
) -> str:
    pairs = [
        (loaded(slower * chance.lognormvariate(0, noise)), loaded(chance.lognormvariate(0, noise)))
        for _ in range(blocks)
    ]
    return loadprobe.verdict(LoadProbe.model_validate(PROBE), ProbeOutcome(tuple(pairs))).state


@pytest.mark.parametrize(
    ("probability", "freedom", "table"),
    [(0.95, 4, 2.132), (0.99, 4, 3.747), (0.99, 9, 2.821), (0.995, 9, 3.250), (0.95, 29, 1.699)],
)
def test_the_quantiles_of_t_are_those_of_the_tables(
    probability: float, freedom: int, table: float
) -> None:
    assert loadprobe.student(probability, freedom) == pytest.approx(table, rel=0.003)


def test_equal_versions_pass_and_one_of_half_the_speed_fails() -> None:
    chance = random.Random(1)
    equal = [probed(1.0, 0.1, chance) for _ in range(500)]
    assert equal.count("Failed") <= 5
    assert equal.count("Passed") >= 475
    slow = [probed(2.0, 0.1, chance) for _ in range(500)]
    assert slow.count("Failed") >= 475


def test_versions_at_the_threshold_fail_in_one_of_a_hundred_at_most() -> None:
    chance = random.Random(2)
    at = [probed(1.25, 0.15, chance) for _ in range(1000)]
    assert at.count("Failed") <= 10 + 10  # Within its chance: three standard deviations.


def test_what_decides_is_told_with_its_interval() -> None:
    gate = LoadProbe.model_validate(PROBE)
    said = loadprobe.verdict(
        gate, ProbeOutcome(tuple((loaded(1.5), loaded(1.0)) for _ in range(10)))
    )
    assert (said.state, said.estimate, said.low, said.threshold) == ("Failed", "1.5", "1.5", "1.25")
    assert (said.samples, said.stable_samples) == (200, 200)
    assert "first token 1.5 times stable's" in (said.message or "")


def test_blocks_without_answers_and_a_busy_stable_are_told() -> None:
    gate = LoadProbe.model_validate(PROBE)
    silent = loaded(1.0).model_copy(update={"first_token_seconds": None})
    few = loadprobe.verdict(gate, ProbeOutcome(tuple((silent, loaded(1.0)) for _ in range(10))))
    assert few.state == "Inconclusive"
    assert "too few of the 10 blocks had answers" in (few.message or "")
    busy = loaded(1.0).model_copy(update={"busy": 0.5})
    said = loadprobe.verdict(gate, ProbeOutcome(tuple((loaded(1.0), busy) for _ in range(10))))
    assert "stable's pod answered clients in 50% of the time" in (said.message or "")


def against(slower: float, noise: float, chance: random.Random) -> str:
    """A candidate against the figures that stable's own promotion has left."""
    gate = LoadProbe.model_validate(PROBE)

    def alone(speed: float) -> ProbeOutcome:
        blocks = [loaded(speed * chance.lognormvariate(0, noise)) for _ in range(loadprobe.BLOCKS)]
        return ProbeOutcome(tuple((block, None) for block in blocks))

    before = loadprobe.verdict(gate, alone(1.0)).load
    assert before is not None
    return loadprobe.verdict(gate, replace(alone(slower), before=before)).state


@pytest.mark.parametrize(
    ("slower", "state", "least"),
    [(1.0, "Passed", 475), (1.6, "Inconclusive", 475), (3.0, "Failed", 475), (1.25, "Failed", 0)],
)
def test_figures_of_another_time_fail_only_what_is_half_as_bad_again_as_allowed(
    slower: float, state: str, least: int
) -> None:
    chance = random.Random(3)
    found = [against(slower, 0.1, chance) for _ in range(500)]
    assert found.count(state) >= least
    if slower <= 1.25:
        assert found.count("Failed") == 0


async def world_with_probe(**rollout: Any) -> World:
    """Version 1 serves, version 2 is wanted."""
    world = World()
    fields = {"gates": [{"loadProbe": PROBE}], **rollout}
    await world.deploy(rollout=fields, access={"authentication": "Disabled"})
    await look(world, 3)
    assert world.status()["stable"]["version"] == "1"
    world.registry.aliases["bot"]["champion"] = "2"
    return world


async def look(world: World, times: int) -> None:
    for _ in range(times):
        await reconcile(KEY, world.outside, PACE)
        for name in world.cluster.named("Deployment"):
            world.cluster.play(name)
        for _ in range(50):  # What runs behind the loop.
            await asyncio.sleep(0)


async def test_a_version_without_any_traffic_is_proven_by_its_load_and_the_status_says_so() -> None:
    world = await world_with_probe()
    await look(world, 5)
    stable = world.status()["stable"]
    assert stable["version"] == "2"
    assert "passed: gate loadProbe is 1 " in stable["judged"]
    pods = [pod.split("-played")[0] for pod, *_ in world.pods.probed]
    assert len(pods) == 2 * (loadprobe.BLOCKS + 1)
    assert pods[0] == pods[3] == pods[4] != pods[1]
    _, key, body = world.pods.probed[0]
    assert key.startswith("llmk_")
    assert body == {"concurrency": 4, "seconds": 3.0, "prompt_tokens": 128, "max_tokens": 32}


@pytest.mark.parametrize("strategy", ["BlueGreen", "Canary", "Rolling"])
async def test_a_slow_version_is_refused_before_any_traffic(strategy: str) -> None:
    world = await world_with_probe(strategy=strategy)
    old = world.status()["stable"]["revision"]
    await look(world, 1)
    world.pods.speeds[f"bot-{world.status()['candidate']['revision']}-played-0"] = loaded(2.0)
    for _ in range(4):
        await look(world, 1)
        assert world.selected() == old
    failed = world.status()["candidate"]
    assert failed["reason"] == "GateFailed"
    assert "traffic_since" not in failed
    assert "first token 2 times stable's" in failed["message"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(404, "no such path"), "is too old for load probes"),
        (Answer(400, "context length"), "has made no load probe: 400 context length"),
    ],
)
@pytest.mark.parametrize(
    ("policy", "ends"), [("Promote", None), ("RollBack", "GateInconclusive"), ("Hold", "")]
)
async def test_a_probe_that_can_not_be_made_is_left_to_the_policy(
    answer: Answer, said: str, policy: str, ends: str | None
) -> None:
    world = await world_with_probe(onInconclusive=policy, maxHoldSeconds=600)
    old = world.status()["stable"]["revision"]
    world.pods.speed = answer
    await look(world, 6)
    if ends is None:
        assert world.status()["stable"]["version"] == "2"
        assert "not judged: gate loadProbe" in world.status()["stable"]["judged"]
        return
    assert world.selected() == old
    if not ends:
        assert "not decided yet: loadProbe" in world.condition("Progressing")["message"]
        world.clock.pass_seconds(700)
        await look(world, 2)
    assert world.status()["candidate"]["reason"] == "GateInconclusive"
    assert said in world.status()["candidate"]["message"]


async def test_a_probe_that_clients_have_driven_out_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "AGAIN_SECONDS", 0)
    world = await world_with_probe()
    world.pods.speed = loaded(1.0).model_copy(update={"dropped": True})
    await look(world, 4)
    assert "clients queue at pod" in world.condition("Progressing")["message"]
    world.pods.speed = loaded(1.0)
    await look(world, 5)
    assert world.status()["stable"]["version"] == "2"


async def test_a_candidate_with_traffic_is_not_probed_again_by_the_next_operator() -> None:
    gates = [{"loadProbe": PROBE}, {"maxErrorRate": 0.01}]
    world = await world_with_probe(gates=gates, strategy="BlueGreen", onInconclusive="Promote")
    await look(world, 4)
    assert "trafficSince" in world.status()["candidate"]
    world.pods.probed.clear()
    world.restarted("example.com/runtime:1")
    await look(world, 1)
    assert not world.pods.probed
    world.clock.pass_seconds(100)
    await look(world, 3)
    assert "passed: gate loadProbe is 1 " in world.status()["stable"]["judged"]


async def test_each_of_two_probes_keeps_its_own_verdict_at_the_next_operator() -> None:
    loose = {"maxTimeToFirstTokenRatio": 1.5}
    gates = [{"loadProbe": PROBE}, {"maxErrorRate": 0.01}, {"loadProbe": loose}]
    world = await world_with_probe(gates=gates, strategy="BlueGreen", onInconclusive="Promote")
    await look(world, 4)
    before = world.status()["candidate"]["gates"]
    assert before[0]["threshold"] != before[2]["threshold"]
    world.restarted("example.com/runtime:1")
    await look(world, 1)
    assert world.status()["candidate"]["gates"][0] == before[0]
    assert world.status()["candidate"]["gates"][2] == before[2]


async def test_a_probe_that_recreate_can_not_make_holds_nothing_up() -> None:
    """Its first pod has the traffic as soon as it is there,
    and stable has no pod to compare with."""
    world = await world_with_probe(strategy="Recreate")
    await look(world, 8)
    assert world.status()["stable"]["version"] == "2"
    assert (
        "not judged: gate loadProbe: it was not made before" in world.status()["stable"]["judged"]
    )


async def promoted_by_its_load(**rollout: Any) -> World:
    """Version 2 serves, and has left figures; version 3 is wanted."""
    world = await world_with_probe(**rollout)
    assert "loads" not in world.status()["stable"]
    await look(world, 6)
    assert world.status()["stable"]["version"] == "2"
    world.pods.probed.clear()
    world.registry.aliases["bot"]["champion"] = "3"
    return world


async def test_figures_of_a_promotion_are_kept_though_the_operator_starts_anew_before_it() -> None:
    gates = [{"loadProbe": PROBE}, {"maxErrorRate": 0.01}]
    world = await world_with_probe(gates=gates, strategy="BlueGreen", onInconclusive="Promote")
    await look(world, 4)
    world.restarted("example.com/runtime:1")
    world.clock.pass_seconds(100)
    await look(world, 3)
    [load] = world.status()["stable"]["loads"]
    assert (load["concurrency"], load["promptTokens"], load["maxTokens"]) == (4, 128, 32)
    assert load["firstTokenSeconds"] == {"middle": 0.1, "spread": 0, "blocks": 10}
    assert load["secondsPerToken"]["middle"] == 0.01


@pytest.mark.parametrize("slower", [1.0, 3.0])
async def test_where_stable_has_nobody_to_ask_its_own_figures_are_compared_with(
    slower: float,
) -> None:
    world = await promoted_by_its_load()
    stable = f"bot-{world.status()['stable']['revision']}"
    world.pods.speed = loaded(slower)
    for _ in range(6):
        await reconcile(KEY, world.outside, PACE)
        for name in world.cluster.named("Deployment"):
            world.cluster.play(name, 0 if name == stable else None)
        for _ in range(50):
            await asyncio.sleep(0)
    assert not any(pod.startswith(stable) for pod, *_ in world.pods.probed)
    assert len(world.pods.probed) == loadprobe.BLOCKS + 1
    if slower == 1.0:
        assert world.status()["stable"]["version"] == "3"
        judged = world.status()["stable"]["judged"]
        assert "passed: gate loadProbe is 1 " in judged
        assert "compared by the figures of its own promotion" in judged
    else:
        assert world.status()["stable"]["version"] == "2"
        assert world.status()["candidate"]["reason"] == "GateFailed"


async def test_figures_of_another_load_are_no_measure() -> None:
    world = await promoted_by_its_load()
    gate = {"loadProbe": {**PROBE, "concurrency": 8}}
    await world.deploy(
        rollout={"gates": [gate], "onInconclusive": "Promote"},
        access={"authentication": "Disabled"},
    )
    stable = f"bot-{world.status()['stable']['revision']}"
    for _ in range(3):
        await reconcile(KEY, world.outside, PACE)
        for name in world.cluster.named("Deployment"):
            world.cluster.play(name, 0 if name == stable else None)
    judged = world.status()["stable"]["judged"]
    assert judged.startswith("not judged: gate loadProbe: there is no ready pod of the stable")
    assert world.pods.probed == []


async def test_a_deployment_that_is_deleted_ends_its_load_probe() -> None:
    world = await world_with_probe()

    async def never_ends(*_: Any) -> Any:
        await asyncio.Event().wait()

    world.pods.probe = never_ends  # type: ignore[method-assign]
    await look(world, 3)
    [running] = world.outside.memory.probing.values()
    del world.cluster.objects["LLMDeployment", NAMESPACE, "bot"]
    await look(world, 1)
    assert running.cancelled()
    assert not world.outside.memory.probing


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens_per_second": "NaN"},
        {"first_token_seconds": "[Infinity, 1]"},
        {"first_token_seconds": "[-1, 1]"},
        {"answers": "1" + "0" * 30},
        {"busy": "7"},
    ],
)
def test_figures_that_nobody_can_have_measured_are_refused(wrong: dict[str, str]) -> None:
    """A pod's image is its author's: what it says of itself is no more than said."""
    fields = {"answers": "1", "tokens_per_second": "1", **wrong}
    said = ", ".join(f'"{name}": {value}' for name, value in fields.items())
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LoadFigures.model_validate_json(f"{{{said}}}")


def test_the_most_extreme_figures_are_judged_without_an_overflow() -> None:
    gate = LoadProbe.model_validate(PROBE)
    slow = loaded(1.0).model_copy(
        update={"first_token_seconds": (1e6, 1e6), "tokens_per_second": 1e-300}
    )
    fast = loaded(1.0).model_copy(
        update={"first_token_seconds": (1e-300, 1e-300), "tokens_per_second": 1e9}
    )
    for pairs in ([(slow, fast)] * 9 + [(fast, fast)], [(fast, slow)] * 9 + [(slow, slow)]):
        assert loadprobe.verdict(gate, ProbeOutcome(tuple(pairs))).state == "Inconclusive"
