"""A version of an adapter that is judged by a short load, in turns with the one that answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llm_operator.crds.rollout import LoadProbe
from llm_operator.plans.evidence import loadprobe
from llm_operator.ports.pods import Answer
from llm_operator.state import ProbeOutcome
from unit.operator.fakes import loaded
from unit.operator.test_adapter_gates import LEGAL, Gated

PROBE = {"loadProbe": {"seconds": 10, "maxTimeToFirstTokenRatio": 1.3}}
JUDGED = {**LEGAL, "gates": [PROBE]}


class Probed(Gated):
    """Gives a probe's task time to run between two looks."""

    async def run(self, looks: int = 4) -> None:
        for _ in range(looks):
            await super().run(1)
            for _ in range(50):
                await asyncio.sleep(0)


async def moved(slower: float = 1.0, replicas: int = 1, **spec: Any) -> Probed:
    """Version 3 answers; version 4 is loaded and takes `slower` times as long."""
    world = Probed()
    await world.deploy(replicas=replicas, adapters=[{**LEGAL, "gates": []}], **spec)
    await world.run(6)
    await world.deploy(replicas=replicas, adapters=[JUDGED], **spec)
    world.move("4")
    await world.run(1)
    [candidate] = world.delivered().candidates
    world.pods.speeds[candidate.name] = loaded(slower)
    return world


async def test_both_versions_get_the_same_load_in_one_pod_in_turns() -> None:
    world = await moved(replicas=2)
    [candidate] = world.delivered().candidates
    await world.run(4)
    assert world.versions() == {"legal": "4"}
    assert len({pod for pod, _, _ in world.pods.probed}) == 1
    asked = [body["adapter"] for _, _, body in world.pods.probed]
    assert len(asked) == 2 * (loadprobe.BLOCKS + 1)
    for pair in zip(asked[::2], asked[1::2], strict=True):
        assert set(pair) == {"legal", candidate.name}
    assert "passed: gate loadProbe is 1 " in world.status()["adapters"][0]["judged"]


async def test_a_version_that_is_slower_never_answers() -> None:
    world = await moved(slower=3)
    await world.run(4)
    assert (world.versions(), world.candidate()["outcome"]) == ({"legal": "3"}, "Failed")
    assert "first token 3 times stable's" in world.condition("AdaptersReady")["message"]
    assert world.outside.memory.probes == {}


async def test_a_first_version_has_nothing_to_be_compared_with_and_is_not_held() -> None:
    world = Probed()
    await world.deploy(adapters=[JUDGED])
    await world.run(6)
    assert world.versions() == {"legal": "3"}
    assert world.pods.probed == []
    judged = world.status()["adapters"][0]["judged"]
    assert "not judged: gate loadProbe: no version answers" in judged


@pytest.mark.parametrize(
    ("answer", "state"), [(503, "Waiting"), (409, "Waiting"), (404, "Inconclusive")]
)
async def test_a_probe_that_is_not_made_is_told_and_the_version_waits(
    answer: int, state: str
) -> None:
    world = await moved()
    world.pods.speeds = {}
    world.pods.speed = Answer(answer, "not now")
    await world.run(4)
    assert world.versions() == {"legal": "3"}
    [gate] = world.candidate()["gates"]
    assert gate["state"] == state
    assert "pod" in world.condition("AdaptersReady")["message"]


async def test_the_alias_that_moves_on_ends_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await moved()
    ended = False

    async def for_ever(*_: Any) -> Any:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            ended = True

    monkeypatch.setattr(world.pods, "probe", for_ever)
    await world.run(2)
    assert len(world.outside.memory.probing) == 1
    world.move("3")
    await world.run(2)
    assert ended
    assert world.outside.memory.probing == {}


def test_clients_that_are_there_in_both_sides_blocks_favour_neither() -> None:
    gate = LoadProbe.model_validate(PROBE["loadProbe"])
    busy = loaded(1.0).model_copy(update={"busy": 0.8})
    both = loadprobe.verdict(gate, ProbeOutcome(((busy, busy),) * 10))
    one = loadprobe.verdict(gate, ProbeOutcome(((loaded(1.0), busy),) * 10))
    assert "answered clients" not in (both.message or "")
    assert "answered clients in 80%" in (one.message or "")
