"""Promotions on a real API server and a real MLflow: noticed by webhook and by poll, approved, told to the registry."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from control_plane.operator_fixtures import Api, Models, Operator, Place, PlayedKubelet, eventually, settings
from devstack.processes import free_port
from devstack.registry import MlflowServer

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]
SECRET = "whsec-of-the-tests"
EVENTS = ("model_version_alias.created", "model_version_alias.deleted", "model_version.created")
POLL_SECONDS = 2.0
Json = dict[str, Any]


@pytest.fixture(scope="module")
def quiet(operator: Operator) -> Iterator[None]:
    """The session's operator stops for a while: here the tests start and end operators themselves."""
    operator.stop()
    yield
    operator.start()


@pytest.fixture(scope="module")
def sending(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    """An MLflow server that may send webhooks to loopback."""
    env = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode(),
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
    }
    server = MlflowServer(tmp_path_factory.mktemp("sending"), env=env)
    server.start()
    yield Models(server)
    server.stop()


@pytest.fixture
def start(quiet: None, account: Path, sending: Models, tmp_path: Path) -> Iterator[Callable[..., Operator]]:
    """Starts operators that share a Lease and a webhook secret; all of them end with the test."""
    (tmp_path / "webhookSecret").write_text(SECRET)
    connections = {"default": {"trackingUri": sending.uri, "credentialsFolder": str(tmp_path)}}
    started: list[Operator] = []

    def begin(**more: Any) -> Operator:
        chosen = settings(sending, connections=connections, webhookPort=free_port(), **more)
        operator = Operator(tmp_path, account, chosen, f"operator-{len(started)}")
        operator.start()
        started.append(operator)
        return operator

    yield begin
    for operator in started:
        if operator.process is not None and operator.process.poll() is None:
            operator.stop()
        assert "unexpected" not in operator.log.read_text()


@pytest.fixture
def spot(api: Api, kubelet: PlayedKubelet, sending: Models) -> Iterator[Place]:
    """A fresh namespace whose models are on the server that sends webhooks."""
    name = f"t{time.time_ns() % 10**12}"
    meta = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    api.call("POST", "/api/v1/namespaces", meta)
    yield Place(api, name, kubelet, sending)
    api.call("DELETE", f"/api/v1/namespaces/{name}")


def subscribe(models: Models, operator: Operator) -> str:
    """What docs/promotion.md says; returns the webhook's id."""
    url = f"http://127.0.0.1:{operator.settings['webhookPort']}/webhooks/mlflow/default"
    events = [{"entity": e.partition(".")[0].upper(), "action": e.partition(".")[2].upper()} for e in EVENTS]
    body = {"name": "llm-operator", "url": url, "events": events, "secret": SECRET, "status": "ACTIVE"}
    answer = httpx.post(f"{models.uri}/api/2.0/mlflow/webhooks", json=body, timeout=20, trust_env=False)
    assert answer.status_code == 200, answer.text
    time.sleep(1.2)  # The server keeps its list of webhooks for so long (MLFLOW_WEBHOOK_CACHE_TTL).
    return str(answer.json()["webhook"]["webhook_id"])


def unsubscribe(models: Models, webhook: str) -> None:
    httpx.delete(f"{models.uri}/api/2.0/mlflow/webhooks/{webhook}", timeout=20, trust_env=False).raise_for_status()


def until_candidate(place: Place, model: str, version: int) -> float:
    """Seconds from moving the alias to the candidate's Deployment."""

    def versions() -> set[str]:
        maps = place.api.list("ConfigMap", place.name, "llm-operator.dev/deployment=bot")
        made = {d["metadata"]["name"] for d in place.api.list("Deployment", place.name)}
        configs = [json.loads(m["data"]["config.json"]) for m in maps if m["metadata"]["name"] in made]
        return {config["model"]["mlflow"]["version"] for config in configs}

    started = time.monotonic()
    place.models.promote(model, version)
    eventually(lambda: str(version) in versions(), 40)
    return time.monotonic() - started


def post(operator: Operator, secret: str = SECRET, connection: str = "default") -> int:
    """A delivery by hand."""
    stamp, delivery, body = str(int(time.time())), str(time.time_ns()), b'{"data": {"name": "any"}}'
    signature = hmac.digest(secret.encode(), f"{delivery}.{stamp}.".encode() + body, hashlib.sha256)
    headers = {
        "X-MLflow-Delivery-Id": delivery,
        "X-MLflow-Timestamp": stamp,
        "X-MLflow-Signature": f"v1,{base64.b64encode(signature).decode()}",
    }
    url = f"http://127.0.0.1:{operator.settings['webhookPort']}/webhooks/mlflow/{connection}"
    return httpx.post(url, content=body, headers=headers, timeout=5, trust_env=False).status_code


def tags(place: Place, model: str, version: int) -> dict[str, str]:
    found = place.models.call(f"model-versions/get?name={model}&version={version}", "GET")["model_version"]
    prefix = f"llm-operator.{place.name}.bot."
    return {t["key"].removeprefix(prefix): t["value"] for t in found.get("tags", []) if t["key"].startswith(prefix)}


@pytest.mark.timeout(180)
def test_a_webhook_of_mlflow_starts_the_rollout_within_two_seconds(start: Callable[..., Operator], spot: Place) -> None:
    operator = start(pollSeconds=600)
    model = spot.model(versions=5)
    spot.deploy()
    spot.ready(version="1")
    webhook = subscribe(spot.models, operator)
    try:
        taken = []
        for version in range(2, 6):
            taken.append(until_candidate(spot, model, version))
            spot.ready(version=str(version))
    finally:
        unsubscribe(spot.models, webhook)
    print("alias moved → candidate, by webhook:", ", ".join(f"{seconds:.2f} s" for seconds in taken))
    assert sorted(taken)[len(taken) // 2] <= 2
    assert 'llm_operator_webhooks_total{connection="default",status="202"}' in (operator.answers("/metrics") or "")


@pytest.mark.timeout(120)
def test_without_a_webhook_the_poll_starts_it_within_an_interval(start: Callable[..., Operator], spot: Place) -> None:
    start(pollSeconds=POLL_SECONDS)
    model = spot.model(versions=4)
    spot.deploy()
    spot.ready(version="1")
    taken = []
    for version in range(2, 5):
        taken.append(until_candidate(spot, model, version))
        spot.ready(version=str(version))
    print(f"alias moved → candidate, poll of {POLL_SECONDS} s:", ", ".join(f"{seconds:.2f} s" for seconds in taken))
    assert sorted(taken)[1] <= POLL_SECONDS + 1


@pytest.mark.timeout(120)
def test_strangers_and_replays_are_refused_and_wake_nobody(start: Callable[..., Operator], spot: Place) -> None:
    operator = start(pollSeconds=600)
    eventually(lambda: post(operator) == 202)
    assert post(operator, secret="guessed") == 401
    assert post(operator, connection="unheard-of") == 404
    assert "llm_operator_webhooks_total" in (operator.answers("/metrics") or "")


@pytest.mark.timeout(120)
def test_verdicts_are_tags_in_mlflow(start: Callable[..., Operator], spot: Place) -> None:
    start(pollSeconds=0.5)
    model = spot.model(versions=3)
    spot.deploy()
    revision = spot.ready(version="1")["stable"]["revision"]
    eventually(lambda: tags(spot, model, 1).get("verdict") == "Promoted")
    assert tags(spot, model, 1)["revision"] == revision
    ended = {"exitCode": 1, "reason": "Error", "message": '{"reason": "ModelCorrupt", "message": "12 bytes short"}\n'}
    spot.kubelet.fate[spot.name, "2"] = {
        "initContainerStatuses": [
            {
                "name": "fetch",
                "image": "x",
                "imageID": "",
                "ready": False,
                "restartCount": 1,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
                "lastState": {"terminated": {**ended, "startedAt": None, "finishedAt": None}},
            }
        ]
    }
    spot.models.promote(model, 2)
    told = eventually(lambda: t if (t := tags(spot, model, 2)).get("verdict") else None)
    assert told["verdict"] == "Failed"
    assert "12 bytes short" in told["message"]
    assert tags(spot, model, 1)["verdict"] == "Promoted"
    spot.models.promote(model, 3)
    spot.ready(version="3")
    eventually(lambda: tags(spot, model, 3).get("verdict") == "Promoted")


@pytest.mark.timeout(120)
def test_manual_waits_for_the_annotation(start: Callable[..., Operator], spot: Place) -> None:
    start(pollSeconds=0.5)
    model = spot.model(versions=3)
    spot.deploy(mlflow={"name": model, "alias": "champion", "updatePolicy": "Manual"})
    spot.ready(version="1")
    spot.models.promote(model, 2)
    told = eventually(lambda: c if (c := spot.condition("UpdateAvailable"))["status"] == "True" else None)
    assert spot.status()["model"]["available"]["version"] == "2"
    assert spot.ready(version="1")
    assert spot.events("UpdateAvailable")
    command = told["message"].partition("kubectl ")[2].split()
    name, _, version = command[-1].partition("=")
    change = {"metadata": {"annotations": {name: version}}}
    spot.api.patch("LLMDeployment", spot.name, "bot", change)
    assert "available" not in spot.ready(version="2")["model"]
    eventually(lambda: spot.condition("UpdateAvailable")["reason"] == "UpToDate")


@pytest.mark.timeout(180)
def test_only_the_leader_works_and_another_takes_over_without_touching_a_pod(
    start: Callable[..., Operator], spot: Place
) -> None:
    leader = start(pollSeconds=0.5)
    model = spot.model(versions=3)
    spot.deploy(replicas=2)
    spot.ready(version="1")
    second = start(pollSeconds=0.5)
    assert (post(leader), post(second)) == (202, 503)
    assert "llm_operator_leader 0.0" in (second.answers("/metrics") or "")
    pods = {pod["metadata"]["uid"] for pod in spot.api.list("Pod", spot.name)}
    leader.stop(signal.SIGKILL)
    spot.models.promote(model, 2)
    assert {pod["metadata"]["uid"] for pod in spot.api.list("Pod", spot.name)} == pods
    died = time.monotonic()
    eventually(lambda: post(second) == 202, 15)
    taken = time.monotonic() - died
    print(f"leader killed → the other leads: {taken:.1f} s (Lease of 3 s)")
    assert taken <= 3 + 2
    spot.ready(version="2")
    assert "llm_operator_leader 1.0" in (second.answers("/metrics") or "")
