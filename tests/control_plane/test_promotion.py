"""Promotions on a real API server and a real MLflow:
noticed by webhook and by poll, approved, told to the registry."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from control_plane.operator_fixtures import SHORT_LEASE, Models, Operator, Place, settings
from devstack.ports import free_port
from llm_operator import webhooks
from llm_operator.settings import ConnectionSettings
from secrets_told import invented
from unit.operator.fakes import FixedConnections
from waiting import eventually

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]
SECRET = invented("webhook")
EVENTS = ("model_version_alias.created", "model_version_alias.deleted", "model_version.created")
POLL_SECONDS = 2.0
Json = dict[str, Any]


@pytest.fixture
def start(
    place: Place, quiet: None, account: Path, models: Models, tmp_path: Path
) -> Iterator[Callable[..., Operator]]:
    """Starts operators that share a Lease and a webhook secret; all of them end with the test."""
    (tmp_path / "webhookSecret").write_text(SECRET)
    connections = {"default": {"trackingUri": models.uri, "credentialsFolder": str(tmp_path)}}
    started: list[Operator] = []

    def begin(**more: Any) -> Operator:
        chosen = settings(models, connections=connections, webhookPort=free_port(), **more)
        operator = Operator(tmp_path, account, chosen, f"operator-{len(started)}")
        operator.start()
        started.append(operator)
        return operator

    yield begin
    for operator in started:
        if operator.process is not None and operator.process.poll() is None:
            operator.stop()
        assert "unexpected" not in operator.log.read_text()


def subscribe(models: Models, port: int) -> str:
    """What docs/promotion.md says; returns the webhook's id."""
    url = f"http://127.0.0.1:{port}/webhooks/mlflow/default"
    events = [
        {"entity": e.partition(".")[0].upper(), "action": e.partition(".")[2].upper()}
        for e in EVENTS
    ]
    body = {
        "name": "llm-operator",
        "url": url,
        "events": events,
        "secret": SECRET,
        "status": "ACTIVE",
    }
    answer = httpx.post(
        f"{models.uri}/api/2.0/mlflow/webhooks", json=body, timeout=20, trust_env=False
    )
    assert answer.status_code == 200, answer.text
    time.sleep(1.2)  # The server keeps its list of webhooks for so long (MLFLOW_WEBHOOK_CACHE_TTL).
    return str(answer.json()["webhook"]["webhook_id"])


def unsubscribe(models: Models, webhook: str) -> None:
    httpx.delete(
        f"{models.uri}/api/2.0/mlflow/webhooks/{webhook}", timeout=20, trust_env=False
    ).raise_for_status()


def until_candidate(place: Place, model: str, version: int) -> float:
    """Seconds from moving the alias to the candidate's Deployment."""

    def versions() -> set[str]:
        maps = place.api.list("ConfigMap", place.name, "llm-operator.dev/deployment=bot")
        made = {d["metadata"]["name"] for d in place.api.list("Deployment", place.name)}
        configs = [
            json.loads(m["data"]["config.json"]) for m in maps if m["metadata"]["name"] in made
        ]
        return {config["model"]["mlflow"]["version"] for config in configs}

    started = time.monotonic()
    place.models.promote(model, version)
    eventually(lambda: str(version) in versions())
    return time.monotonic() - started


def post(operator: Operator, secret: str = SECRET, connection: str = "default") -> int:
    """A delivery by hand."""
    stamp = str(int(time.time()))
    delivery = str(time.time_ns())
    body = b'{"data": {"name": "any"}}'
    signature = hmac.digest(secret.encode(), f"{delivery}.{stamp}.".encode() + body, hashlib.sha256)
    headers = {
        "X-MLflow-Delivery-Id": delivery,
        "X-MLflow-Timestamp": stamp,
        "X-MLflow-Signature": f"v1,{base64.b64encode(signature).decode()}",
    }
    url = f"http://127.0.0.1:{operator.settings['webhookPort']}/webhooks/mlflow/{connection}"
    return httpx.post(url, content=body, headers=headers, timeout=5, trust_env=False).status_code


def handled(operator: Operator, status: int) -> int:
    """Deliveries that an operator answered with this status."""
    line = f'llm_operator_webhooks_total{{connection="default",status="{status}"}} '
    found = [
        row for row in (operator.answers("/metrics") or "").splitlines() if row.startswith(line)
    ]
    return int(float(found[0].split()[-1])) if found else 0


def tags(place: Place, model: str, version: int) -> dict[str, str]:
    found = place.models.call(f"model-versions/get?name={model}&version={version}", "GET")[
        "model_version"
    ]
    return {tag["key"]: tag["value"] for tag in found.get("tags", [])}


def verdict(place: Place, model: str, version: int) -> str:
    return tags(place, model, version).get(f"{place.name}/bot", "")


def test_a_webhook_of_mlflow_starts_the_rollout_long_before_the_next_poll(
    start: Callable[..., Operator], place: Place
) -> None:
    operator = start(pollSeconds=600)
    model = place.model(versions=5)
    place.deploy()
    place.ready(version="1")
    webhook = subscribe(place.models, operator.settings["webhookPort"])
    try:
        taken = []
        for version in range(2, 6):
            taken.append(until_candidate(place, model, version))
            place.ready(version=str(version))
    finally:
        unsubscribe(place.models, webhook)
    print(
        "alias moved → candidate, by webhook:", ", ".join(f"{seconds:.2f} s" for seconds in taken)
    )
    assert handled(operator, 202) >= 4


async def test_mlflow_sends_again_what_a_stand_by_could_not_hand_on(
    models: Models, tmp_path: Path
) -> None:
    (tmp_path / "webhookSecret").write_text(SECRET)
    known = FixedConnections()
    known.known["default"] = ConnectionSettings(
        tracking_uri=models.uri, credentials_folder=tmp_path
    )
    attempts: list[float] = []
    woken: list[str | None] = []

    def nobody_leads_yet() -> str:
        attempts.append(time.monotonic())
        if len(attempts) == 2:
            receiver.wake = lambda _, model: woken.append(model)
        return ""

    receiver = webhooks.Receiver(known, leader=nobody_leads_yet)
    runner = await webhooks.serve(receiver, "127.0.0.1", 0)
    webhook = await asyncio.to_thread(subscribe, models, runner.addresses[0][1])
    try:
        tested = await asyncio.to_thread(models.call, f"webhooks/{webhook}/test", "POST")
    finally:
        await asyncio.to_thread(unsubscribe, models, webhook)
        await runner.cleanup()
    assert tested["result"]["response_status"] == 202
    assert woken == ["example_model"]
    assert attempts[1] - attempts[0] >= 0.9


def test_without_a_webhook_the_poll_starts_it(start: Callable[..., Operator], place: Place) -> None:
    start(pollSeconds=POLL_SECONDS)
    model = place.model(versions=4)
    place.deploy()
    place.ready(version="1")
    taken = []
    for version in range(2, 5):
        taken.append(until_candidate(place, model, version))
        place.ready(version=str(version))
    print(
        f"alias moved → candidate, poll of {POLL_SECONDS} s:",
        ", ".join(f"{seconds:.2f} s" for seconds in taken),
    )


def test_strangers_and_replays_are_refused_and_wake_nobody(
    start: Callable[..., Operator], place: Place
) -> None:
    operator = start(pollSeconds=600)
    eventually(lambda: post(operator) == 202)
    assert post(operator, secret="guessed") == 401
    assert post(operator, connection="unheard-of") == 404
    assert handled(operator, 401) == 1


def test_verdicts_are_tags_in_mlflow(start: Callable[..., Operator], place: Place) -> None:
    start(pollSeconds=0.5)
    model = place.model(versions=3)
    place.deploy()
    former = f"llm-operator.{place.name}.bot.verdict"  # As an earlier release told it.
    place.models.call(
        "model-versions/set-tag", name=model, version="2", key=former, value="Promoted"
    )
    revision = place.ready(version="1")["stable"]["revision"]
    eventually(lambda: verdict(place, model, 1).startswith(f"Promoted (revision {revision}, "))
    ended = {
        "exitCode": 1,
        "reason": "Error",
        "message": '{"reason": "ModelCorrupt", "message": "12 bytes short"}\n',
    }
    place.kubelet.fate[place.name, "2"] = {
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
    place.models.promote(model, 2)
    told = eventually(lambda: verdict(place, model, 2))
    assert told.startswith("Failed: ModelCorrupt: 12 bytes short (revision ")
    assert " | Promoted (" in told
    eventually(lambda: former not in tags(place, model, 2))
    assert verdict(place, model, 1).startswith("Promoted")
    place.models.promote(model, 3)
    place.ready(version="3")
    eventually(lambda: verdict(place, model, 3).startswith("Promoted"))
    note = {"metadata": {"annotations": {"llm-operator.dev/rollback-to": revision}}}
    place.api.patch("LLMDeployment", place.name, "bot", note)
    eventually(
        lambda: verdict(place, model, 3).startswith(
            f"RolledBack: by revision {revision}, as the annotation"
        )
    )
    assert " | Promoted (" in verdict(place, model, 3)
    assert place.status()["history"][0]["outcome"] == "RolledBack"
    place.api.delete("LLMDeployment", place.name, "bot")
    eventually(lambda: not any(tags(place, model, version) for version in (1, 2, 3)))


def test_manual_waits_for_the_annotation(start: Callable[..., Operator], place: Place) -> None:
    start(pollSeconds=0.5)
    model = place.model(versions=3)
    place.deploy(mlflow={"name": model, "alias": "champion", "updatePolicy": "Manual"})
    place.ready(version="1")
    place.models.promote(model, 2)
    told = eventually(
        lambda: c if (c := place.condition("UpdateAvailable"))["status"] == "True" else None
    )
    assert place.status()["model"]["available"]["version"] == "2"
    assert place.ready(version="1")
    assert place.events("UpdateAvailable")
    command = told["message"].partition("kubectl ")[2].split()
    name, _, version = command[-1].partition("=")
    change = {"metadata": {"annotations": {name: version}}}
    place.api.patch("LLMDeployment", place.name, "bot", change)
    assert "available" not in place.ready(version="2")["model"]
    eventually(lambda: place.condition("UpdateAvailable")["reason"] == "UpToDate")


def test_only_the_leader_works_and_another_takes_over_without_touching_a_pod(
    start: Callable[..., Operator], place: Place
) -> None:
    leader = start(pollSeconds=0.5, lease=SHORT_LEASE)
    model = place.model(versions=3)
    place.deploy(replicas=2)
    place.ready(version="1")
    second = start(pollSeconds=0.5, lease=SHORT_LEASE)
    assert post(leader) == 202
    eventually(lambda: post(second) == 202)
    assert handled(second, 202) == 1
    assert handled(leader, 202) == 2
    assert "llm_operator_leader 0.0" in (second.answers("/metrics") or "")
    pods = {pod["metadata"]["uid"] for pod in place.api.list("Pod", place.name)}
    leader.stop(signal.SIGKILL)
    place.models.promote(model, 2)
    assert {pod["metadata"]["uid"] for pod in place.api.list("Pod", place.name)} == pods
    died = time.monotonic()
    assert post(second) == 503
    eventually(lambda: post(second) == 202)
    taken = time.monotonic() - died
    print(f"leader killed → the other leads: {taken:.1f} s (Lease of 3 s)")
    place.ready(version="2")
    assert "llm_operator_leader 1.0" in (second.answers("/metrics") or "")
