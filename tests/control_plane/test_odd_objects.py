"""One odd object harms no other, on a real API server:
its admission, its limits, its garbage collector."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from control_plane.operator_fixtures import Api, Place
from waiting import eventually

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]
WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"


@contextmanager
def webhook_away(
    api: Api, place: Place, group: str, resource: str, *operations: str
) -> Iterator[None]:
    """An admission webhook that nobody answers, for one resource of the place."""
    hook = {
        "name": "away.example.com",
        "clientConfig": {"url": "https://127.0.0.1:1/"},
        "rules": [
            {
                "apiGroups": [group],
                "apiVersions": ["*"],
                "operations": list(operations),
                "resources": [resource],
            }
        ],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": place.name}},
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    meta = {"name": f"away-{place.name}"}
    version = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
    }
    api.call("POST", WEBHOOKS, {**version, "metadata": meta, "webhooks": [hook]})
    try:
        yield
    finally:
        api.call("DELETE", f"{WEBHOOKS}/{meta['name']}")


def refused(place: Place) -> dict[str, Any] | None:
    applied = place.condition("Applied")
    return (
        applied
        if applied.get("status") == "False" and "failed calling webhook" in applied["message"]
        else None
    )


def test_a_webhook_that_is_away_is_told_and_the_deployment_goes_on_when_it_is_back(
    api: Api, place: Place
) -> None:
    place.model()
    with webhook_away(api, place, "", "services", "CREATE"):
        place.deploy()
        eventually(lambda: refused(place))
        assert "Service bot was refused" in place.condition("Ready")["message"]
        assert place.events("ApplyFailed")
    place.ready(version="1", seconds=60)


def test_a_budget_that_is_refused_holds_up_no_promotion(api: Api, place: Place) -> None:
    model = place.model()
    place.deploy(replicas=2)
    place.ready(version="1")
    with webhook_away(api, place, "policy", "poddisruptionbudgets", "CREATE", "UPDATE"):
        place.models.promote(model, 2)
        eventually(lambda: place.status()["stable"]["version"] == "2")
        eventually(lambda: refused(place))
    place.ready(version="2", seconds=60)


def test_a_suspension_that_cannot_be_written_is_told_and_written_as_soon_as_it_can(
    api: Api, place: Place
) -> None:
    place.model()
    place.deploy()
    place.ready()
    place.key(deployments=["bot"])
    eventually(lambda: place.condition("Ready", "team", "ApiKey")["status"] == "True")
    with webhook_away(api, place, "", "secrets", "UPDATE"):
        place.key(deployments=["bot"], suspended=True)
        told = eventually(lambda: c if (c := ready(place))["status"] == "False" else None)
        assert told["reason"] == "Delivering"
        assert "failed calling webhook" in told["message"]
        assert not keys(place)["team"]["suspended"], "and that is what the pods hold"
    eventually(lambda: keys(place)["team"]["suspended"])
    eventually(lambda: ready(place)["reason"] == "Suspended")


def test_more_keys_than_a_secret_holds_stop_no_revocation(place: Place) -> None:
    place.model()
    place.deploy()
    place.ready()
    place.key("leaked", deployments=["bot"])
    eventually(lambda: "leaked" in keys(place))
    many = [f"{number:03}" + "a" * 60 for number in range(256)]
    for number in range(72):
        place.key(f"k{number:02}", deployments=["bot"], adapters=many, owner="o" * 256)
    full = eventually(
        lambda: [n for n in range(72) if ready(place, f"k{n:02}").get("reason") == "KeyFileFull"]
    )
    assert len(full) < 20
    assert place.events("KeyFileFull")
    place.key("leaked", deployments=["bot"], suspended=True)
    eventually(lambda: keys(place).get("leaked", {"suspended": True})["suspended"])
    eventually(lambda: ready(place, "leaked")["reason"] == "Suspended")


def test_orphans_are_adopted_and_no_pod_or_key_changes(place: Place) -> None:
    place.model()
    place.deploy()
    place.key(deployments=["bot"])
    before = place.ready()["stable"]["revision"]
    key = eventually(lambda: place.get("Secret", "team-llm-key"))["data"]
    running = sorted(pod["metadata"]["uid"] for pod in place.api.list("Pod", place.name))
    for round_ in ("first", "second", "third"):
        # The operator looks just now. A write of its on its way must not give an orphan its owner
        # back: the garbage collector would delete it.
        place.deploy(labels={"round": round_})
        for kind, name in (("LLMDeployment", "bot"), ("ApiKey", "team")):
            place.api.delete(kind, place.name, name, propagationPolicy="Orphan")
            eventually(lambda kind=kind, name=name: place.get(kind, name) is None)
        place.deploy()
        place.key(deployments=["bot"])
        assert place.ready()["stable"]["revision"] == before
        eventually(lambda: ready(place)["status"] == "True")
        assert (place.get("Secret", "team-llm-key") or {})["data"] == key
        owner = (place.get("LLMDeployment", "bot") or {})["metadata"]["uid"]
        for kind, name in (
            ("Service", "bot"),
            ("Secret", "bot-keys"),
            ("Deployment", f"bot-{before}"),
        ):
            assert (place.get(kind, name) or {})["metadata"]["ownerReferences"][0]["uid"] == owner
    assert sorted(pod["metadata"]["uid"] for pod in place.api.list("Pod", place.name)) == running


def test_a_model_that_is_registered_anew_is_rolled_out_under_the_same_number(place: Place) -> None:
    model = place.model()
    place.deploy()
    before = place.ready()["stable"]["revision"]
    # MLflow refuses it while the operator's verdict is being written to the same rows.
    eventually(lambda: place.models.call("registered-models/delete", "DELETE", name=model) == {})
    place.models.call("registered-models/create", name=model)
    place.models.call("model-versions/create", name=model, source="s3://other/1")
    place.models.promote(model, 1)
    eventually(lambda: place.status()["stable"]["revision"] != before)
    assert place.ready()["stable"]["version"] == "1"
    assert place.events("RegisteredAnew")


def ready(place: Place, name: str = "team") -> dict[str, Any]:
    return place.condition("Ready", name, "ApiKey")


def keys(place: Place) -> dict[str, dict[str, Any]]:
    """By ApiKey: what the pods were given."""
    secret = place.get("Secret", "bot-keys") or {}
    file = json.loads(base64.b64decode(secret["data"]["keys.json"]))
    return {key["name"].partition("/")[2]: key for key in file["keys"]}
