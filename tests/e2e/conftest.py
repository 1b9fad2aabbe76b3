"""The demo's road with a random two-layer model:
control plane, MLflow, process node, and the operator as installed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import secrets_told
from devstack.registry import push
from devstack.stack import Stack
from e2e.world import JUDGE_URL, MODEL, World
from unit.runtime import tiny_model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two versions that answer differently, and a third whose weights are cut short."""
    folder = tmp_path_factory.mktemp("models")
    made = {
        name: tiny_model.make(folder / name, seed=seed)
        for seed, name in enumerate(("first", "second", "corrupt"))
    }
    weights = made["corrupt"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return made


@pytest.fixture(scope="session")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[secrets_told.Collector]:
    """Gets the traces of all pods."""
    with secrets_told.collector(tmp_path_factory.mktemp("traces")) as running:
        yield running


@pytest.fixture(scope="session")
def stack(
    tmp_path_factory: pytest.TempPathFactory,
    models: dict[str, Path],
    collector: secrets_told.Collector,
) -> Iterator[Stack]:
    """A running stack with the operator installed from manifests/install.yaml and version 1 under
    `champion`."""
    folder = tmp_path_factory.mktemp("stack")
    pods_have = (f"OTEL_EXPORTER_OTLP_ENDPOINT={collector.address}",)
    with Stack(folder, provider="local", pods_have=pods_have) as running:
        running.start(progress=lambda _: None)
        push(running.mlflow.uri, MODEL, models["first"], alias="champion")
        running.cluster.kubectl(
            "apply", "--server-side", "-f", "-", stdin=_with_judge(running.install_manifest(1))
        )
        running.cluster.kubectl(
            "-n",
            "llm-operator-system",
            "rollout",
            "status",
            "deployment/llm-operator",
            "--timeout=120s",
        )
        with secrets_told.searched(running.cluster.kubeconfig, tmp_path_factory):
            yield running


def _with_judge(manifest: str) -> str:
    """The operator may ask a judge at an address of the tests' own: the node has no DNS for one
    that is named by its LLMDeployment."""
    assert "judges: []" in manifest
    return manifest.replace("judges: []", f"judges: [{JUDGE_URL}]")


@pytest.fixture(scope="session")
def world(stack: Stack) -> World:
    return World(stack)
