"""Nodes and their programs go away and come back:
two replicas lose no request, and the status names the node."""

import json
import time
from collections.abc import Iterator

import pytest

from kind.figures import note
from kind.site import NAMESPACE, Front, Site, inside
from kindstack.shell import KindError

pytestmark = pytest.mark.kind

NAME = "spread"
DEPLOYMENT = f"""
apiVersion: llm-operator.dev/v1alpha1
kind: LLMDeployment
metadata: {{name: {NAME}}}
spec:
  model: {{mlflow: {{name: support-bot, version: 1}}}}
  engine: {{maxModelLength: 256, maxBatchSize: 8}}
  access: {{authentication: Disabled}}
  replicas: 2
  resources: {{requests: {{cpu: 50m, memory: 256Mi}}}}
  rollout: {{drainSeconds: 20}}
  pod:
    topologySpreadConstraints:
      - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway}}
"""


@pytest.fixture(scope="module")
def spread(site: Site) -> Iterator[Front]:
    site.cluster.kubectl("apply", "-f", "-", stdin=DEPLOYMENT)
    front = Front(site, NAME)
    front.ready()
    yield front
    site.cluster.kubectl("delete", "llmd", NAME, "--wait=true", "--timeout=90s")


def nodes_of(site: Site) -> set[str]:
    return {pod["spec"]["nodeName"] for pod in site.pods(NAME)}


def worker(site: Site) -> str:
    return next(node for node in site.cluster.nodes if "worker" in node)


def all_ready(front: Front) -> bool:
    return front.is_ready() and front.status()["readyReplicas"] == 2


def test_a_drained_node_costs_no_request(site: Site, spread: Front) -> None:
    node = worker(site)
    move_one_to(site, spread, node)
    with spread.load() as tally:
        began = time.monotonic()
        command = ("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=240s")
        site.cluster.kubectl(*command)
        seconds = time.monotonic() - began
        spread.until(lambda: all_ready(spread), "both replicas elsewhere")
    site.cluster.kubectl("uncordon", node)
    note("a node drained", f"{seconds:.1f} s, {tally.requests} requests, 0 failed")


def test_a_node_whose_kubelet_is_silent_is_named_and_serves_on(site: Site, spread: Front) -> None:
    move_one_to(site, spread, worker(site))
    with spread.load(clients=2) as tally:
        began = time.monotonic()
        site.cluster.node_exec(worker(site), "systemctl", "stop", "kubelet")
        try:
            spread.until(lambda: "NodeLost" in json.dumps(spread.status()), "NodeLost", 120)
            told = time.monotonic() - began
        finally:
            site.cluster.node_exec(worker(site), "systemctl", "start", "kubelet")
        began = time.monotonic()
        spread.until(spread.is_ready, "Ready again", 120)
    back = time.monotonic() - began
    note(
        "kubelet stopped",
        f"NodeLost after {told:.1f} s, back {back:.1f} s, {tally.requests} requests, 0 failed",
    )


def move_one_to(site: Site, spread: Front, node: str) -> None:
    """Both pods may be on one node, after a drain or since the other was busy:
    one is deleted, and spread again."""
    if node not in nodes_of(site):
        site.cluster.kubectl("delete", "pod", site.pods(NAME)[0]["metadata"]["name"])
        spread.until(lambda: node in nodes_of(site) and spread.is_ready(), "one pod on each node")


@pytest.mark.parametrize("program", ["kubelet", "containerd"])
def test_a_restarted_node_program_costs_no_request_and_no_container(
    site: Site, spread: Front, program: str
) -> None:
    restarts = {pod["metadata"]["uid"]: restart_count(pod) for pod in site.pods(NAME)}
    with spread.load(clients=2):
        for node in site.cluster.nodes:
            site.cluster.node_exec(node, "systemctl", "restart", program)
        spread.until(spread.is_ready, "Ready", 120)
    assert {pod["metadata"]["uid"]: restart_count(pod) for pod in site.pods(NAME)} == restarts


def restart_count(pod: dict[str, dict[str, list[dict[str, int]]]]) -> int:
    return pod["status"]["containerStatuses"][0]["restartCount"]


def test_a_restarted_api_server_costs_no_request(site: Site, spread: Front) -> None:
    plane = next(node for node in site.cluster.nodes if "control-plane" in node)
    with spread.load(clients=2):
        container = site.cluster.node_exec(
            plane, "crictl", "ps", "-q", "--name", "kube-apiserver"
        ).split()[0]
        site.cluster.node_exec(plane, "crictl", "stop", container)
        spread.until(lambda: answers(site), "the API server", 120)
        site.cluster.kubectl("scale", "llmd", NAME, "--replicas=3")
        spread.until(
            lambda: len(site.pods(NAME)) == 3 and spread.is_ready(),
            "the operator to hear again",
            180,
        )
    site.cluster.kubectl("scale", "llmd", NAME, "--replicas=2")


def answers(site: Site) -> bool:
    try:
        return site.cluster.kubectl("get", "--raw", "/readyz") == "ok"
    except KindError:
        return False


def test_killed_operators_cost_no_request_and_come_back(site: Site, spread: Front) -> None:
    before = {pod["metadata"]["name"] for pod in site.operator_pods()}
    with spread.load(clients=2):
        site.cluster.kubectl(
            "-n", NAMESPACE, "delete", "pod", *sorted(before), "--grace-period=0", "--force"
        )
        site.rolled_out()
        after = {pod["metadata"]["name"] for pod in site.operator_pods()}
        spread.until(
            lambda: leader(site).startswith(tuple(after)), "one of the new operators to lead"
        )
        site.cluster.kubectl("scale", "llmd", NAME, "--replicas=3")
        spread.until(lambda: len(site.pods(NAME)) == 3 and spread.is_ready(), "its work")
    site.cluster.kubectl("scale", "llmd", NAME, "--replicas=2")
    assert not before & after


def leader(site: Site) -> str:
    return str(site.get("lease", "llm-operator", "-n", NAMESPACE)["spec"]["holderIdentity"])


FULL = "held = [open(f'/tmp/{n}', 'wb').write(b'x' * (16 << 20)) for n in range(8)]"


def test_a_pod_that_its_node_evicts_is_told_and_replaced(site: Site, bot: Front) -> None:
    """Over its limit of local disk, as that is what a test can bring about;
    kubelets end such a pod without grace."""
    front = Front(site, "hoarder")
    limits = "resources: {requests: {cpu: 50m, memory: 256Mi}, limits: {ephemeral-storage: 64Mi}}"
    own = DEPLOYMENT.replace(f"name: {NAME}}}", "name: hoarder}", 1)
    site.cluster.kubectl(
        "apply",
        "-f",
        "-",
        stdin=own.replace("resources: {requests: {cpu: 50m, memory: 256Mi}}", limits),
    )
    try:
        front.ready()
        evicted = site.pods("hoarder")[0]
        inside(evicted, site.cluster, "python", "-c", FULL)
        # The kubelet was seen to measure a container's files only after 115 s,
        # when it had been restarted.
        front.until(lambda: front.told("PodEvicted"), "PodEvicted", 300)
        front.until(lambda: evicted["metadata"]["name"] not in serving(site), "its end", 60)
        front.until(
            lambda: front.is_ready() and front.status()["readyReplicas"] == 2, "another pod", 120
        )
    finally:
        site.cluster.kubectl("delete", "llmd", "hoarder", "--wait=true", "--timeout=90s")


def serving(site: Site) -> set[str]:
    pods = site.pods("hoarder")
    return {pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"}
