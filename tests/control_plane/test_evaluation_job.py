"""The Job of an evaluation on a real API server, under the chart's roles:
made, read, and deleted with its roll-out."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from control_plane.operator_fixtures import Json, Place
from llm_operator.evaluation import task
from llm_operator.plans.names import DEPLOYMENT_LABEL
from llm_operator.state import Estimate, EvaluationOutcome, Pods
from waiting import eventually

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]
OWN = "llm-operator-system"
WORSE = EvaluationOutcome(
    score=Estimate(0.9, 0.84, 0.94), drop=Estimate(0.1, 0.05, 0.17), samples=200
)


def job_of(place: Place) -> Json:
    [found] = [
        job
        for job in place.api.list("Job", OWN)
        if job["metadata"]["annotations"].get(DEPLOYMENT_LABEL) == f"{place.name}/bot"
    ]
    return found


def has_address(place: Place, version: str, address: str) -> None:
    conditions = [
        {"type": kind, "status": "True"} for kind in ("PodScheduled", "Ready", "ContainersReady")
    ]
    status = {
        "phase": "Running",
        "conditions": conditions,
        "podIP": address,
        "podIPs": [{"ip": address}],
    }
    place.kubelet.fate[place.name, version] = status


def report(place: Place, job: Json, message: str) -> None:
    """The Job's pod, which no node runs here, ends with this message."""
    label = f"batch.kubernetes.io/job-name={job['metadata']['name']}"
    [pod] = eventually(lambda: place.api.list("Pod", OWN, label))
    ended = {
        "exitCode": 0,
        "message": message,
        "startedAt": None,
        "finishedAt": "2026-01-01T00:00:00Z",
    }
    container = {
        "name": "evaluation",
        "image": "x",
        "imageID": "x",
        "ready": False,
        "restartCount": 0,
    }
    status: dict[str, Any] = {
        "phase": "Succeeded", "containerStatuses": [{**container, "state": {"terminated": ended}}],
    }  # fmt: skip
    place.api.patch("Pod", OWN, pod["metadata"]["name"], {"status": status}, "/status")


def asked(place: Place, job: Json) -> Pods:
    """Whom the Job is told to ask."""
    secret = place.api.get("Secret", OWN, job["metadata"]["name"])
    assert secret is not None
    return task.pods_from_json(base64.b64decode(secret["data"]["pods.json"]).decode())


def test_a_worse_version_is_refused_before_any_traffic_and_leaves_no_job(place: Place) -> None:
    place.model()
    has_address(place, "1", "127.77.9.1")
    has_address(place, "2", "127.77.9.2")
    place.deploy()
    place.ready(version="1")
    evaluation = {"dataset": "golden", "scorers": [{"type": "Exact"}], "maxDropVsStable": 0.02}
    place.deploy(rollout={"gates": [{"evaluation": evaluation}]})
    place.models.promote(f"{place.name}-model", 2)
    job = eventually(lambda: job_of(place))
    eventually(lambda: place.api.get("Secret", OWN, job["metadata"]["name"]))
    assert asked(place, job) == Pods(("127.77.9.2",), ("127.77.9.1",))
    has_address(place, "2", "127.77.9.3")
    [pod] = [
        name
        for pod in place.api.list("Pod", place.name)
        if place.status()["candidate"]["revision"] in (name := pod["metadata"]["name"])
    ]
    place.api.delete("Pod", place.name, pod)
    eventually(lambda: asked(place, job) == Pods(("127.77.9.3",), ("127.77.9.1",)))
    report(place, job, task.report(WORSE))
    failed = eventually(
        lambda: (place.status()["candidate"].get("outcome") and place.status()["candidate"]) or None
    )
    assert failed["reason"] == "GateFailed"
    assert "evaluation golden is 0.1 (between 0.05 and 0.17), allowed is 0.02" in failed["message"]
    assert "trafficSince" not in failed
    assert place.status()["stable"]["version"] == "1"
    eventually(lambda: place.api.get("Job", OWN, job["metadata"]["name"]) is None)
    eventually(lambda: place.api.get("Secret", OWN, job["metadata"]["name"]) is None)
