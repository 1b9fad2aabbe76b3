"""What an operator in this process tells of each state, on a real API server:
its columns, its refusals."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Any

import pytest
from kubernetes.aio import client, config

from control_plane.operator_fixtures import Api
from devstack.cluster import Cluster
from llm_operator.crds import API_VERSION
from llm_operator.ports.cluster import KubernetesCluster, path_of
from llm_operator.reconcile import Pace, reconcile
from llm_operator.state import Key
from unit.operator.fakes import NAMESPACE, World

pytestmark = [pytest.mark.control_plane, pytest.mark.usefixtures("quiet")]
pytest_plugins = ["control_plane.operator_fixtures"]
PACE = Pace(verify_seconds=60, settle_seconds=5)
NAME = "support-bot"
MODEL = {"mlflow": {"name": "bot", "alias": "champion"}}
CORRUPT = '{"reason": "ModelCorrupt", "message": "12 bytes short"}\n'
ENDED = {
    "name": "fetch",
    "restartCount": 1,
    "state": {"terminated": {"exitCode": 1, "message": CORRUPT}},
}


@pytest.fixture
def namespace(api: Api) -> str:
    name = f"t{time.time_ns() % 10**12}"
    api.call(
        "POST",
        "/api/v1/namespaces",
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}},
    )
    return name


class Shown:
    """An LLMDeployment whose status a world makes, as kubectl shows it."""

    def __init__(self, api: Api, cluster: Cluster, namespace: str) -> None:
        self.world = World()
        self.api = api
        self.cluster = cluster
        self.namespace = namespace

    async def deploy(self, **spec: Any) -> None:
        await self.world.deploy(NAME, **spec)
        wanted = self.world.cluster.objects["LLMDeployment", NAMESPACE, NAME]["spec"]
        meta = {"name": NAME, "namespace": self.namespace}
        self.api.apply(
            {"apiVersion": API_VERSION, "kind": "LLMDeployment", "metadata": meta, "spec": wanted}
        )

    async def look(self, times: int = 1, ready: int | None = None) -> None:
        for _ in range(times):
            await reconcile(Key("LLMDeployment", NAMESPACE, NAME), self.world.outside, PACE)
            for name in self.world.cluster.named("Deployment"):
                self.world.cluster.play(name, ready)
            self.world.clock.pass_seconds(1)

    def corrupt(self) -> None:
        """The candidate's pods can't fetch their model."""
        revision = self.world.status(NAME)["candidate"]["revision"]
        for (kind, _, name), pod in self.world.cluster.objects.items():
            if kind == "Pod" and revision in name:
                pod["status"] = {"phase": "Pending", "initContainerStatuses": [ENDED]}

    def row(self, *options: str) -> dict[str, str]:
        """The one line by its headings."""
        path = path_of("LLMDeployment", self.namespace, NAME) + "/status"
        change = [{"op": "add", "path": "/status", "value": self.world.status(NAME)}]
        self.api.call("PATCH", path, change, "application/json-patch+json")
        head, line = self.cluster.kubectl(
            "get", "llmd", "-n", self.namespace, *options
        ).splitlines()
        print(head, line, sep="\n")
        assert options or len(line) <= 100
        starts = [match.start() for match in re.finditer(r"\S+", head)]
        ends = [*starts[1:], max(len(head), len(line))]
        return {
            head[a:b].strip().lower(): line[a:b].strip() for a, b in zip(starts, ends, strict=True)
        }

    def cells(self) -> tuple[str, ...]:
        found = self.row()
        return tuple(
            found[name]
            for name in ("ready", "available", "reason", "version", "target", "pods", "desired")
        )


async def test_a_row_tells_an_outage_from_a_failed_candidate_and_both_versions(
    api: Api, cluster: Cluster, namespace: str
) -> None:
    shown = Shown(api, cluster, namespace)
    steps = [{"weight": 50, "holdSeconds": 600}]
    spec: dict[str, Any] = {
        "replicas": 2,
        "rollout": {"strategy": "Canary", "canary": {"steps": steps}},
    }
    await shown.deploy(**spec)
    await shown.look(2, ready=0)
    assert shown.cells() == ("Unknown", "False", "RollingOut", "", "1", "0", "2")
    await shown.look(3)
    assert shown.cells() == ("True", "True", "Serving", "1", "", "2", "2")
    shown.world.registry.aliases["bot"]["champion"] = "2"
    await shown.look(1)
    shown.corrupt()
    await shown.look(1)
    assert shown.cells() == ("False", "True", "ModelCorrupt", "1", "2", "2", "2")
    shown.world.registry.aliases["bot"]["champion"] = "3"
    await shown.look(5)
    assert "canary step 1 of 1" in shown.world.condition("Progressing", NAME)["message"]
    assert shown.cells() == ("Unknown", "True", "RollingOut", "1", "3", "4", "2")
    await shown.deploy(**spec, suspend=True)
    await shown.look(3)
    assert shown.cells() == ("False", "False", "Suspended", "1", "3", "0", "2")
    wide = shown.row("-o", "wide")
    assert (wide["model"], wide["url"]) == ("bot", f"http://{NAME}.{NAMESPACE}.svc")
    assert wide["message"].startswith("spec.suspend is true")


async def test_a_child_that_is_invalid_is_stuck_until_the_specification_changes(
    api: Api, cluster: Cluster, namespace: str
) -> None:
    world = World()
    key = Key("LLMDeployment", namespace, NAME)
    configuration = client.Configuration()
    await config.load_kube_config(str(cluster.kubeconfig), client_configuration=configuration)
    real = KubernetesCluster(client.ApiClient(configuration))
    outside = replace(world.outside, cluster=real)

    async def told(*tolerations: dict[str, str]) -> dict[str, dict[str, Any]]:
        spec = {"model": MODEL, "pod": {"tolerations": list(tolerations)}}
        meta = {"name": NAME, "namespace": namespace}
        api.apply(
            {"apiVersion": API_VERSION, "kind": "LLMDeployment", "metadata": meta, "spec": spec}
        )
        await reconcile(key, outside, PACE)
        live = api.get(key.kind, key.namespace, key.name) or {}
        return {each["type"]: each for each in live["status"]["conditions"]}

    # The CRD takes it, and a pod does not: with Exists a toleration has no value.
    found = await told({"key": "gpu", "operator": "Exists", "value": "yes"})
    assert (found["Stalled"]["status"], found["Stalled"]["reason"]) == ("True", "ChildInvalid")
    assert "value must be empty when `operator` is 'Exists'" in found["Stalled"]["message"]
    assert found["Reconciling"]["status"] == "False"
    found = await told({"key": "gpu", "operator": "Exists"})
    assert (found["Stalled"]["status"], found["Reconciling"]["status"]) == ("False", "True")
    await real.close()
