"""A real control plane for the session. No skip: a cluster that cannot be had is a failure."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import secrets_told
from devstack.cluster import Cluster

HACK = Path(__file__).resolve().parents[2] / "hack"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One local cluster for the whole session; tests keep apart by namespaces."""
    started = Cluster.start(tmp_path_factory.mktemp("cluster") / "state", provider="local")
    try:
        with secrets_told.searched(started.kubeconfig, tmp_path_factory):
            yield started
    finally:
        started.stop()


@dataclass(frozen=True)
class ProcessNode:
    """A process node of the cluster, as a program of its own."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


@pytest.fixture(scope="module")
def process_node(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProcessNode]:
    """Runs the pods of a module, and leaves with it:
    elsewhere the tests play kubelet themselves."""
    folder = tmp_path_factory.mktemp("node")
    log = folder / "node.log"
    command = [
        sys.executable,
        "-m",
        "node",
        "--kubeconfig",
        str(cluster.kubeconfig),
        "--folder",
        str(folder / "state"),
    ]
    command += ["--path", str(Path(sys.executable).parent), "--env", "API_HOST=$(POD_IP)"]
    environment = {**cluster.environment(), "PYTHONPATH": str(HACK)}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        cluster.kubectl("wait", "--for=create", "node/process-node", "--timeout=30s")
        cluster.kubectl("wait", "--for=condition=Ready", "node/process-node", "--timeout=30s")
        yield ProcessNode("process-node", process, log)
    finally:
        process.terminate()
        process.wait(60)
