"""A real kind cluster of two nodes, which hack/e2e-kind has started, a real MLflow server, and the chart installed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack.registry import MlflowServer
from kindstack.__main__ import FOLDER
from kindstack.cluster import KindCluster

NAMESPACE = "llm-operator-system"


@pytest.fixture(scope="session")
def cluster() -> KindCluster:
    return KindCluster.attach(FOLDER)


@pytest.fixture(scope="session")
def mlflow(cluster: KindCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """On this machine's address in the nodes' network: pods reach it as they would reach any server."""
    folder, anyone = (
        tmp_path_factory.mktemp("mlflow"),
        ("--allowed-hosts", "*"),
    )  # MLflow refuses other names than localhost
    server = MlflowServer(folder, host=cluster.host_address(), options=anyone)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def installed(cluster: KindCluster, mlflow: MlflowServer) -> Iterator[str]:
    """The chart with its defaults, but for the images and the registry's address; its namespace."""
    operator, runtime = (name.split(":") for name in (cluster.operator_image, cluster.runtime_image))
    values = {
        "image.repository": operator[0],
        "image.tag": operator[1],
        "runtime.image.repository": runtime[0],
        "runtime.image.tag": runtime[1],
        "connections.default.trackingUri": mlflow.uri,
    }
    chart = Path(__file__).resolve().parents[2] / "charts" / "llm-operator"
    cluster.helm(
        *("upgrade", "--install", "llm-operator", str(chart), "--namespace", NAMESPACE, "--create-namespace"),
        *(word for name, value in values.items() for word in ("--set-string", f"{name}={value}")),
    )
    yield NAMESPACE
    cluster.helm("uninstall", "llm-operator", "--namespace", NAMESPACE, "--wait")
    cluster.kubectl("delete", "namespace", NAMESPACE)
