"""ApiKeys on a real API server: issued once,
known to their deployments, gone when they are deleted."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from control_plane.operator_fixtures import Place
from llm_runtime.contract import hash_key, key_id_of
from waiting import eventually

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]


def secret(place: Place, name: str) -> str:
    data = (place.get("Secret", name) or {})["data"]
    return base64.b64decode(data["api-key"]).decode()


def known(place: Place, name: str = "bot") -> dict[str, Any]:
    """The key file that the pods of a deployment mount."""
    data = (place.get("Secret", f"{name}-keys") or {})["data"]
    return dict(json.loads(base64.b64decode(data["keys.json"])))


def nudged(pod: dict[str, Any]) -> bool:
    """Whether the kubelet was told to read the key Secret again."""
    return "llm-operator.dev/keys" in pod["metadata"].get("annotations", {})


def test_a_key_is_issued_and_its_digest_reaches_the_deployment(place: Place) -> None:
    place.model()
    place.deploy()
    place.ready()
    place.key(owner="web@example.com", deployments=["bot"])
    key = eventually(lambda: secret(place, "team-llm-key"))
    file = eventually(lambda: f if (f := known(place))["keys"] else None)
    uid = (place.get("LLMDeployment", "bot") or {})["metadata"]["uid"]
    assert file["salt"] == uid
    assert file["keys"][0]["digest"] == hash_key(key, uid)
    assert file["keys"][0]["owner"] == "web@example.com"
    status = eventually(lambda: place.status("team", "ApiKey"))
    assert status["prefix"] == f"llmk_{key_id_of(key)}"
    assert status["deployments"] == ["bot"]
    assert key not in json.dumps(status)
    eventually(lambda: place.condition("Ready", "team", "ApiKey")["status"] == "True")
    eventually(lambda: all(nudged(pod) for pod in place.api.list("Pod", place.name)))


def test_a_suspended_and_a_deleted_key_leave_at_once(place: Place) -> None:
    place.model()
    place.deploy()
    place.key(deployments=["bot"])
    eventually(lambda: known(place)["keys"])
    place.key(deployments=["bot"], suspended=True)
    eventually(lambda: known(place)["keys"][0]["suspended"])
    place.api.delete("ApiKey", place.name, "team")
    eventually(lambda: known(place)["keys"] == [])
    # The garbage collector learns of a new CRD within 30 s.
    eventually(lambda: place.get("Secret", "team-llm-key") is None)


def test_a_key_for_a_deployment_that_is_not_there_names_it_and_heals(place: Place) -> None:
    place.model()
    place.key(deployments=["bot"])
    ready = eventually(
        lambda: (
            c if (c := place.condition("Ready", "team", "ApiKey"))["status"] == "False" else None
        )
    )
    assert ready["reason"] == "DeploymentNotFound"
    assert "bot" in ready["message"]
    place.deploy()
    eventually(lambda: place.condition("Ready", "team", "ApiKey")["status"] == "True")
    eventually(lambda: known(place)["keys"])


def test_a_selector_chooses_by_labels(place: Place) -> None:
    place.model()
    place.deploy("one", labels={"tier": "gold"})
    place.deploy("two")
    place.key(selector={"matchLabels": {"tier": "gold"}})
    eventually(lambda: known(place, "one")["keys"])
    assert eventually(lambda: known(place, "two"))["keys"] == []
    eventually(lambda: place.status("team", "ApiKey")["deployments"] == ["one"])


def test_a_deleted_secret_means_a_new_key_and_the_old_one_is_void(place: Place) -> None:
    place.model()
    place.deploy()
    place.key(deployments=["bot"])
    first = eventually(lambda: known(place)["keys"])[0]["id"]
    place.api.delete("Secret", place.name, "team-llm-key")
    keys = eventually(lambda: k if (k := known(place)["keys"]) and k[0]["id"] != first else None)
    assert len(keys) == 1
    assert place.events("KeyReissued")


def test_somebody_elses_secret_is_never_overwritten(place: Place) -> None:
    meta = {"name": "taken", "namespace": place.name}
    place.api.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"password": "x"}}
    )
    place.key(secretName="taken", deployments=["bot"])
    stalled = eventually(
        lambda: (
            c if (c := place.condition("Stalled", "team", "ApiKey"))["status"] == "True" else None
        )
    )
    assert stalled["reason"] == "SecretNameTaken"
    assert list((place.get("Secret", "taken") or {})["data"]) == ["password"]


def test_a_renamed_secret_keeps_the_key(place: Place) -> None:
    place.key(deployments=["bot"])
    key = eventually(lambda: secret(place, "team-llm-key"))
    eventually(lambda: place.status("team", "ApiKey")["secretName"] == "team-llm-key")
    place.key(deployments=["bot"], secretName="elsewhere")
    assert eventually(lambda: secret(place, "elsewhere")) == key
    # The garbage collector learns of a new CRD within 30 s.
    eventually(lambda: place.get("Secret", "team-llm-key") is None)
