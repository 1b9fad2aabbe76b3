"""Adapters on a real API server and a real MLflow,
with the chart's rights: what reaches running pods, what is told."""

from __future__ import annotations

import base64
import json
from itertools import count
from typing import Any

import pytest

from control_plane.operator_fixtures import Place
from control_plane.pod_metrics import pod_metrics
from llm_runtime import contract
from waiting import eventually

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]


def versions(place: Place) -> dict[str, str]:
    data = (place.get("Secret", "bot-adapters") or {}).get("data", {})
    listed: list[dict[str, Any]] = json.loads(
        base64.b64decode(data.get("adapters.json", "e30="))
    ).get("adapters", [])
    return {adapter["name"]: adapter["version"] for adapter in listed}


def listed(place: Place) -> contract.AdapterFile:
    data = (place.get("Secret", "bot-adapters") or {}).get("data", {})
    text = base64.b64decode(data.get("adapters.json", "e30="))
    return contract.AdapterFile.model_validate_json(text)


def pods(place: Place) -> dict[str, str]:
    """The annotation that tells the kubelet to look again, by pod."""
    return {
        pod["metadata"]["uid"]: (
            (pod["metadata"].get("annotations") or {}).get("llm-operator.dev/keys", "")
        )
        for pod in place.api.list("Pod", place.name)
    }


def answering(place: Place, pods: int, version: str) -> bool:
    (adapter,) = place.status()["adapters"]
    told = place.condition("AdaptersReady")["status"] == "True"
    return told and (adapter["readyReplicas"], adapter["version"]) == (pods, version)


def test_adapters_come_move_and_go_in_the_pods_that_run(place: Place) -> None:
    place.model()
    name = f"{place.name}-legal"
    place.models.create(name)
    with pod_metrics() as pod:  # Both pods are there.
        place.kubelet.fate[place.name, "1"] = pod.ready
        place.deploy(replicas=2, adapters=[])
        revision = place.ready()["stable"]["revision"]
        before = pods(place)
        place.deploy(
            replicas=2, adapters=[{"name": "legal", "mlflow": {"name": name, "alias": "champion"}}]
        )
        eventually(lambda: versions(place) == {"legal": "1"})
        late = eventually(
            lambda: (
                c if (c := place.condition("AdaptersReady"))["reason"] == "AdapterLoading" else None
            )
        )
        assert "version 1 answers in 0 of 2 ready pods" in late["message"]
        pod.loaded(legal="1")
        eventually(lambda: answering(place, 2, "1"))
        place.models.promote(name, 2)
        eventually(lambda: versions(place) == {"legal": "2"})
        eventually(lambda: place.condition("AdaptersReady")["reason"] == "AdapterLoading")
        pod.loaded(legal="2")
        eventually(lambda: answering(place, 2, "2"))
        assert place.events("AdapterResolved")
        assert place.events("AdaptersLoaded")
        assert not set(pods(place).values()) & set(before.values())
        assert pods(place).keys() == before.keys()
        place.deploy(replicas=2, adapters=[])
        eventually(lambda: versions(place) == {})
        assert place.ready()["stable"]["revision"] == revision
        assert pods(place).keys() == before.keys()


def test_running_pods_copy_requests_to_a_version_and_their_count_refuses_it(place: Place) -> None:
    place.model()
    name = f"{place.name}-legal"
    place.models.create(name)
    reference = {"name": name, "alias": "champion"}
    adapter: dict[str, Any] = {"name": "legal", "mlflow": reference}
    with pod_metrics() as pod:
        place.kubelet.fate[place.name, "1"] = pod.ready
        place.deploy(adapters=[adapter])
        pod.loaded(legal="1")
        eventually(lambda: versions(place) == {"legal": "1"})
        place.ready()
        before = pods(place).keys()
        gate = {"shadowAgreement": {"minExact": 0.95}, "minRequests": 50}
        adapter |= {"gates": [gate], "shadow": {"percent": 50, "holdSeconds": 3600}}
        place.deploy(adapters=[adapter])
        place.models.promote(name, 2)
        [candidate] = eventually(lambda: listed(place).candidates)
        assert listed(place).shadowed == ()
        pod.loaded(**{"legal": "1", candidate.name: "2"})
        [order] = eventually(lambda: listed(place).shadowed)
        assert (order.candidate, order.percent) == (candidate.name, 50)
        assert order.pods == f"bot-{place.status()['stable']['revision']}"
        loaded = pod.text
        asked = count(1)

        def refused() -> bool:
            number = next(asked)
            pod.copied(candidate.name, 20 * number, 10 * number)
            pod.text += loaded
            return place.condition("AdaptersReady")["reason"] == "AdapterRefused"

        eventually(refused)
        told = place.condition("AdaptersReady")["message"]
        assert "was refused by gate shadowAgreement minExact is 0.5" in told
        assert (versions(place), listed(place).shadowed) == ({"legal": "1"}, ())
        assert pods(place).keys() == before


def test_an_alias_that_is_not_there_is_told_and_keeps_what_the_pods_have(place: Place) -> None:
    place.model()
    name = f"{place.name}-legal"
    place.models.create(name)
    place.deploy(adapters=[{"name": "legal", "mlflow": {"name": name, "alias": "champion"}}])
    eventually(lambda: versions(place) == {"legal": "1"})
    place.models.remove_alias(name)
    told = eventually(
        lambda: c if (c := place.condition("AdaptersReady"))["status"] == "False" else None
    )
    assert told["reason"] == "AliasNotFound"
    assert "its version 1 stays in the pods" in told["message"]
    assert versions(place) == {"legal": "1"}
    assert place.ready()
    place.models.promote(name, 2)
    eventually(lambda: versions(place) == {"legal": "2"})
    silent = eventually(
        lambda: c if (c := place.condition("AdaptersReady"))["reason"] == "AdapterLoading" else None
    )
    assert "the operator can't read the metrics of bot-" in silent["message"]
