"""An upgrade of the operator changes no pod:
children as earlier operators applied them, then this one takes over.

tests/unit/operator/test_upgrade.py holds every recorded specification against the plans;
hack/record adds a release.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from control_plane.operator_fixtures import NODE, Api, Json, Models, Operator, Place, PlayedKubelet
from llm_operator.crds import API_VERSION
from llm_operator.ports.cluster import path_of
from waiting import eventually

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]
RECORDED = Path(__file__).resolve().parents[1] / "upgrade"
NEXT = "example.com/llm-runtime:next"
BOT = "support-bot"
REVISION = "llm-operator.dev/revision"
RECORDED_SERVER = "http://mlflow:5000"
"""The MLflow server of the recorded cases; the operator in this test asks another one."""


@pytest.fixture
def upgraded(operator: Operator) -> Iterator[Operator]:
    """The operator, stopped, with the next runtime image in its configuration."""
    operator.stop()
    operator.settings["runtimeImage"] = NEXT
    operator.write()
    yield operator
    operator.stop()
    operator.settings["runtimeImage"] = "example.com/llm-runtime:1"
    operator.write()
    operator.start()


def as_applied_before(place: Place, case: Json) -> None:
    """The resource, its children and its status,
    as the old operator left them in the middle of its first roll-out."""
    manifest = {
        "apiVersion": API_VERSION,
        "kind": "LLMDeployment",
        "metadata": {"name": BOT, "namespace": place.name},
    }
    resource = place.api.apply({**manifest, "spec": case["in"]["spec"]})
    owner = {
        "apiVersion": API_VERSION,
        "kind": "LLMDeployment",
        "name": BOT,
        "uid": resource["metadata"]["uid"],
    }
    for recorded in case["out"]["objects"]:
        if recorded["kind"] == "ServiceMonitor":  # This cluster knows none.
            continue
        child = json.loads(json.dumps(recorded).replace(RECORDED_SERVER, place.models.uri))
        child["metadata"] |= {
            "namespace": place.name,
            "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
        }
        place.api.apply(child, "llm-operator")
    meta = {"name": BOT, "namespace": place.name}
    status = {**case["out"]["status"], "observedGeneration": resource["metadata"]["generation"]}
    path = path_of("LLMDeployment", place.name, BOT) + "/status"
    told = {**manifest, "metadata": meta, "status": status}
    place.api.call(
        "PATCH",
        path,
        told,
        "application/apply-patch+yaml",
        fieldManager="llm-operator",
        force="true",
    )


def running(place: Place) -> list[str]:
    """Pods with their restarts, all of them ready;
    bound by hand, as the recorded ones ask for no node of ours."""
    wanted = sum(each["spec"]["replicas"] for each in place.api.list("Deployment", place.name))
    pods = place.api.list("Pod", place.name)
    for pod in pods:
        if not pod["spec"].get("nodeName"):
            target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
            path = f"/api/v1/namespaces/{place.name}/pods/{pod['metadata']['name']}/binding"
            place.api.call(
                "POST", path, {"target": target, "metadata": {"name": pod["metadata"]["name"]}}
            )
    ready = [
        p for p in pods if any(c["type"] == "Ready" for c in p["status"].get("conditions", []))
    ]
    assert len(ready) == wanted, (len(ready), len(pods), wanted)
    return sorted(pod["metadata"]["uid"] for pod in pods)


def templates(place: Place) -> dict[str, Json]:
    """Their digest in an annotation is new in upgrades, and counts as a generation."""
    deployments = place.api.list("Deployment", place.name)
    return {d["metadata"]["name"]: d["spec"]["template"] for d in deployments}


def written(place: Place) -> dict[tuple[str, str], str]:
    """The version of each child that nobody but the operator writes."""
    kinds = ("ConfigMap", "Service", "ServiceAccount", "PodDisruptionBudget")
    labels = f"llm-operator.dev/deployment={BOT}"
    return {
        (kind, child["metadata"]["name"]): child["metadata"]["resourceVersion"]
        for kind in kinds
        for child in place.api.list(kind, place.name, labels)
    }


def _stable(place: Place) -> Json:
    """The revision that serves, once the new operator has said that it does."""

    def said() -> Json | None:
        available = place.condition("Available", BOT)["status"] == "True"
        return place.status(BOT)["stable"] if available else None

    return dict(eventually(said))


def test_a_new_operator_restarts_no_pod_of_an_old_one_until_it_is_asked_to(
    api: Api, upgraded: Operator, kubelet: PlayedKubelet, models: Models
) -> None:
    models.create(BOT, 8)
    models.promote(BOT, 3)
    handler = {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": "nvidia"},
        "handler": "n",
    }
    api.call("POST", "/apis/node.k8s.io/v1/runtimeclasses", handler)
    places: list[Place] = []
    for file in [
        *sorted(RECORDED.glob("*/minimal.yaml")),
        *sorted(RECORDED.glob("*/everything.yaml")),
    ]:
        place = Place(api, f"upgrade{len(places)}", kubelet, models)
        api.call("POST", "/api/v1/namespaces", {"metadata": {"name": place.name}})
        as_applied_before(place, yaml.safe_load(file.read_text()))
        places.append(place)
    before = [
        (eventually(partial(running, place)), templates(place), written(place)) for place in places
    ]

    upgraded.start()
    for place, (pods, children, versions) in zip(places, before, strict=True):
        (name,) = children
        stable = _stable(place)
        assert f"{BOT}-{stable['revision']}" == name
        assert templates(place) == children
        assert running(place) == pods
        if len(pods) == 1:
            del versions["PodDisruptionBudget", BOT]  # It allowed everything.
            eventually(lambda place=place: not place.get("PodDisruptionBudget", BOT))
        assert written(place) == versions

    # Asked to, by any change of what shapes the pods:
    # a new revision, from the new operator's template and image.
    place = places[0]
    api.patch(
        "LLMDeployment",
        place.name,
        BOT,
        {"spec": {"pod": {"annotations": {"example.com/operator": "next"}}}},
    )
    fresh = eventually(lambda: place.status(BOT)["candidate"])
    assert fresh["image"] == NEXT
    assert templates(place).items() >= before[0][1].items()
    eventually(lambda: running(place))
    eventually(lambda: place.status(BOT)["stable"]["revision"] == fresh["revision"])
