"""Models that are in no registry, by real pods on the process node:
a folder, a claim, a commit of the Hub."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from control_plane.hub import COMMIT, REPOSITORY, TOKEN, hub
from control_plane.operator_fixtures import Place
from devstack.cluster import Cluster
from llm_operator.crds import API_VERSION
from unit.runtime import tiny_model
from unit.runtime.fetching.fakes import safetensors, write_model
from waiting import eventually

pytestmark = [pytest.mark.control_plane, pytest.mark.usefixtures("process_node")]
pytest_plugins = ["control_plane.operator_fixtures"]
LOAD_SECONDS = 120


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.make(tmp_path_factory.mktemp("weights") / "bot")


def deploy(place: Place, name: str, **model: Any) -> None:
    spec: dict[str, Any] = {
        "model": model,
        "engine": {"maxModelLength": 256, "maxBatchSize": 4},
        "access": {"authentication": "Disabled"},
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
        "rollout": {"drainSeconds": 0},
    }
    meta = {"name": name, "namespace": place.name}
    place.api.apply(
        {"apiVersion": API_VERSION, "kind": "LLMDeployment", "metadata": meta, "spec": spec}
    )


def answers(place: Place, name: str) -> bool:
    """Whether its one pod completes a prompt."""
    labels = f"llm-operator.dev/deployment={name}"
    (pod,) = place.api.list("Pod", place.name, labels)
    url = f"http://{pod['status']['podIP']}:8000/v1/completions"
    body = {"model": name, "prompt": "hello", "max_tokens": 4}
    return httpx.post(url, json=body, timeout=30, trust_env=False).is_success


def test_a_folder_and_a_claim_are_served_where_they_lie(
    place: Place, model: Path, cluster: Cluster, request: pytest.FixtureRequest
) -> None:
    cluster.kubectl("apply", "-f", "-", stdin=volume(place, model.parent))
    request.addfinalizer(lambda: cluster.kubectl("delete", "pv", place.name, "--wait=false"))
    deploy(place, "folder", uri=f"file://{model}")
    deploy(place, "claim", uri="pvc://weights/bot")
    for name, uri in (("folder", f"file://{model}"), ("claim", "pvc://weights/bot")):
        status = place.ready(name, seconds=LOAD_SECONDS)
        assert answers(place, name)
        assert (status["model"]["name"], status["model"]["source"]) == ("bot", uri)
        assert "RegistryReachable" not in [each["type"] for each in status["conditions"]]


def volume(place: Place, folder: Path) -> str:
    """A claim whose volume is `folder`."""
    shared = "accessModes: [ReadOnlyMany], storageClassName: ''"
    return f"""
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {place.name}}}
spec:
  {{{shared}, capacity: {{storage: 1Gi}}, hostPath: {{path: {folder}}},
   claimRef: {{namespace: {place.name}, name: weights}}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: weights, namespace: {place.name}}}
spec: {{{shared}, volumeName: {place.name}, resources: {{requests: {{storage: 1Gi}}}}}}
"""


def test_a_commit_is_fetched_with_the_secret_s_environment_and_served_without(
    place: Place, model: Path
) -> None:
    with hub(model, bytes_per_second=1e6) as endpoint:
        variables = {"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN}
        data = {
            name: base64.b64encode(value.encode()).decode() for name, value in variables.items()
        }
        meta = {"name": "hub", "namespace": place.name}
        deploy(
            place, "bot", uri=f"hf://{REPOSITORY}@{COMMIT}", credentialsSecretRef={"name": "hub"}
        )
        told = eventually(
            lambda: (
                c if (c := place.condition("Ready"))["reason"] == "ContainerConfigError" else None
            )
        )
        assert "hub" in told["message"]
        place.api.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data})
        status = place.ready(seconds=LOAD_SECONDS)
    assert (status["model"]["name"], status["stable"]["version"]) == (REPOSITORY, COMMIT[:12])
    assert answers(place, "bot")


def test_what_is_not_there_is_told_by_the_pod(place: Place, tmp_path: Path) -> None:
    deploy(place, "bot", uri=f"file://{tmp_path}/nothing")
    told = eventually(lambda: c if (c := place.condition("Stalled"))["status"] == "True" else None)
    assert (told["reason"], "nothing is not a folder" in told["message"]) == ("ModelNotFound", True)


def test_how_far_a_download_is_moves_in_the_status(place: Place, tmp_path: Path) -> None:
    model = write_model(tmp_path / "bot")
    (model / "model.safetensors").write_bytes(
        safetensors({"a": 40_000_000})
    )  # 40 MB in about 20 s.
    seen: list[str] = []

    def moved() -> bool:
        said = place.condition("Progressing")
        if said["reason"] == "Downloading" and said["message"] not in seen:
            seen.append(said["message"])
        return len(seen) >= 2

    with hub(model, bytes_per_second=2e6) as endpoint:
        variables = {"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN}
        data = {
            name: base64.b64encode(value.encode()).decode() for name, value in variables.items()
        }
        meta = {"name": "hub", "namespace": place.name}
        place.api.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data})
        deploy(
            place, "bot", uri=f"hf://{REPOSITORY}@{COMMIT}", credentialsSecretRef={"name": "hub"}
        )
        eventually(moved)
    assert all(re.search(r"downloading \d+ %, \d[.\d]* MB/s", said) for said in seen), seen
    print(seen)
