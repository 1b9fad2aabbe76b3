"""Nodes that are full, as the real scheduler and the API server tell it:
nothing that serves is stopped in vain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from control_plane.operator_fixtures import NODE, Json, Place, PlayedKubelet
from control_plane.watching import never_less_than
from waiting import eventually

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]
GPU = "nvidia.com/gpu"
ONE_GPU = {"limits": {GPU: 1}}
LONG = 120.0
"""Rolling by Auto begins after 30 s without room;
a refused pod is tried again at growing intervals."""
EVICTED = {
    "phase": "Failed",
    "reason": "Evicted",
    "message": "The node was low on resource: memory.",
    "conditions": [{"type": kind, "status": "False"} for kind in ("Ready", "ContainersReady")],
}


def offer(place: Place, amount: str | None) -> None:
    """Have the node offer so many GPUs."""
    place.kubelet.resize(GPU, amount)
    eventually(
        lambda: (
            place.api.call("GET", f"/api/v1/nodes/{NODE}")["status"]["allocatable"].get(GPU)
            == amount
        )
    )


@pytest.fixture
def gpus(place: Place) -> Iterator[Place]:
    """A place on a node whose GPUs a test counts out."""
    yield place
    offer(place, None)


def progressing(place: Place, *words: str) -> Json:
    """The condition Progressing, once it says all of this."""
    return dict(
        eventually(
            lambda: (
                c
                if all(w in (c := place.condition("Progressing"))["message"] for w in words)
                else None
            ),
            LONG,
        )
    )


def test_auto_waits_for_room_with_its_only_pod_and_takes_it_when_it_comes(gpus: Place) -> None:
    model = gpus.model()
    offer(gpus, "1")
    gpus.deploy(resources=ONE_GPU)
    gpus.ready()
    with never_less_than(gpus, 1):
        gpus.models.promote(model, 2)
        told = progressing(
            gpus, f"not enough {GPU}", "free room, add a node", "rollout.strategy: Recreate"
        )
        assert told["reason"] == "PodUnschedulable"
        assert gpus.condition("Ready")["reason"] == "PodUnschedulable"
        assert "version 1 keeps serving" in gpus.condition("Ready")["message"]
        # Past the time after which Auto used to stop the old pod.
        eventually(
            lambda: "stopping the only pod" in gpus.status()["candidate"]["strategyReason"], LONG
        )
        offer(gpus, "2")
        gpus.ready(version="2")


def test_with_two_pods_and_no_room_one_at_a_time_makes_it(gpus: Place) -> None:
    model = gpus.model()
    offer(gpus, "2")
    gpus.deploy(replicas=2, resources=ONE_GPU)
    gpus.ready()
    with never_less_than(gpus, 1):
        gpus.models.promote(model, 2)
        gpus.ready(version="2", seconds=LONG)
    assert any(f"Insufficient {GPU}" in event["message"] for event in gpus.events("StrategyChosen"))


def test_a_quota_that_is_used_up_is_seen_as_a_lack_of_room(place: Place) -> None:
    model = place.model()
    quota: Json = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "two"},
        "spec": {"hard": {"pods": "2"}},
    }
    place.api.call("POST", f"/api/v1/namespaces/{place.name}/resourcequotas", quota)
    place.deploy(replicas=2)
    place.ready()
    with never_less_than(place, 1):
        place.models.promote(model, 2)
        progressing(place, "exceeded quota: two")
        place.ready(version="2", seconds=LONG)


@pytest.fixture
def two_nodes(place: Place) -> Iterator[Place]:
    """A place with a second node."""
    second = PlayedKubelet(place.api, f"{NODE}-2")
    second.start()
    yield place
    second.stop()


def test_pods_that_bear_no_other_on_their_node_are_replaced_one_by_one(two_nodes: Place) -> None:
    place = two_nodes
    model = place.model()
    term = {
        "labelSelector": {"matchLabels": {"app": "bot"}},
        "topologyKey": "kubernetes.io/hostname",
    }
    apart = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    place.deploy(replicas=2, pod={"labels": {"app": "bot"}, "affinity": apart})
    place.ready()
    with never_less_than(place, 1):
        place.models.promote(model, 2)
        progressing(place, "anti-affinity")
        place.ready(version="2", seconds=LONG)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resources": {"requests": {"cpu": "5000"}}}, "Insufficient cpu"),
        ({"pod": {"nodeSelector": {"played": "no"}}}, "node affinity/selector"),
    ],
)
def test_no_old_pod_is_stopped_for_new_ones_that_fit_nowhere(
    place: Place, change: Json, said: str
) -> None:
    place.model()
    place.deploy(replicas=2, resources={"requests": {"cpu": "1"}})
    place.ready()
    with never_less_than(place, 2):
        deadline: dict[str, Any] = {"rollout": {"progressDeadlineSeconds": 45}}
        place.deploy(replicas=2, **{"resources": {"requests": {"cpu": "1"}}, **deadline, **change})
        progressing(place, said, "stopping an old pod would make no room")
        stalled = eventually(
            lambda: c if (c := place.condition("Stalled"))["status"] == "True" else None, LONG
        )
    assert stalled["reason"] == "ProgressDeadlineExceeded"
    assert said in stalled["message"]


@pytest.mark.parametrize("strategy", ["Recreate", "Rolling", "Canary"])
def test_an_evicted_pod_that_stays_listed_is_no_pod(place: Place, strategy: str) -> None:
    model = place.model(versions=3)
    rollout: Json = {"strategy": strategy, "progressDeadlineSeconds": 60}
    if strategy == "Canary":
        rollout["canary"] = {"steps": [{"weight": 50, "holdSeconds": 1}]}
    place.deploy(replicas=2, rollout=rollout)
    place.ready(version="1")
    evicted = place.api.list("Pod", place.name)[0]["metadata"]["name"]
    place.api.patch("Pod", place.name, evicted, {"status": EVICTED}, "/status")
    eventually(lambda: len(place.api.list("Pod", place.name)) == 3)
    place.ready(version="1")
    assert place.get("Pod", evicted)
    for version in (2, 3):
        place.models.promote(model, version)
        place.ready(version=str(version))
