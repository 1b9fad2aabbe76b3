"""Scaling, suspending, deleting, restarting, standing by; and quiet when there is nothing to do."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from control_plane.operator_fixtures import (
    IMAGE,
    Api,
    Json,
    Models,
    Operator,
    Place,
    eventually,
    settings,
)
from devstack.cluster import Cluster

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]
KINDS = ("LLMDeployment", "ApiKey", "Deployment", "ConfigMap", "Service", "Secret", "ServiceAccount", "Pod",
         "PodDisruptionBudget", "HorizontalPodAutoscaler", "Event")  # fmt: skip


def versions(place: Place) -> dict[str, str]:
    """resourceVersions of everything in the namespace."""
    return {
        f"{kind}/{item['metadata']['name']}": item["metadata"]["resourceVersion"]
        for kind in KINDS
        for item in place.api.list(kind, place.name)
        # The built-in autoscaler writes to its own objects for ever, with or without us.
        if kind != "HorizontalPodAutoscaler"
    }


def test_nothing_is_written_when_nothing_changed(place: Place, operator: Operator) -> None:
    place.model()
    place.deploy(replicas=2)
    place.key(deployments=["bot"])
    place.ready()
    eventually(lambda: place.condition("Ready", "team", "ApiKey")["status"] == "True")

    def quiet() -> bool:
        before = versions(place)
        time.sleep(2.5)
        return versions(place) == before

    eventually(quiet)


def test_a_look_applies_only_what_has_changed(place: Place, operator: Operator) -> None:
    """Nor does the first look of a new process: the objects themselves tell who wrote what."""
    place.model()
    place.deploy(
        replicas=2,
        autoscaling={"maxReplicas": 3, "metrics": [{"type": "QueueDepth", "target": 4}]},
        resources={"requests": {"cpu": "1000m", "memory": "1024Mi"}},
        pod={
            "nodeSelector": {"played": "yes"},
            "tolerations": [{"key": "played", "operator": "Exists"}],
            "env": [{"name": "HF_HUB_OFFLINE", "value": "1"}],
        },
        adapters=[{"name": "law", "mlflow": {"name": f"{place.name}-model", "version": "1"}}],
    )
    place.key(deployments=["bot"])
    place.ready()

    def quiet() -> bool:
        before = operator.writes()
        time.sleep(3)
        return operator.writes() == before

    def alone() -> bool:
        every = place.api.list("LLMDeployment", "") + place.api.list("ApiKey", "")
        return {each["metadata"]["namespace"] for each in every} == {place.name}

    eventually(alone)  # Others' objects are written, too, until they are gone.
    # The built-in autoscaler looks each 15 s, and what it says goes into the status.
    eventually(lambda: place.condition("AutoscalingActive")["status"] == "False")
    eventually(quiet)
    before = operator.writes()
    for number in range(3):
        place.look_again(operator, number)
    eventually(quiet)
    assert operator.writes() == before
    operator.stop()
    operator.start()
    eventually(lambda: operator.looks() > 0)
    eventually(quiet)
    # But the status, where the autoscaler has found other words since.
    written = {name for name in operator.writes() if 'kind="LLMDeployment"' not in name}
    assert not {name for name in written if 'verb="apply"' in name or 'verb="create"' in name}


def test_what_was_created_and_is_not_wanted_any_more_goes(place: Place, operator: Operator) -> None:
    """And nothing that somebody else has written goes with it."""
    place.model()
    place.deploy(service={"type": "NodePort", "annotations": {"example.com/a": "1"}})
    place.ready()
    theirs = {"metadata": {"annotations": {"example.com/theirs": "2"}}}
    place.api.patch("Service", place.name, "bot", theirs)
    place.deploy()
    wanted = {"example.com/theirs": "2"}
    eventually(lambda: place.get("Service", "bot")["metadata"]["annotations"] == wanted)
    assert place.get("Service", "bot")["spec"]["type"] == "ClusterIP"
    before = operator.writes()
    place.look_again(operator, 1)
    assert operator.writes() == before


def test_kubectl_scale_and_the_autoscaler_work_on_the_scale_subresource(
    place: Place, cluster: Cluster
) -> None:
    place.model()
    place.deploy()
    place.ready()
    cluster.kubectl("scale", "llmd", "bot", "--replicas=3", "-n", place.name)
    eventually(lambda: place.ready()["readyReplicas"] == 3)
    place.deploy(autoscaling={"maxReplicas": 5, "metrics": [{"type": "QueueDepth", "target": 4}]})
    hpa = eventually(lambda: place.get("HorizontalPodAutoscaler", "bot"))
    assert hpa["spec"]["scaleTargetRef"]["kind"] == "LLMDeployment"
    assert hpa["spec"]["metrics"][0]["pods"]["metric"]["name"] == "llm_requests_waiting"
    eventually(lambda: place.condition("AutoscalingActive")["status"] in ("True", "False"))
    place.deploy()
    eventually(lambda: place.get("HorizontalPodAutoscaler", "bot") is None)


def test_suspend_stops_all_pods_and_resuming_brings_back_the_same_revision(place: Place) -> None:
    place.model()
    place.deploy()
    revision = place.ready()["stable"]["revision"]
    place.deploy(suspend=True)
    eventually(lambda: place.condition("Ready")["reason"] == "Suspended")
    eventually(lambda: place.api.list("Pod", place.name) == [])
    assert place.get("Service", "bot")
    place.deploy(suspend=False)
    assert place.ready()["stable"]["revision"] == revision


def test_kubectl_wait_and_get_read_well(place: Place, cluster: Cluster) -> None:
    place.model()
    place.deploy()
    cluster.kubectl("wait", "llmd/bot", "--for=condition=Ready", "--timeout=30s", "-n", place.name)
    header, row = cluster.kubectl("get", "llmds", "-n", place.name).splitlines()
    assert header.split() == [
        "NAME",
        "READY",
        "AVAILABLE",
        "REASON",
        "VERSION",
        "TARGET",
        "PODS",
        "DESIRED",
        "AGE",
    ]
    assert row.split()[1:4] == ["True", "True", "Serving"]


def test_ready_is_unknown_from_the_first_moment(place: Place) -> None:
    place.model()
    place.kubelet.fate[place.name, "1"] = {}
    place.deploy()
    ready = eventually(lambda: place.condition("Ready"))
    assert ready["status"] == "Unknown", "by the CRD's default, before the operator has seen it"
    eventually(lambda: place.status().get("observedGeneration") == 1)
    assert place.condition("Ready")["status"] == "Unknown"


@pytest.fixture
def other(api: Api, account: Path, models: Models, tmp_path: Path) -> Operator:
    """A second operator on the same lease, not started."""
    return Operator(tmp_path, account, settings(models), "other")


def _allow_lease(place: Place, name: str) -> None:
    """As the chart of a release of this name would: an operator may touch its own Lease alone."""
    meta = {"name": name, "namespace": "llm-operator-system"}
    rbac = "rbac.authorization.k8s.io"
    rule = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": [name]}
    user = {"kind": "ServiceAccount", "name": "llm-operator", "namespace": "llm-operator-system"}
    about = {"apiVersion": f"{rbac}/v1", "metadata": meta}
    role = {**about, "kind": "Role", "rules": [{**rule, "verbs": ["get", "patch"]}]}
    binding = {
        **about,
        "kind": "RoleBinding",
        "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name},
    }
    for kind, manifest in (("roles", role), ("rolebindings", {**binding, "subjects": [user]})):
        path = f"/apis/{rbac}/v1/namespaces/llm-operator-system/{kind}/{name}"
        place.api.call(
            "PATCH",
            path,
            manifest,
            "application/apply-patch+yaml",
            fieldManager="test",
            force="true",
        )


def test_another_installation_keeps_off_until_the_namespace_is_moved(
    place: Place, account: Path, models: Models, tmp_path: Path
) -> None:
    place.model()
    place.deploy()
    place.ready()
    _allow_lease(place, "another")
    chosen = settings(models, runtimeImage="example.com/another:1", watchNamespaces=[place.name])
    chosen["lease"]["name"] = "another"
    another = Operator(tmp_path, account, chosen, "another")
    another.start()
    try:
        (told,) = eventually(lambda: place.events("OtherInstallation"))
        assert "belongs to the operator of llm-operator-system/llm-operator" in told["message"]
        place.deploy(engine={"maxModelLength": 1024})
        assert place.ready()["stable"]["image"] == IMAGE
        move = {"data": {"installation": "llm-operator-system/another"}}
        place.api.patch("ConfigMap", place.name, "llm-operator-installation", move)
        place.deploy(engine={"maxModelLength": 512})
        assert place.ready()["stable"]["image"] == "example.com/another:1"
    finally:
        another.stop()
    assert "unexpected" not in another.log.read_text()


def test_a_stand_by_takes_over_when_the_leader_is_killed_and_no_pod_is_touched(
    place: Place, operator: Operator, other: Operator
) -> None:
    model = place.model()
    place.deploy()
    place.ready()
    pods = [pod["metadata"]["uid"] for pod in place.api.list("Pod", place.name)]
    other.settings["runtimeImage"] = "example.com/llm-runtime:2"
    other.write()
    other.start()
    operator.stop(signal.SIGKILL)
    try:
        killed = time.monotonic()
        eventually(lambda: "holding lease" in other.log.read_text())
        print(f"take-over: {time.monotonic() - killed:.1f} s")
        time.sleep(1)
        assert [pod["metadata"]["uid"] for pod in place.api.list("Pod", place.name)] == pods
        assert place.ready()["stable"]["image"] == "example.com/llm-runtime:1"
        place.models.promote(model, 2)
        assert place.ready(version="2")["stable"]["image"] == "example.com/llm-runtime:2"
    finally:
        operator.start()
        assert other.stop() == 0


def test_deletion_leaves_nothing_although_the_operator_is_down(
    place: Place, operator: Operator
) -> None:
    place.model()
    place.deploy()
    place.key(deployments=["bot"])
    place.ready()
    assert operator.stop() == 0
    try:
        place.api.delete("LLMDeployment", place.name, "bot")
        place.api.delete("ApiKey", place.name, "team")

        def left() -> list[str]:
            kinds = (
                "LLMDeployment",
                "ApiKey",
                "Deployment",
                "Service",
                "Secret",
                "PodDisruptionBudget",
                "Pod",
            )
            return [
                item["metadata"]["name"]
                for kind in kinds
                for item in place.api.list(kind, place.name)
            ]

        eventually(lambda: not left())
    finally:
        operator.start()


def test_foreground_deletion_ends_while_the_operator_runs(place: Place) -> None:
    place.model()
    place.deploy()
    place.ready()
    place.api.delete("LLMDeployment", place.name, "bot", propagationPolicy="Foreground")
    eventually(lambda: place.get("LLMDeployment", "bot") is None)
    time.sleep(1)
    assert place.api.list("Deployment", place.name) == []


def test_a_misspelt_setting_ends_the_start_with_its_name(
    tmp_path: Path, models: Models, account: Path
) -> None:
    wrong: Json = {**settings(models), "pollSecond": 1}
    misconfigured = Operator(tmp_path, account, wrong)
    command = ["python", "-m", "llm_operator", "--config", str(misconfigured.config)]
    from control_plane.operator_fixtures import ROOT

    environment = {
        "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'runtime'}",
        "PATH": str(ROOT / ".venv" / "bin"),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert "pollSecond" in done.stderr
    assert "pollSeconds" in done.stderr
