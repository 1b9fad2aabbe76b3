"""A name that is taken stops what would use it:
no pod runs under somebody else's account or mounts their Secret."""

from __future__ import annotations

from typing import Any

import pytest

from control_plane.operator_fixtures import Place
from waiting import eventually

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]


def theirs(place: Place, kind: str, name: str) -> dict[str, Any]:
    meta = {"name": name, "namespace": place.name}
    return place.api.apply({"apiVersion": "v1", "kind": kind, "metadata": meta})


@pytest.mark.parametrize(
    ("kind", "name"),
    [("ServiceAccount", "payments"), ("Secret", "payments-keys"), ("Secret", "payments-registry")],
)
def test_a_deployment_named_like_somebody_elses_account_or_secret_gets_no_pod(
    place: Place, kind: str, name: str
) -> None:
    place.model()
    theirs(place, kind, name)
    place.deploy("payments")
    stalled = eventually(
        lambda: c if (c := place.condition("Stalled", "payments"))["status"] == "True" else None
    )
    assert (stalled["reason"], name in stalled["message"]) == ("NameTaken", True)
    assert not place.api.list("Deployment", place.name)
    place.api.delete(kind, place.name, name)
    place.ready("payments")


def test_running_pods_stay_and_no_other_joins_them_once_the_account_is_somebody_elses(
    place: Place,
) -> None:
    place.model()
    place.deploy()
    place.ready()
    (pod,) = place.api.list("Pod", place.name)

    def taken() -> bool:  # A look that had begun before may have put it right again.
        theirs = {"metadata": {"ownerReferences": None, "labels": None}}
        place.api.patch("ServiceAccount", place.name, "bot", theirs)
        return bool(place.condition("Ready")["reason"] == "NameTaken")

    eventually(taken)
    place.deploy(replicas=3)
    wanted = place.api.get("LLMDeployment", place.name, "bot") or {}
    eventually(lambda: place.status()["observedGeneration"] == wanted["metadata"]["generation"])
    assert place.condition("Ready")["reason"] == "NameTaken"
    assert [each["metadata"]["uid"] for each in place.api.list("Pod", place.name)] == [
        pod["metadata"]["uid"]
    ]
