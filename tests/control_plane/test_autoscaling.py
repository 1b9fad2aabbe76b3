"""The real HorizontalPodAutoscaler controller scales by the operator's own metrics API, through the
API server's real aggregator."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from control_plane.operator_fixtures import Api, Models, Operator, Place, Refusal, settings
from control_plane.pod_metrics import PodMetrics, loopback, pod_metrics
from devstack.cluster import Cluster
from devstack.ports import free_port
from llm_operator.plans.names import DEPLOYMENT_LABEL
from llm_runtime import contract
from waiting import eventually

pytestmark = [pytest.mark.control_plane, pytest.mark.usefixtures("quiet")]
pytest_plugins = ["control_plane.operator_fixtures"]
ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "llm-operator-system"
SERVICE = "llm-operator-metrics-api"
CUSTOM = "v1beta2.custom.metrics.k8s.io"
EXTERNAL = "v1beta1.external.metrics.k8s.io"
APISERVICES = "/apis/apiregistration.k8s.io/v1/apiservices"
Json = dict[str, Any]


class Fleet:
    """The ready pods of one LLMDeployment. Each has an address, and says there how busy it is."""

    def __init__(self, place: Place, stack: ExitStack) -> None:
        self.place = place
        self.stack = stack
        self.pods: dict[str, PodMetrics] = {}

    def ready(self) -> dict[str, PodMetrics]:
        """By name; a new pod gets its address here."""
        found = {}
        for pod in self.place.api.list("Pod", self.place.name, f"{DEPLOYMENT_LABEL}=bot"):
            name = pod["metadata"]["name"]
            conditions = pod["status"].get("conditions", [])
            ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
            if "deletionTimestamp" in pod["metadata"] or not ready:
                continue
            if name not in self.pods:
                self.pods[name] = self.stack.enter_context(pod_metrics(PodMetrics(loopback())))
                placed = {"status": self.pods[name].placed}
                self.place.api.patch("Pod", self.place.name, name, placed, "/status")
            found[name] = self.pods[name]
        return found


def busy(pod: PodMetrics, waiting: int, running: int = 0) -> None:
    figures = {
        contract.METRIC_REQUESTS_WAITING: waiting,
        contract.METRIC_REQUESTS_RUNNING: running,
        contract.METRIC_TOKENS_PER_SECOND: 12.5,
        contract.METRIC_KV_CACHE_USAGE: 0.25,
    }
    pod.text = "".join(f"# TYPE {name} gauge\n{name} {value}\n" for name, value in figures.items())


@pytest.fixture
def own(
    api: Api, cluster: Cluster, account: Path, models: Models, tmp_path: Path
) -> Iterator[Operator]:
    """An operator that serves the metrics API, with the rights that the chart gives it for that.
    external.metrics.k8s.io belongs to somebody else, as it does where KEDA is."""
    assert cluster.programs is not None
    chart = ROOT / "charts" / "llm-operator"
    rendered = subprocess.run(
        [cluster.programs / "helm", "template", "llm-operator", chart, "-n", NAMESPACE,
         "--set", "metricsApi.enabled=true", "--show-only", "templates/rbac.yaml"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    rights = yaml.safe_dump_all(
        each for each in yaml.safe_load_all(rendered) if SERVICE in each["metadata"]["name"]
    )
    port = free_port()
    # The operator is no pod here. A real Service of this name finds its pods.
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": SERVICE, "namespace": NAMESPACE},
        "spec": {"type": "ExternalName", "externalName": "127.0.0.1"},
    }
    spec = {"group": EXTERNAL.partition(".")[2], "version": "v1beta1"}
    theirs = {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": EXTERNAL},
        "spec": {
            **spec,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "insecureSkipTLSVerify": True,
            "service": {"namespace": "keda", "name": "keda-operator-metrics-apiserver"},
        },
    }
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=rights)
    api.apply(service)
    api.call("POST", APISERVICES, theirs)
    own_port = {"port": port, "servicePort": port, "service": SERVICE, "clusterRole": SERVICE}
    running = Operator(tmp_path, account, settings(models, metricsApi=own_port))
    running.start()
    try:
        yield running
    finally:
        running.stop()
        # What is left behind would keep the namespaces of other tests from being deleted.
        api.call("DELETE", f"{APISERVICES}/{EXTERNAL}")
        cluster.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=rights)
        api.delete("Service", NAMESPACE, SERVICE)
        # It goes with the ClusterRole, as with `helm uninstall`.
        eventually(lambda: gone(api, f"{APISERVICES}/{CUSTOM}"))
        eventually(lambda: api.get("Secret", NAMESPACE, SERVICE) is None)


def gone(api: Api, path: str) -> bool:
    try:
        api.call("GET", path)
    except Refusal as error:
        return error.status == 404
    return False


def test_an_autoscaler_scales_on_queue_depth_and_idle_pods_go_first(
    own: Operator, place: Place, cluster: Cluster
) -> None:
    at_once = {"stabilizationWindowSeconds": 0}
    place.model()
    place.deploy(
        autoscaling={
            "maxReplicas": 4,
            "metrics": [{"type": "QueueDepth", "target": 4}],
            "behavior": {"scaleUp": at_once, "scaleDown": at_once},
        }
    )
    place.ready()
    with ExitStack() as stack:
        fleet = Fleet(place, stack)
        (first,) = eventually(fleet.ready)
        busy(fleet.pods[first], waiting=16, running=1)

        def spread() -> bool:
            pods = fleet.ready()
            for pod in pods.values():
                if len(pods) > 1:
                    busy(pod, waiting=4, running=1)
            return len(pods) == 4

        eventually(spread)
        assert place.condition("AutoscalingActive")["status"] == "True"
        path = f"/apis/custom.metrics.k8s.io/v1beta2/namespaces/{place.name}"

        def told(what: str) -> list[str]:
            raw = cluster.kubectl("get", "--raw", f"{path}/{what}")
            return [each["value"] for each in yaml.safe_load(raw)["items"]]

        # What a pod said is used for a moment.
        eventually(lambda: told("pods/*/llm_requests_waiting") == ["4"] * 4)
        eventually(
            lambda: told("llmdeployments.llm-operator.dev/bot/llm_requests_running") == ["4"]
        )

        # One pod is still at work, and neither the first nor the last that came.
        busy_one = sorted(fleet.ready())[1]
        for name, pod in fleet.ready().items():
            busy(pod, waiting=0, running=int(name == busy_one))
        eventually(lambda: list(fleet.ready()) == [busy_one])
    refused(place, path)
    left_alone(place, own)


def refused(place: Place, path: str) -> None:
    """Who has no right to the pods' metrics, or does not come through the API server."""
    eve = {"Impersonate-User": "eve"}
    answer = place.api.client.get(f"{path}/pods/*/llm_requests_waiting", headers=eve)
    assert answer.status_code == 403
    live = place.api.call("GET", f"{APISERVICES}/{CUSTOM}")
    port = live["spec"]["service"]["port"]
    answer = httpx.get(f"https://127.0.0.1:{port}{path}", verify=False, trust_env=False)
    assert (answer.status_code, answer.json()["reason"]) == (401, "Unauthorized")


def left_alone(place: Place, own: Operator) -> None:
    """What is somebody else's."""
    live = place.api.call("GET", f"{APISERVICES}/{EXTERNAL}")
    assert live["spec"]["service"]["namespace"] == "keda"
    assert f"kubectl delete apiservice {EXTERNAL}" in own.log.read_text()
