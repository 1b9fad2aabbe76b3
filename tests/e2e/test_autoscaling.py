"""The real HorizontalPodAutoscaler scales 1 → 4 → 1 by the operator's metrics API while streams run:
none is cut."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from devstack.load import RequestLoop
from devstack.stack import ROOT, Stack
from e2e.world import MODEL, World

pytestmark = pytest.mark.e2e

NAME = "elastic"
OPERATOR = "llm-operator-system"
SERVICE = "llm-operator-metrics-api"
ADDRESS = "127.96.200.2"
AT_ONCE = {"stabilizationWindowSeconds": 0}
DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "llm-operator.dev/v1alpha1",
    "kind": "LLMDeployment",
    "metadata": {"name": NAME},
    "spec": {
        "model": {"mlflow": {"name": MODEL, "version": "1"}},
        # One at a time: all others wait.
        "engine": {"maxModelLength": 256, "maxBatchSize": 1},
        "access": {"authentication": "Disabled"},
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
        "autoscaling": {
            "maxReplicas": 4,
            "metrics": [{"type": "QueueDepth", "target": 2}],
            "behavior": {"scaleUp": AT_ONCE, "scaleDown": AT_ONCE},
        },
    },
}


@pytest.fixture
def elastic(world: World, stack: Stack) -> Iterator[World]:
    """One pod of it serves, and the operator serves the metrics API."""
    before = world.kubectl("-n", OPERATOR, "get", "configmap/llm-operator", "-o", "json")
    config = json.loads(before)["data"]["config.yaml"]
    own = {"port": 8443, "service": SERVICE, "clusterRole": SERVICE}
    changed = yaml.safe_dump({**yaml.safe_load(config), "metricsApi": own})
    rights = _rights(stack)
    world.kubectl("apply", "--server-side", "-f", "-", stdin=rights)
    _configure(world, changed)
    world.kubectl("apply", "-f", "-", stdin=json.dumps(DEPLOYMENT))
    world.kubectl("wait", f"llmd/{NAME}", "--for=condition=Ready", "--timeout=180s")
    try:
        yield world
    finally:
        world.kubectl("delete", "llmd", NAME, "--wait=true", "--timeout=60s")
        world.kubectl("delete", "-f", "-", stdin=rights)
        _configure(world, config)


def _rights(stack: Stack) -> str:
    """What the chart adds for it. The process node has no EndpointSlices, by which the API server
    finds a Service's pods: it is led to the Service's address by a name."""
    assert stack.cluster.programs is not None
    rendered = subprocess.run(
        [stack.cluster.programs / "helm", "template", "llm-operator", ROOT / "charts" / "llm-operator",
         "-n", OPERATOR, "--set", "metricsApi.enabled=true", "--skip-tests"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = [
        each
        for each in yaml.safe_load_all(rendered)
        if each and each["metadata"]["name"].startswith(SERVICE)
    ]
    service = next(each for each in found if each["kind"] == "Service")
    behind = {**service, "metadata": {**service["metadata"], "name": "metrics-api-behind"}}
    behind["spec"] = {**service["spec"], "clusterIP": ADDRESS}
    behind["spec"]["ports"] = [{"name": "metrics-api", "port": 8443, "targetPort": 8443}]
    service["spec"] = {"type": "ExternalName", "externalName": ADDRESS}
    return yaml.safe_dump_all([*found, behind])


def _configure(world: World, config: str) -> None:
    """Give the operator another configuration, which it reads when it starts."""
    change = json.dumps({"data": {"config.yaml": config}})
    world.kubectl("-n", OPERATOR, "patch", "configmap/llm-operator", "--type=merge", "-p", change)
    world.kubectl("-n", OPERATOR, "rollout", "restart", "deployment/llm-operator")
    world.kubectl("-n", OPERATOR, "rollout", "status", "deployment/llm-operator", "--timeout=120s")


def ready(world: World) -> int:
    return int(world.llmd(NAME).get("status", {}).get("readyReplicas") or 0)


def pods(world: World) -> int:
    label = f"llm-operator.dev/deployment={NAME}"
    return len(world.kubectl("get", "pods", "-l", label, "-o", "name").split())


def test_no_stream_is_cut_while_the_autoscaler_scales_up_and_down(
    elastic: World, stack: Stack
) -> None:
    url = stack.service_url(NAME)

    def clients(number: int) -> RequestLoop:
        return RequestLoop(url, "", NAME, "hello world", clients=number, max_tokens=200).start()

    steady = clients(1)
    crowd = clients(9)
    try:
        elastic.until(lambda: ready(elastic) == 4, "four pods for ten clients")
        told = crowd.stop()
        elastic.until(lambda: pods(elastic) == 1, "one pod for one client")
    finally:
        crowd.stop()
        alone = steady.stop()
    assert told.requests > 10
    assert alone.requests > 1
    assert not told.failures + alone.failures
