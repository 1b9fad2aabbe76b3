"""Promotions under constant streams, by each strategy,
noticed by the poll and by MLflow's webhook."""

import json
import secrets
import time
from collections.abc import Iterator

import httpx
import pytest

from devstack.registry import set_alias
from kind.figures import note
from kind.site import NAMESPACE, RELEASE, Front, Site
from llm_operator.crds.common import quantity_value

pytestmark = pytest.mark.kind

NAME = "promo"
POLL_SECONDS = {"poll": 5, "webhook": 600}
DEPLOYMENT = f"""
apiVersion: llm-operator.dev/v1alpha1
kind: LLMDeployment
metadata: {{name: {NAME}}}
spec:
  model: {{mlflow: {{name: support-bot, alias: promoted}}}}
  engine: {{maxModelLength: 256, maxBatchSize: 16}}
  access: {{authentication: Disabled}}
  replicas: 2
  resources: {{requests: {{cpu: 50m, memory: 256Mi}}}}
  rollout: {{drainSeconds: 20, progressDeadlineSeconds: 180}}
"""


@pytest.fixture(scope="module", params=["poll", "webhook"])
def noticed(site: Site, request: pytest.FixtureRequest) -> Iterator[str]:
    """How the operator learns of a moved alias: by a quick poll, or by a webhook alone."""
    way: str = request.param
    credentials = {}
    webhook = ""
    if way == "webhook":
        secret = secrets.token_hex(32)
        literal = f"--from-literal=webhookSecret={secret}"
        site.cluster.kubectl(
            "-n", NAMESPACE, "create", "secret", "generic", "mlflow-default", literal
        )
        credentials = {"credentialsSecret": "mlflow-default"}
    site.helm(
        "upgrade",
        pollSeconds=POLL_SECONDS[way],
        connections={"default": credentials},
        webhooks={"service": {"enabled": way == "webhook"}},
    )
    if way == "webhook":
        webhook = subscribe(site, secret)
    yield way
    if webhook:
        url = f"{site.mlflow.uri}/api/2.0/mlflow/webhooks/{webhook}"
        httpx.delete(url, timeout=20, trust_env=False).raise_for_status()
        site.cluster.kubectl("-n", NAMESPACE, "delete", "secret", "mlflow-default")


def subscribe(site: Site, secret: str) -> str:
    """What docs/promotion.md says; returns the webhook's id."""
    url = f"{site.service_url(f'{RELEASE}-webhooks', NAMESPACE)}/webhooks/mlflow/default"
    entities = ("REGISTERED_MODEL", "MODEL_VERSION", "MODEL_VERSION_ALIAS")
    events = [{"entity": entity, "action": "CREATED"} for entity in entities]
    body = {
        "name": "llm-operator",
        "url": url,
        "events": events,
        "secret": secret,
        "status": "ACTIVE",
    }
    answer = httpx.post(
        f"{site.mlflow.uri}/api/2.0/mlflow/webhooks", json=body, timeout=20, trust_env=False
    )
    answer.raise_for_status()
    time.sleep(1.2)  # The server keeps its list of webhooks for so long (MLFLOW_WEBHOOK_CACHE_TTL).
    return str(answer.json()["webhook"]["webhook_id"])


@pytest.fixture(scope="module")
def promo(site: Site, noticed: str) -> Iterator[Front]:
    set_alias(site.mlflow.uri, "support-bot", "promoted", "1")
    site.cluster.kubectl("apply", "-f", "-", stdin=DEPLOYMENT)
    front = Front(site, NAME)
    front.ready()
    yield front
    site.cluster.kubectl("delete", "llmd", NAME, "--wait=true", "--timeout=90s")


@pytest.mark.parametrize("strategy", ["BlueGreen", "Rolling", "Canary"])
def test_a_promotion_fails_no_request(
    site: Site, promo: Front, noticed: str, strategy: str
) -> None:
    choose(promo, strategy)
    coming = "2" if promo.status()["stable"]["version"] == "1" else "1"
    with promo.load() as tally:
        began = time.monotonic()
        set_alias(site.mlflow.uri, "support-bot", "promoted", coming)
        promo.until(
            lambda: (promo.status().get("candidate") or {}).get("version") == coming,
            "the candidate",
        )
        ordered = time.monotonic() - began
        promo.until(
            lambda: promo.status()["stable"]["version"] == coming and promo.is_ready(),
            "the new version",
        )
        seconds = time.monotonic() - began
        # A client that keeps its connection stays with its pod until that pod leaves.
        promo.until(lambda: len(tally.answers) == 2, "an answer of each version")
    note(
        f"{strategy} by {noticed}",
        f"alias → candidate {ordered:.1f} s, → stable {seconds:.1f} s, {tally.requests} requests, 0"
        " failed",
    )


def choose(promo: Front, strategy: str) -> None:
    """Once the roll-out before has ended:
    pods that still ran would only be taken back into service."""
    status = promo.status()
    promo.until(
        lambda: (
            {revision_of(pod) for pod in promo.site.pods(NAME)} == {status["stable"]["revision"]}
        ),
        "one revision",
    )
    steps = (
        {"canary": {"steps": [{"weight": 34, "holdSeconds": 5}]}}
        if strategy == "Canary"
        else {"canary": None}
    )
    patch = {"spec": {"rollout": {"strategy": strategy, **steps}}}
    promo.kubectl("patch", "llmd", NAME, "--type=merge", "-p", json.dumps(patch))


def revision_of(pod: dict[str, dict[str, dict[str, str]]]) -> str:
    return pod["metadata"]["labels"]["llm-operator.dev/revision"]


def test_recreate_interrupts_only_because_it_was_asked_to(site: Site, promo: Front) -> None:
    choose(promo, "Recreate")
    coming = "2" if promo.status()["stable"]["version"] == "1" else "1"
    set_alias(site.mlflow.uri, "support-bot", "promoted", coming)
    promo.until(
        lambda: promo.status()["stable"]["version"] == coming and promo.is_ready(),
        "the new version",
    )


CROWDED = "crowded"
ONE_FITS = f"""
apiVersion: llm-operator.dev/v1alpha1
kind: LLMDeployment
metadata: {{name: {CROWDED}}}
spec:
  model: {{mlflow: {{name: support-bot, alias: crowded}}}}
  engine: {{maxModelLength: 256, maxBatchSize: 8}}
  access: {{authentication: Disabled}}
  resources: {{requests: {{cpu: CPU, memory: 256Mi}}}}
  rollout: {{drainSeconds: 20}}
  pod: {{nodeSelector: {{kubernetes.io/hostname: NODE}}}}
"""


def test_a_single_replica_on_a_full_node_is_interrupted_only_by_that_name(
    site: Site, bot: Front
) -> None:
    """`Auto` waits for room, says what is missing, and leaves the old version serving;
    `Recreate` goes on at once."""
    node = site.get("node", site.cluster.nodes[-1])
    cpu = f"{round(550 * quantity_value(node['status']['allocatable']['cpu']))}m"
    set_alias(site.mlflow.uri, "support-bot", "crowded", "1")
    text = ONE_FITS.replace("CPU", cpu).replace("NODE", node["metadata"]["name"])
    site.cluster.kubectl("apply", "-f", "-", stdin=text)
    front = Front(site, CROWDED)
    try:
        front.ready()
        with front.load(clients=2) as tally:
            set_alias(site.mlflow.uri, "support-bot", "crowded", "2")
            front.until(
                lambda: "not enough cpu" in front.condition("Progressing", CROWDED)["message"],
                "what is scarce",
            )
            reason = "stopping the only pod"
            front.until(
                lambda: reason in str(front.status()["candidate"].get("strategyReason")),
                "Auto's choice",
            )
            assert front.status()["stable"]["version"] == "1"
        note("a single replica on a full node, Auto", f"waits, {tally.requests} requests, 0 failed")
        patch = json.dumps({"spec": {"rollout": {"strategy": "Recreate"}}})
        front.kubectl("patch", "llmd", CROWDED, "--type=merge", "-p", patch)
        front.until(
            lambda: front.status()["stable"]["version"] == "2" and front.is_ready(), "version 2"
        )
    finally:
        site.cluster.kubectl("delete", "llmd", CROWDED, "--wait=true", "--timeout=90s")
