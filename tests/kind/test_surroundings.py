"""What clusters do around the product: no DNS, proxies,
a registry that only the operator reaches, foreign volumes."""

import time
from collections.abc import Iterator

import httpx
import pytest

from devstack.registry import set_alias
from kind.figures import note
from kind.site import NAMESPACE, Front, Site
from kind.volumes import volume

pytestmark = pytest.mark.kind

NAME = "around"
DEPLOYMENT = f"""
apiVersion: llm-operator.dev/v1alpha1
kind: LLMDeployment
metadata: {{name: {NAME}}}
spec:
  model: {{mlflow: {{name: support-bot, alias: around}}}}
  engine: {{maxModelLength: 256, maxBatchSize: 4}}
  access: {{authentication: Disabled}}
  resources: {{requests: {{cpu: 50m, memory: 256Mi}}}}
"""


@pytest.fixture(scope="module")
def around(site: Site) -> Iterator[Front]:
    set_alias(site.mlflow.uri, "support-bot", "around", "1")
    site.cluster.kubectl("apply", "-f", "-", stdin=DEPLOYMENT)
    front = Front(site, NAME)
    front.ready()
    yield front
    site.cluster.kubectl("delete", "llmd", NAME, "--wait=true", "--timeout=90s")


def scale_dns(site: Site, replicas: int) -> None:
    site.cluster.kubectl(
        "-n", "kube-system", "scale", "deployment", "coredns", f"--replicas={replicas}"
    )
    if replicas:
        site.cluster.kubectl(
            "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s"
        )
    else:
        site.cluster.kubectl(
            "-n",
            "kube-system",
            "wait",
            "pod",
            "-l",
            "k8s-app=kube-dns",
            "--for=delete",
            "--timeout=60s",
        )


def test_an_operator_gets_ready_and_works_while_the_clusters_dns_is_down(
    site: Site, around: Front
) -> None:
    scale_dns(site, 0)
    try:
        began = time.monotonic()
        site.cluster.kubectl("-n", NAMESPACE, "rollout", "restart", "deployment/llm-operator")
        site.rolled_out()
        note("operators restarted without DNS", f"{time.monotonic() - began:.1f} s")
        promote(site, around, "2")
    finally:
        scale_dns(site, 2)


def test_a_proxy_with_networks_in_no_proxy_is_no_hindrance(site: Site, around: Front) -> None:
    """Nothing answers at the proxy: whatever were sent there would fail."""
    network = ".".join(site.cluster.host_address().split(".")[:2]) + ".0.0/16"
    env = [
        {"name": "HTTPS_PROXY", "value": "http://127.0.0.1:9"},
        {"name": "HTTP_PROXY", "value": "http://127.0.0.1:9"},
        {"name": "NO_PROXY", "value": f"localhost,{network}"},
    ]
    site.helm("upgrade", env=env)
    try:
        promote(site, around, "1")
    finally:
        site.helm("upgrade")


def promote(site: Site, front: Front, version: str) -> None:
    set_alias(site.mlflow.uri, "support-bot", "around", version)
    front.until(
        lambda: front.status()["stable"]["version"] == version and front.is_ready(),
        f"version {version}",
    )


def test_a_registry_that_only_the_operator_reaches_is_told_as_such(
    site: Site, around: Front
) -> None:
    """As behind a firewall that knows the operator's namespace: pods are refused at the nodes."""
    server = httpx.URL(site.mlflow.uri)
    towards = f"-d {server.host} -p tcp --dport {server.port}"
    operators = [pod["status"]["podIP"] for pod in site.operator_pods()]
    rules = [
        f"{towards} -j REJECT",
        *(f"-s {address} {towards} -j ACCEPT" for address in operators),
    ]
    front = Front(site, "cut-off")
    try:
        firewall(site, "-I", rules)
        site.cluster.kubectl(
            "apply", "-f", "-", stdin=DEPLOYMENT.replace(f"name: {NAME}}}", "name: cut-off}", 1)
        )
        front.until(
            lambda: front.condition("Ready", "cut-off")["reason"] == "RegistryUnreachable",
            "the pods' word",
            120,
        )
        note("a registry that pods can't reach", front.condition("Ready", "cut-off")["message"])
        assert front.condition("RegistryReachable", "cut-off")["status"] == "True", (
            "the operator reaches it"
        )
        assert (
            "can't reach the registry, whatever the operator can"
            in front.condition("Ready", "cut-off")["message"]
        )
    finally:
        firewall(site, "-D", rules)
    front.ready()
    site.cluster.kubectl("delete", "llmd", "cut-off", "--wait=true", "--timeout=90s")


def firewall(site: Site, verb: str, rules: list[str]) -> None:
    for node in site.cluster.nodes:
        for rule in rules:
            site.cluster.node_exec(node, "iptables", verb, "FORWARD", *rule.split())


def test_a_volume_of_another_owner_is_named(site: Site) -> None:
    own = DEPLOYMENT.replace(f"name: {NAME}}}", "name: foreign}", 1).replace(
        "alias: around", "version: 1"
    )
    cache = "  modelCache: {persistentVolumeClaim: {claimName: foreign}}\n"
    front = Front(site, "foreign")
    with volume(site, "foreign", owner=1234):
        site.cluster.kubectl("apply", "-f", "-", stdin=own + cache)
        try:
            front.until(
                lambda: "this is user 65532" in front.condition("Ready", "foreign")["message"],
                "both owners",
                90,
            )
            said = front.condition("Ready", "foreign")["message"]
            note("a volume of another owner", said)
            assert "belongs to user 1234 and group 1234" in said
        finally:
            site.cluster.kubectl("delete", "llmd/foreign", "--wait=true", "--timeout=90s")
