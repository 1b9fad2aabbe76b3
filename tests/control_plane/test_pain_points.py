"""What people suffer from with other serving operators, each pain a test by its name.

Those that are tested elsewhere:
- the fleet restarted by an operator's upgrade: test_upgrade.py
- deletion stuck: in the foreground, and with the operator down: test_lifecycle.py
- Ready on dead pods, with real processes: tests/e2e/test_dead_pods.py
- Argo CD or Flux waiting for ever: test_judged.py
- suspend that forgets what served: test_lifecycle.py
- pods in trouble without a word about it: test_faults.py, tests/unit/operator/test_faults.py
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes.aio import client, config

from control_plane.operator_fixtures import NODE, Json, Operator, Place
from control_plane.watching import recorded
from devstack.cluster import Cluster
from llm_operator.ports.cluster import Conflict, KubernetesCluster
from waiting import eventually

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]
GPU = "nvidia.com/gpu"
REVISION = "llm-operator.dev/revision"


@pytest.fixture
def one_gpu(place: Place) -> Iterator[None]:
    """The node has one GPU while the test runs."""

    def offers(amount: str | None) -> bool:
        node = place.api.call("GET", f"/api/v1/nodes/{NODE}")
        return bool(node["status"]["allocatable"].get(GPU) == amount)

    place.kubelet.resize(GPU, "1")
    eventually(lambda: offers("1"))
    yield
    place.kubelet.resize(GPU, None)
    eventually(lambda: offers(None))


def ready_pods(place: Place) -> list[Json]:
    return [
        pod
        for pod in place.api.list("Pod", place.name)
        if any(
            c["type"] == "Ready" and c["status"] == "True"
            for c in pod["status"].get("conditions", [])
        )
    ]


@pytest.mark.usefixtures("one_gpu")
def test_deadlock_without_a_free_gpu_is_told_and_ends_with_the_old_version_serving(
    place: Place,
) -> None:
    model = place.model()
    gpu = {"limits": {GPU: 1}}
    place.deploy(resources=gpu, rollout={"progressDeadlineSeconds": 10})
    old = place.ready()["stable"]["revision"]
    place.models.promote(model, 2)
    told = eventually(
        lambda: c if (c := place.condition("Progressing"))["reason"] == "PodUnschedulable" else None
    )
    assert f"not enough {GPU}" in told["message"]
    assert "rollout.strategy: Recreate" in told["message"]
    failed = eventually(
        lambda: c if (c := place.condition("Stalled"))["status"] == "True" else None
    )
    assert failed["reason"] == "ProgressDeadlineExceeded"
    assert GPU in failed["message"]
    assert place.selected() == old
    assert len(ready_pods(place)) == 1
    # What the message advises works.
    place.deploy(resources=gpu, rollout={"strategy": "Recreate", "progressDeadlineSeconds": 60})
    place.api.delete("Deployment", place.name, f"bot-{place.status()['candidate']['revision']}")
    place.ready(version="2")


def test_an_autoscaler_that_scales_during_a_rollout_is_not_fought(
    place: Place, cluster: Cluster
) -> None:
    model = place.model()
    place.deploy(replicas=2)
    old = place.ready()["stable"]["revision"]
    place.kubelet.fate[place.name, "2"] = {}
    with recorded(place.api, "LLMDeployment", place.name) as states:
        place.models.promote(model, 2)
        candidate = eventually(lambda: place.status()["candidate"]["revision"])
        cluster.kubectl(
            "scale", "llmd", "bot", "--replicas=4", "-n", place.name
        )  # As an autoscaler does it.
        for revision in (old, candidate):
            size = eventually(lambda revision=revision: _wanted(place, revision) == 4)
            assert size
        del place.kubelet.fate[place.name, "2"]
        assert place.ready(version="2")["readyReplicas"] == 4
    sizes = [state["spec"]["replicas"] for state in states]
    assert sizes == sorted(sizes), f"the operator wrote spec.replicas: {sizes}"


def _wanted(place: Place, revision: str) -> int:
    return int((place.get("Deployment", f"bot-{revision}") or {})["spec"]["replicas"])


def test_ready_is_not_said_of_dead_pods(place: Place) -> None:
    place.model()
    place.deploy(replicas=2)
    place.ready()
    place.kubelet.fate[place.name, "1"] = {"phase": "Running", "conditions": [
        {"type": kind, "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        for kind in ("Ready", "ContainersReady")]}  # fmt: skip
    died = time.monotonic()
    eventually(lambda: place.condition("Available")["status"] == "False")
    print(f"pods died → Available=False: {time.monotonic() - died:.1f} s")
    assert place.condition("Ready")["status"] != "True"
    assert "get pods" in place.condition("Available")["message"]
    del place.kubelet.fate[place.name, "1"]
    place.ready()


def test_pods_of_a_silent_node_are_not_ready_and_the_node_is_named(place: Place) -> None:
    place.model()
    place.deploy()
    place.ready()
    moment = {"lastTransitionTime": "2026-01-01T00:00:00Z"}
    # What the control plane writes when a node's lease runs out.
    place.kubelet.fate[place.name, "1"] = {"phase": "Running", "conditions": [
        {"type": "PodScheduled", "status": "True", **moment}, {"type": "ContainersReady", "status": "True", **moment},
        {"type": "Ready", "status": "False", **moment}]}  # fmt: skip
    told = eventually(
        lambda: c if (c := place.condition("Available"))["reason"] == "NodeLost" else None
    )
    assert f"kubectl describe node {NODE}" in told["message"]
    del place.kubelet.fate[place.name, "1"]


@pytest.fixture
def doomed(place: Place) -> Place:
    """A namespace that the test deletes."""
    doomed = Place(place.api, f"{place.name}-doomed", place.kubelet, place.models)
    place.api.call("POST", "/api/v1/namespaces", {"metadata": {"name": doomed.name}})
    return doomed


def test_a_namespace_can_be_deleted_with_everything_in_it(doomed: Place) -> None:
    model = doomed.model()
    doomed.deploy()
    doomed.key(deployments=["bot"])
    doomed.ready()
    doomed.kubelet.fate[doomed.name, "2"] = {}
    doomed.models.promote(model, 2)
    eventually(lambda: doomed.status()["candidate"])
    doomed.api.call("DELETE", f"/api/v1/namespaces/{doomed.name}")
    eventually(lambda: doomed.name not in _namespaces(doomed))


def test_a_namespace_can_be_deleted_while_the_operator_is_down(
    doomed: Place, operator: Operator
) -> None:
    doomed.model()
    doomed.deploy()
    doomed.key(deployments=["bot"])
    doomed.ready()
    assert operator.stop() == 0
    try:
        doomed.api.call("DELETE", f"/api/v1/namespaces/{doomed.name}")
        eventually(lambda: doomed.name not in _namespaces(doomed))
    finally:
        operator.start()


def _namespaces(place: Place) -> set[str]:
    return {
        each["metadata"]["name"] for each in place.api.call("GET", "/api/v1/namespaces")["items"]
    }


def test_a_rename_leaves_nothing_of_the_old_name_and_touches_nothing_of_the_new(
    place: Place,
) -> None:
    place.model()
    place.deploy("before")
    place.deploy("after")
    place.ready("before")
    kept = place.ready("after")["stable"]
    pods = {
        pod["metadata"]["uid"]
        for pod in place.api.list("Pod", place.name, "llm-operator.dev/deployment=after")
    }
    place.api.delete("LLMDeployment", place.name, "before")
    kinds = (
        "Deployment",
        "ConfigMap",
        "Service",
        "Secret",
        "ServiceAccount",
        "PodDisruptionBudget",
        "Pod",
    )

    def names() -> list[str]:
        found = [
            child["metadata"]["name"]
            for kind in kinds
            for child in place.api.list(kind, place.name)
        ]
        return [name for name in found if name.startswith("before")]

    eventually(lambda: not names())
    assert place.ready("after")["stable"] == kept
    left = {
        pod["metadata"]["uid"]
        for pod in place.api.list("Pod", place.name, "llm-operator.dev/deployment=after")
    }
    assert left == pods


def test_a_name_used_again_gets_nothing_of_its_predecessor(place: Place) -> None:
    model = place.model()
    place.deploy()
    place.ready()
    place.models.promote(model, 2)
    place.ready(version="2")
    before = {pod["metadata"]["uid"] for pod in place.api.list("Pod", place.name)}
    place.api.delete("LLMDeployment", place.name, "bot")
    place.deploy()
    status = place.ready(version="2")
    assert not status["history"]
    eventually(
        lambda: not before & {pod["metadata"]["uid"] for pod in place.api.list("Pod", place.name)}
    )


async def test_the_status_of_a_deleted_resource_never_reaches_its_successor(
    place: Place, account: Path
) -> None:
    """A reconcile that began before the deletion ends after it."""
    place.model()
    place.deploy()
    place.ready()
    configuration = client.Configuration()
    await config.load_kube_config(str(account), client_configuration=configuration)
    cluster = KubernetesCluster(client.ApiClient(configuration))
    told = {"kind": "LLMDeployment", "status": {"observedGeneration": 99}}
    meta = {"name": "bot", "namespace": place.name, "uid": "11111111-2222-3333-4444-555555555555"}
    with pytest.raises(Conflict):
        await cluster.apply_status({**told, "metadata": meta})
    assert place.ready()["observedGeneration"] == 1
    await cluster.close()
