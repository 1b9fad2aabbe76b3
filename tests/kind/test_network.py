"""The network that the rest of this tier stands on:
node to node, the cluster's DNS, and from outside."""

import json

import httpx
import pytest

from kindstack.cluster import KindCluster
from waiting import eventually

pytestmark = pytest.mark.kind


def test_this_machine_and_pods_of_both_nodes_reach_a_service(cluster: KindCluster) -> None:
    namespace = "reach"
    cluster.kubectl("create", "namespace", namespace)
    try:
        serve = ["python", "-m", "http.server", "8080", "--directory", "/opt/app"]
        for node in cluster.nodes:
            cluster.kubectl(
                "apply", "-f", "-", stdin=pod(namespace, node, cluster.operator_image, serve)
            )
        cluster.kubectl(
            "-n", namespace, "expose", "pod", cluster.nodes[-1], "--name=web", "--port=8080"
        )
        cluster.kubectl(
            "-n", namespace, "wait", "pods", "--all", "--for=condition=Ready", "--timeout=120s"
        )
        address = cluster.service_address("web", namespace)
        assert eventually(lambda: httpx.get(address, trust_env=False)).status_code == 200
        ask = (
            "import urllib.request as r; print(r.urlopen('http://web.reach.svc.cluster.local:8080',"
            " timeout=10).status)"
        )
        for node in cluster.nodes:
            asked = eventually(
                lambda node=node: cluster.kubectl(
                    "-n", namespace, "exec", node, "--", "python", "-c", ask
                )
            )
            assert asked.strip() == "200", node
    finally:
        cluster.kubectl("delete", "namespace", namespace)


def pod(namespace: str, node: str, image: str, command: list[str]) -> str:
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": node, "namespace": namespace, "labels": {"node": node}},
            "spec": {
                "nodeName": node,
                "containers": [{"name": "main", "image": image, "command": command}],
            },
        }
    )
