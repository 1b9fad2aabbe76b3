"""How far downloads are is told in the conditions while pods fetch,
and costs nothing once they do not."""

from __future__ import annotations

from typing import Any

import pytest

from llm_operator.plans.status import downloads
from llm_operator.reconcile import Done, Pace, reconcile
from llm_operator.state import Download, Figures, Key
from unit.operator.fakes import NAMESPACE, World

PACE = Pace(verify_seconds=60, settle_seconds=5)
FETCHING = {"initContainerStatuses": [{"name": "fetch", "state": {"running": {}}}]}


async def look(world: World) -> Done:
    return await reconcile(Key("LLMDeployment", NAMESPACE, "bot"), world.outside, PACE)


def fetching(
    world: World, revision: str, name: str, done: float, total: float = 1e9, rate: float = 41e6
) -> None:
    pod(world, revision, name, FETCHING)
    world.pods.known[name] = Figures(download=Download(done, total, rate))


def pod(world: World, revision: str, name: str, status: dict[str, Any]) -> None:
    labels = {"llm-operator.dev/deployment": "bot", "llm-operator.dev/revision": revision}
    meta = {"name": name, "namespace": NAMESPACE, "labels": labels}
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "status": status}
    world.cluster._store("kubelet", ("Pod", NAMESPACE, name), made)


async def rolling_out(world: World, **spec: Any) -> str:
    await world.deploy(**spec)
    await look(world)
    return str(world.status()["candidate"]["revision"])


@pytest.mark.parametrize(
    ("download", "said"),
    [
        (Download(630e6, 1e9, 41e6), "downloading 63 %, 41 MB/s, 9 s left"),
        (Download(0, 1e9, 0), "downloading 0 %, 0.0 MB/s"),
        (Download(1e9, 1e9, 2.5e6), "downloading 100 %, 2.5 MB/s"),
        (Download(1e9, 40e9, 50e6), "downloading 2 %, 50 MB/s, 13 min left"),
        (Download(0, 1e12, 50e6), "downloading 0 %, 50 MB/s, 5.6 h left"),
    ],
)
def test_progress_in_words(download: Download, said: str) -> None:
    assert (
        downloads.progress([{"metadata": {"name": "p"}}], {"p": Figures(download=download)}, 3)
        == said
    )


async def test_the_candidates_download_moves_through_progressing_ready_and_reconciling() -> None:
    world = World()
    revision = await rolling_out(world)
    fetching(world, revision, "p", 630e6)
    done = await look(world)
    assert done.after_seconds == 5
    for kind, status in (("Progressing", "True"), ("Ready", "Unknown"), ("Reconciling", "True")):
        said = world.condition(kind)
        assert (said["status"], said["reason"]) == (status, "Downloading")
        assert (
            said["message"]
            == "0 of 1 pods of version 1 are ready; downloading 63 %, 41 MB/s, 9 s left"
        )
    fetching(world, revision, "p", 800e6)
    await look(world)
    assert "downloading 80 %" in world.condition("Progressing")["message"]
    assert "Downloading" not in world.cluster.events()


async def test_of_several_the_slowest_is_told() -> None:
    world = World()
    revision = await rolling_out(world, replicas=3)
    fetching(world, revision, "p", 630e6)
    fetching(world, revision, "q", 900e6, rate=1e6)
    await look(world)
    said = world.condition("Progressing")["message"]
    assert said.endswith(
        "downloading 90 %, 1.0 MB/s, 2 min left (the slowest; 2 of 3 pods download)"
    )


async def test_pods_that_come_later_tell_it_too() -> None:
    world = World()
    revision = await rolling_out(world)
    world.cluster.play(f"bot-{revision}")
    await look(world)
    await world.deploy(replicas=2)
    await look(world)
    world.cluster.play(f"bot-{revision}", ready=1)
    fetching(world, revision, "q", 630e6)
    await look(world)
    said = world.condition("Ready")
    assert (said["status"], said["reason"]) == ("Unknown", "Downloading")
    assert said["message"] == "1 of 2 pods are ready; downloading 63 %, 41 MB/s, 9 s left"


async def test_a_fault_is_told_first_and_the_download_beside_it() -> None:
    world = World()
    revision = await rolling_out(world, replicas=2)
    fetching(world, revision, "p", 630e6)
    message = "0/1 nodes are available: 1 Insufficient memory"
    unschedulable = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
    }
    pod(world, revision, "q", {"conditions": [unschedulable]})
    await look(world)
    said = world.condition("Progressing")
    assert said["reason"] == "PodUnschedulable"
    assert "downloading 63 %" in said["message"]


async def test_what_does_not_change_is_not_written_and_the_end_is_quiet() -> None:
    world = World()
    revision = await rolling_out(world)
    fetching(world, revision, "p", 630e6)
    await look(world)
    world.cluster.writes.clear()
    await look(world)
    assert world.cluster.writes == []
    pod(world, revision, "p", {"conditions": [{"type": "Ready", "status": "True"}]})
    world.pods.known.clear()
    world.cluster.play(f"bot-{revision}")
    await look(world)
    assert world.condition("Ready")["status"] == "True"
    world.cluster.writes.clear()
    done = await look(world)
    assert world.cluster.writes == []
    assert done.after_seconds != 5


async def test_a_mesh_s_sidecar_is_no_download() -> None:
    world = World()
    revision = await rolling_out(world)
    pod(
        world,
        revision,
        "p",
        {"initContainerStatuses": [{"name": "istio-proxy", "state": {"running": {}}}]},
    )
    world.pods.known["p"] = Figures(download=Download(1, 2, 1))
    done = await look(world)
    assert world.condition("Progressing")["reason"] == "RollingOut"
    assert done.after_seconds != 5
