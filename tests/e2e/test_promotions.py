"""Promotions under a constant load of streams: every strategy,
and the way back from versions that do not deserve it.

The tests share one LLMDeployment with two pods and run in order. Nobody who asks may notice: no
request fails, none is cut.
"""

import base64
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest

from devstack.load import RequestLoop, Tally
from devstack.registry import push, set_alias
from devstack.stack import Stack
from e2e.reference import greedy
from e2e.world import World
from unit.runtime import tiny_model

pytestmark = pytest.mark.e2e

NAME = "promo"
PROMPT = "hello world"
HOLD_SECONDS = 6
GONE_SECONDS = 35
"""Ten seconds, and what a pod takes to end: preStop and its drain."""
DEPLOYMENT = f"""
apiVersion: llm-operator.dev/v1alpha1
kind: LLMDeployment
metadata: {{name: {NAME}}}
spec:
  model: {{mlflow: {{name: {NAME}, alias: champion}}}}
  engine: {{maxModelLength: 256, maxBatchSize: 32}}
  access: {{tiers: [{{name: standard, maxConcurrent: 64}}]}}
  replicas: 2
  resources: {{requests: {{cpu: 100m, memory: 256Mi}}}}
  rollout:
    drainSeconds: 20
    progressDeadlineSeconds: 120
    gates: [{{smokePrompts: {{configMap: {NAME}-smoke}}}}]
---
apiVersion: llm-operator.dev/v1alpha1
kind: ApiKey
metadata: {{name: {NAME}-team}}
spec: {{owner: team@example.com, deployments: [{NAME}]}}
"""


@pytest.fixture(scope="module")
def versions(
    stack: Stack, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Registered versions by what they are:
    two as they should be, one that answers wrong, one that is slow."""
    folder = tmp_path_factory.mktemp("versions")
    wrong = tiny_model.make(folder / "wrong", seed=7)
    slow = tiny_model.make(folder / "slow", seed=8, layers=64)
    folders = {"first": models["first"], "second": models["second"], "wrong": wrong, "slow": slow}
    return {name: push(stack.mlflow.uri, NAME, folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def promo(world: World, models: dict[str, Path], versions: dict[str, str]) -> Iterator["Promo"]:
    """Version 1 serves with two pods."""
    said = f"<|user|>{PROMPT}<|end|><|assistant|>"  # As the chat template writes it.
    wanted = "|".join(re.escape(greedy(models[name], said, 8)) for name in ("first", "second"))
    smoke = {"prompt": PROMPT, "maxTokens": 8, "expect": {"regex": f"^({wanted})$"}}
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{NAME}-smoke"},
        "data": {"greeting": json.dumps(smoke)},
    }
    set_alias(world.stack.mlflow.uri, NAME, "champion", versions["first"])
    world.kubectl("apply", "-f", "-", stdin=json.dumps(config_map))
    world.kubectl("apply", "-f", "-", stdin=DEPLOYMENT)
    world.kubectl("wait", f"llmd/{NAME}", "--for=condition=Ready", "--timeout=180s")
    world.kubectl("wait", f"llmkey/{NAME}-team", "--for=condition=Ready", "--timeout=60s")
    yield Promo(world, versions)
    world.kubectl("delete", f"llmd/{NAME}", f"llmkey/{NAME}-team", f"configmap/{NAME}-smoke")


class Promo:
    """The deployment, its versions and its load."""

    def __init__(self, world: World, versions: dict[str, str]) -> None:
        self.world = world
        self.versions = versions

    @property
    def status(self) -> dict[str, Any]:
        return self.world.llmd(NAME)["status"]

    def serves(self, version: str) -> bool:
        stable = self.status.get("stable", {}).get("version") == self.versions[version]
        return stable and self.world.condition("Ready", NAME)["status"] == "True"

    def promote(self, version: str) -> float:
        set_alias(self.world.stack.mlflow.uri, NAME, "champion", self.versions[version])
        return time.monotonic()

    def rollout(self, **fields: Any) -> None:
        """Choose how, once what was before has ended:
        pods that still ran would only be taken back into service."""
        stable = self.status["stable"]["revision"]
        self.world.until(
            lambda: not pods_of(self, stable, "!="), "the pods of other revisions to end"
        )
        self.world.kubectl(
            "patch", "llmd", NAME, "--type=merge", "-p", json.dumps({"spec": {"rollout": fields}})
        )

    def key(self) -> str:
        secret = self.world.stack.get("secret", f"{NAME}-team-llm-key")
        return base64.b64decode(secret["data"]["api-key"]).decode()

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key()}"}

    @contextmanager
    def load(self, clients: int = 4) -> Iterator[Tally]:
        """Requests all the time, every other one a stream of about a second;
        none may fail or be cut."""
        url = self.world.stack.service_url(NAME)
        loop = RequestLoop(
            url, self.key(), NAME, PROMPT, clients, max_tokens=150, pause_seconds=0.3
        ).start()
        try:
            self.world.until(lambda: loop.tally.requests >= 2 * clients, "requests before")
            yield loop.tally
            before = loop.tally.requests
            self.world.until(
                lambda: loop.tally.requests >= before + 2 * clients, "requests afterwards"
            )
        finally:
            tally = loop.stop()
        assert tally.failures == []

    def answers_of_both(self, tally: Tally) -> None:
        """Not before long, perhaps: a client that keeps its connection stays with its pod until
        that pod leaves."""
        self.world.until(lambda: len(tally.answers) == 2, "an answer of each version")


def test_blue_green_switches_without_a_failed_or_cut_request(promo: Promo) -> None:
    promo.rollout(strategy="BlueGreen")
    with promo.load() as tally:
        began = promo.promote("second")
        promo.world.until(lambda: promo.serves("second"), "the second version")
        seconds = time.monotonic() - began
        promo.answers_of_both(tally)
    print(
        f"blue-green: {seconds:.1f} s from the alias to the new version, {tally.requests} requests,"
        " 0 failed"
    )


def test_canary_walks_its_steps_without_a_failed_or_cut_request(promo: Promo) -> None:
    steps = [
        {"weight": 34, "holdSeconds": HOLD_SECONDS},
        {"weight": 50, "holdSeconds": HOLD_SECONDS},
    ]
    promo.rollout(strategy="Canary", canary={"steps": steps})
    with promo.load() as tally:
        promo.promote("first")
        promo.world.until(
            lambda: (promo.status.get("candidate") or {}).get("weight") == 34, "the first step"
        )
        promo.world.until(lambda: promo.serves("first"), "the first version")
        promo.answers_of_both(tally)
    print(f"canary: {tally.requests} requests, 0 failed")


def test_rolling_replaces_pod_by_pod_without_a_failed_or_cut_request(promo: Promo) -> None:
    promo.rollout(strategy="Rolling")
    with promo.load() as tally:
        promo.promote("second")
        promo.world.until(lambda: promo.serves("second"), "the second version")
        promo.answers_of_both(tally)
    print(f"rolling: {tally.requests} requests, 0 failed")


@pytest.mark.parametrize("strategy", ["BlueGreen", "Canary", "Rolling"])
def test_a_version_that_answers_wrong_gets_no_traffic_and_is_taken_back(
    promo: Promo, strategy: str
) -> None:
    promo.rollout(strategy=strategy)
    try:
        with promo.load() as tally:
            promo.promote("wrong")
            promo.world.until(lambda: gate_failed(promo, "wrong"), "the gate to fail")
            failed = time.monotonic()
            candidate = promo.status["candidate"]["revision"]
            promo.world.until(lambda: not pods_of(promo, candidate), "its pods to go")
            gone = time.monotonic() - failed
        assert len(tally.answers) == 1, "no client saw the wrong version"
        assert gone <= GONE_SECONDS
        promo.world.until(
            lambda: verdict(promo, "wrong").startswith("Failed: "), "the verdict in MLflow"
        )
        assert promo.world.condition("Available", NAME)["status"] == "True"
        print(f"{strategy}: taken back, its pods gone {gone:.1f} s after the gate failed")
    finally:
        promo.promote("second")
        promo.world.until(lambda: promo.serves("second"), "the way back")


def test_a_version_whose_answers_to_copies_differ_gets_no_traffic_and_is_taken_back(
    promo: Promo,
) -> None:
    gate = {"shadowAgreement": {"minExact": 0.9}, "minRequests": 20}
    stable = next(name for name in promo.versions if promo.serves(name))
    promo.rollout(strategy="BlueGreen", shadow={"holdSeconds": 120}, gates=[gate])
    try:
        with promo.load() as tally:
            before = tally.requests
            promo.promote("wrong")
            promo.world.until(lambda: gate_failed(promo, "wrong"), "the gate to fail")
            candidate = promo.status["candidate"]
            asked = tally.requests - before
        assert len(tally.answers) == 1, "no client saw the wrong version"
        assert "trafficSince" not in candidate
        print(f"shadow: taken back after {asked} requests: {candidate['message']}")
    finally:
        promo.promote(stable)
        promo.world.until(lambda: promo.serves(stable), "the way back")
        promo.rollout(shadow=None, gates=[{"smokePrompts": {"configMap": f"{NAME}-smoke"}}])


@pytest.mark.parametrize(("strategy", "weight"), [("Canary", 34), ("BlueGreen", 100)])
def test_a_slow_version_never_gets_more_than_its_weight_and_is_taken_back(
    promo: Promo, strategy: str, weight: int
) -> None:
    gates = [{"maxInterTokenP95Ratio": 1.5, "minRequests": 100}]
    promo.rollout(
        strategy=strategy, canary={"steps": [{"weight": 34, "holdSeconds": 60}]}, gates=gates
    )
    try:
        with promo.load() as tally:
            known = set(tally.answers)
            promo.promote("slow")
            promo.world.until(
                lambda: (promo.status.get("candidate") or {}).get("weight") == weight, "its traffic"
            )
            before = tally.requests
            began = time.monotonic()
            promo.world.until(lambda: gate_failed(promo, "slow"), "the gate to fail")
            failed = time.monotonic()
            candidate = promo.status["candidate"]
            promo.world.until(lambda: not pods_of(promo, candidate["revision"]), "its pods to go")
            gone = time.monotonic() - failed
            during = tally.requests - before
        slow = sum(count for answer, count in tally.answers.items() if answer not in known)
        assert 0 < slow <= weight / 100 * during + 1, tally.answers
        assert "maxInterTokenP95Ratio" in candidate["message"]
        assert promo.world.condition("Available", NAME)["status"] == "True"
        print(
            f"{strategy}, slow: {slow} of {during} requests went to it; judged {failed - began:.1f}"
            f" s after it got traffic, its pods gone {gone:.1f} s later: {candidate['message']}"
        )
    finally:
        promo.promote("second")
        promo.world.until(lambda: promo.serves("second"), "the way back")


def test_without_load_the_new_version_answers_soon(promo: Promo) -> None:
    promo.rollout(strategy="BlueGreen", gates=None)
    coming = "first" if promo.serves("second") else "second"
    client = httpx.Client(
        base_url=promo.world.stack.service_url(NAME), headers=promo.headers(), trust_env=False
    )
    with client:
        assert answered_by(client) != promo.versions[coming]
        began = promo.promote(coming)
        promo.world.until(
            lambda: answered_by(client) == promo.versions[coming], "an answer of the new version"
        )
        print(
            f"without load: {time.monotonic() - began:.1f} s from the alias to an answer of the new"
            " version, two pods"
        )
    promo.world.until(lambda: promo.serves(coming), "the roll-out's end")


def answered_by(client: httpx.Client) -> str:
    # A connection each: one that is kept stays with its pod.
    headers = {"Connection": "close"}
    answer = client.post("/predict", json={"prompt": PROMPT, "max_length": 4}, headers=headers)
    return str(answer.raise_for_status().json()["model_version"])


def gate_failed(promo: Promo, version: str) -> bool:
    candidate = promo.status.get("candidate") or {}
    return (
        candidate.get("version") == promo.versions[version]
        and candidate.get("reason") == "GateFailed"
    )


def pods_of(promo: Promo, revision: str, equals: str = "=") -> str:
    chosen = f"llm-operator.dev/deployment={NAME},llm-operator.dev/revision{equals}{revision}"
    return promo.world.kubectl("get", "pods", "-l", chosen, "-o", "name")


def verdict(promo: Promo, version: str) -> str:
    client = mlflow.MlflowClient(promo.world.stack.mlflow.uri)
    found: dict[str, str] = client.get_model_version(NAME, promo.versions[version]).tags
    return found.get(f"default/{NAME}", "")
