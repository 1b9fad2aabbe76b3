"""The chart's NetworkPolicies: what the product needs goes on, what they forbid is refused,
and off opens it again."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import pytest

from devstack.registry import set_alias
from kind.figures import note
from kind.site import NAMESPACE, RELEASE, Front, Site
from kindstack.cluster import KindCluster
from waiting import eventually

pytestmark = pytest.mark.kind

METRICS = 8080
WEBHOOKS = 8090
RUNTIME = 8000
PORT = 8080
PROMETHEUS = 9090
"""Of the pods beside the product;
the allowed one stands for a Prometheus, which the operator's gates ask."""
SECRET = "0123456789abcdef" * 4
SIGNED_WITH = "mlflow-default"
TEAM = "walled-team"
NOT_ENFORCED = (
    "this cluster enforces no NetworkPolicies: a pod behind one that lets nobody in was reached."
    " See `kubectl -n kube-system logs ds/kube-router`, or name a node image (KIND_IMAGE) whose"
    " network plugin enforces them"
)
DENY_ALL: dict[str, Any] = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "deny-all", "namespace": "strangers"},
    "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
}
MONITORING = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
KEY = f"""
apiVersion: llm-operator.dev/v1alpha1
kind: ApiKey
metadata: {{name: {TEAM}}}
spec: {{owner: {TEAM}@example.com, deployments: [support-bot]}}
"""
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()
    print("open")
except socket.gaierror:
    print("unknown")
except OSError:
    print("closed")
"""
GET = """
import sys, urllib.request as r
headers = {"Authorization": f"Bearer {sys.argv[2]}"} if len(sys.argv) > 2 else {}
print(r.urlopen(r.Request(sys.argv[1], headers=headers), timeout=10).read().decode())
"""
DELIVER = """
import base64, hashlib, hmac, json, sys, time, urllib.request as r, uuid
url, secret = sys.argv[1:]
delivery, stamp = str(uuid.uuid4()), str(int(time.time()))
body = json.dumps({"data": {"name": "support-bot"}}).encode()
signed = base64.b64encode(hmac.digest(secret.encode(), f"{delivery}.{stamp}.".encode() + body, hashlib.sha256)).decode()
headers = {"X-MLflow-Delivery-Id": delivery, "X-MLflow-Timestamp": stamp, "X-MLflow-Signature": f"v1,{signed}"}
print(r.urlopen(r.Request(url, data=body, headers=headers, method="POST"), timeout=10).status)
"""


@dataclass(frozen=True)
class Pod:
    """A running pod with Python in it."""

    cluster: KindCluster
    namespace: str
    name: str
    container: str = "main"

    def python(self, script: str, *arguments: object) -> str:
        command = (
            "exec",
            self.name,
            "-c",
            self.container,
            "--",
            "python",
            "-c",
            script,
            *map(str, arguments),
        )
        return self.cluster.kubectl("-n", self.namespace, *command).strip()

    def finds(self, host: str, port: int) -> str:
        """`open`, or `closed`, or `unknown` where the name has no address."""
        return self.python(CONNECT, host, port)

    def found(self, expected: Literal["open", "closed"], host: str, port: int) -> None:
        """A policy, or a pod that is new to it, takes a moment to be known on every node."""

        def holds() -> bool:
            assert (seen := self.finds(host, port)) == expected, (
                f"{self.namespace}/{self.name} → {host}:{port}: {seen}"
            )
            return True

        eventually(holds)

    @property
    def address(self) -> str:
        return str(self.cluster.get("-n", self.namespace, "pod", self.name)["status"]["podIP"])


@dataclass(frozen=True)
class Peers:
    """Pods beside the product: one that may ask,
    one of another namespace, one of that of the pods that serve."""

    allowed: Pod
    stranger: Pod
    neighbour: Pod


@pytest.fixture(scope="module")
def peers(cluster: KindCluster) -> Iterator[Peers]:
    """They run on different nodes, so that both ways of a packet are seen:
    within a node and between two."""
    made = Peers(
        allowed=Pod(cluster, "monitoring", "scraper"),
        stranger=Pod(cluster, "strangers", "stranger"),
        neighbour=Pod(cluster, "default", "neighbour"),
    )
    nodes = dict(
        zip((made.stranger, made.neighbour, made.allowed), (cluster.nodes * 2)[:3], strict=True)
    )
    for pod, node in nodes.items():
        if pod.namespace != "default":
            cluster.kubectl("create", "namespace", pod.namespace)
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(server(pod, node)))
    for pod in nodes:
        command = ("wait", f"pod/{pod.name}", "--for=condition=Ready", "--timeout=120s")
        cluster.kubectl("-n", pod.namespace, *command)
    yield made
    cluster.kubectl("delete", "pod", made.neighbour.name)
    cluster.kubectl("delete", "namespace", made.allowed.namespace, made.stranger.namespace)


def server(pod: Pod, node: str) -> dict[str, Any]:
    port = PROMETHEUS if pod.namespace == "monitoring" else PORT
    command = ["python", "-m", "http.server", str(port), "--directory", "/opt/app"]
    main = {"name": "main", "image": pod.cluster.operator_image, "command": command}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": {"app": pod.name}},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [main]},
    }


@pytest.fixture(scope="module")
def enforced(cluster: KindCluster, peers: Peers) -> None:
    """Without it everything below could pass, or fail, for another reason."""
    address = peers.stranger.address
    peers.allowed.found("open", address, PORT)
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(DENY_ALL))
    began = time.monotonic()
    try:
        for pod in (peers.allowed, peers.neighbour):
            eventually(lambda pod=pod: pod.finds(address, PORT) == "closed")
        note(
            "NetworkPolicy applied → enforced from both nodes", f"{time.monotonic() - began:.1f} s"
        )
    except AssertionError:
        pytest.fail(NOT_ENFORCED)
    finally:
        cluster.kubectl("delete", "-f", "-", stdin=json.dumps(DENY_ALL))
    peers.allowed.found("open", address, PORT)


def policies(cluster: KindCluster) -> dict[str, Any]:
    """Of the operator and of the pods that serve; these are also asked from outside the cluster."""
    network = ".".join(cluster.host_address().split(".")[:2]) + ".0.0/16"
    outside = {"ipBlock": {"cidr": network}}
    runtime = {
        "namespaces": ["default"],
        "ingressFrom": [MONITORING, outside],
        "egressPorts": [PROMETHEUS],
    }
    return {"enabled": True, "ingressFrom": [MONITORING], "runtime": runtime}


def values(**more: Any) -> dict[str, Any]:
    return {
        "pollSeconds": 5,
        "webhooks": {"service": {"enabled": True}},
        "connections": {"default": {"credentialsSecret": SIGNED_WITH}},
        **more,
    }


@pytest.fixture(scope="module")
def walls(site: Site, bot: Front, peers: Peers, enforced: None) -> Iterator[None]:
    """The policies are on. The namespace `monitoring` may ask;
    this machine may ask the pods that serve."""
    literal = f"--from-literal=webhookSecret={SECRET}"
    site.cluster.kubectl("-n", NAMESPACE, "create", "secret", "generic", SIGNED_WITH, literal)
    prometheus = f"http://{peers.allowed.address}:{PROMETHEUS}"
    site.helm("upgrade", **values(networkPolicy=policies(site.cluster), prometheusUrl=prometheus))
    yield
    site.helm("upgrade")
    site.cluster.kubectl("-n", NAMESPACE, "delete", "secret", SIGNED_WITH)


def operators(site: Site) -> list[Pod]:
    return [
        Pod(site.cluster, NAMESPACE, pod["metadata"]["name"], "operator")
        for pod in site.operator_pods()
    ]


def runtimes(site: Site) -> list[Pod]:
    return [
        Pod(site.cluster, "default", pod["metadata"]["name"], "runtime")
        for pod in site.pods("support-bot")
    ]


def doors(site: Site) -> list[tuple[str, int]]:
    """All that the product answers on: Services by name, and every pod behind them."""
    return [
        (f"{RELEASE}-metrics.{NAMESPACE}.svc", 8080),
        (f"{RELEASE}-webhooks.{NAMESPACE}.svc", 80),
        ("support-bot.default.svc", 80),
        *((pod.address, port) for pod in operators(site) for port in (METRICS, WEBHOOKS)),
        *((pod.address, RUNTIME) for pod in runtimes(site)),
    ]


def test_an_operator_that_starts_behind_policies_gets_ready(site: Site, walls: None) -> None:
    began = time.monotonic()
    site.cluster.kubectl("-n", NAMESPACE, "rollout", "restart", f"deployment/{RELEASE}")
    site.rolled_out()
    note("operators restarted behind NetworkPolicies", f"{time.monotonic() - began:.1f} s")
    assert "Succeeded" in site.cluster.helm(
        "test", RELEASE, "--namespace", NAMESPACE, "--timeout", "120s"
    )


def test_a_pod_that_starts_behind_policies_fetches_gets_ready_and_answers(
    site: Site, bot: Front, peers: Peers, walls: None
) -> None:
    """The sample, with weights from the registry, the kubelet's probes, a new key,
    and a client that is let in."""
    old = {pod["metadata"]["uid"] for pod in site.pods(bot.name)}
    site.cluster.kubectl(
        "delete", "pod", "-l", f"llm-operator.dev/deployment={bot.name}", "--wait=true"
    )
    bot.until(
        lambda: (
            old.isdisjoint(pod["metadata"]["uid"] for pod in site.pods(bot.name)) and bot.is_ready()
        ),
        "new pods",
    )
    site.cluster.kubectl("apply", "-f", "-", stdin=KEY)
    try:
        site.cluster.kubectl("wait", f"llmkey/{TEAM}", "--for=condition=Ready", "--timeout=60s")
        address = f"http://{bot.name}.default.svc/v1/models"
        assert bot.name in eventually(lambda: peers.allowed.python(GET, address, site.key(TEAM)))
    finally:
        site.cluster.kubectl("delete", "llmkey", TEAM)


def test_a_promotion_by_alias_is_noticed(site: Site, bot: Front, walls: None) -> None:
    for version in ("2", "1"):
        began = time.monotonic()
        set_alias(site.mlflow.uri, "support-bot", "champion", version)
        bot.until(lambda version=version: bot.serves(version), f"version {version}")
        note(f"promotion to {version} behind NetworkPolicies", f"{time.monotonic() - began:.1f} s")


def test_metrics_are_scraped_from_the_allowed_namespace(
    site: Site, peers: Peers, walls: None
) -> None:
    for pod in operators(site):
        assert "llm_operator_leader" in eventually(
            lambda pod=pod: peers.allowed.python(GET, f"http://{pod.address}:{METRICS}/metrics")
        )
    for pod in runtimes(site):
        assert "llm_" in eventually(
            lambda pod=pod: peers.allowed.python(GET, f"http://{pod.address}:{RUNTIME}/metrics")
        )


def test_a_stand_by_hands_a_webhook_on_to_the_leader(site: Site, peers: Peers, walls: None) -> None:
    """Both are of one policy, and kube-router is content with a rule of either direction:
    unit tests want both."""
    replicas = operators(site)
    assert len(replicas) == 2
    for pod in replicas:
        url = f"http://{pod.address}:{WEBHOOKS}/webhooks/mlflow/default"
        assert eventually(lambda url=url: peers.allowed.python(DELIVER, url, SECRET)) == "202"


def test_a_client_outside_the_cluster_is_let_in_by_its_address_only(
    site: Site, bot: Front, walls: None
) -> None:
    """This machine comes with its own address, or with that of the node whose route it takes."""
    assert (
        eventually(lambda: httpx.get(f"{bot.url}/livez", timeout=10, trust_env=False)).status_code
        == 200
    )
    for name in (f"{RELEASE}-metrics", f"{RELEASE}-webhooks"):
        with pytest.raises((httpx.ConnectError, httpx.ConnectTimeout)):
            httpx.get(site.service_url(name, NAMESPACE), timeout=10, trust_env=False)


def test_others_reach_neither_operator_nor_runtime(site: Site, peers: Peers, walls: None) -> None:
    for host, port in doors(site):
        peers.allowed.found("open", host, port)
        peers.stranger.found("closed", host, port)
        peers.neighbour.found("closed", host, port)


def test_the_operator_asks_the_pods_and_prometheus_and_nobody_else(
    site: Site, peers: Peers, walls: None
) -> None:
    peers.allowed.found("open", peers.stranger.address, PORT)
    for operator in operators(site):
        operator.found("open", "kube-dns.kube-system.svc", 53)
        operator.found("open", peers.allowed.address, PROMETHEUS)
        for runtime in runtimes(site):
            operator.found("open", runtime.address, RUNTIME)
        operator.found("closed", peers.stranger.address, PORT)


def test_a_pod_that_serves_reaches_registry_and_stores_and_no_pod_beside_it(
    site: Site, peers: Peers, walls: None
) -> None:
    host, _, port = site.mlflow.uri.removeprefix("http://").rpartition(":")
    for runtime in runtimes(site):
        runtime.found("open", host, int(port))
        runtime.found("open", peers.allowed.address, PROMETHEUS)
        runtime.found("open", "kube-dns.kube-system.svc", 53)
        for peer in (peers.stranger, peers.neighbour):
            runtime.found("closed", peer.address, PORT)
        for operator in operators(site):
            runtime.found("closed", operator.address, METRICS)


def test_switched_off_everything_is_open_again(site: Site, peers: Peers, walls: None) -> None:
    site.helm("upgrade", **values())
    assert not site.get("networkpolicies", "--all-namespaces")["items"]
    for host, port in doors(site):
        peers.stranger.found("open", host, port)
        peers.neighbour.found("open", host, port)
    for runtime in runtimes(site):
        runtime.found("open", peers.stranger.address, PORT)
