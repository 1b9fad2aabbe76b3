"""The demo's road with a random two-layer model: control plane, MLflow, process node, and the operator as installed."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from devstack.registry import push, set_alias
from devstack.stack import Stack
from unit.runtime import tiny_model

MODEL = "support-bot"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two versions that answer differently, and a third whose weights are cut short."""
    folder = tmp_path_factory.mktemp("models")
    made = {name: tiny_model.make(folder / name, seed=seed) for seed, name in enumerate(("first", "second", "corrupt"))}
    weights = made["corrupt"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return made


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> Iterator[Stack]:
    """A running stack with the operator installed from manifests/install.yaml and version 1 under `champion`."""
    with Stack(tmp_path_factory.mktemp("stack"), provider="local") as running:
        running.start(progress=lambda _: None)
        push(running.mlflow.uri, MODEL, models["first"], alias="champion")
        running.cluster.kubectl("apply", "--server-side", "-f", "-", stdin=running.install_manifest(poll_seconds=1))
        running.cluster.kubectl(
            "-n", "llm-operator-system", "rollout", "status", "deployment/llm-operator", "--timeout=120s"
        )
        yield running


class World:
    """What the tests do and see: kubectl, the registry, the endpoint."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.kubectl = stack.cluster.kubectl

    def llmd(self, name: str = MODEL) -> dict[str, Any]:
        return self.stack.get("llmd", name)

    def condition(self, kind: str, name: str = MODEL) -> dict[str, Any]:
        found = [c for c in self.llmd(name).get("status", {}).get("conditions", []) if c["type"] == kind]
        return found[0] if found else {"status": "absent", "reason": "", "message": ""}

    def until(self, holds: Callable[[], Any], what: str, timeout_seconds: float = 90) -> Any:
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if result := holds():
                return result
            time.sleep(0.25)
        raise AssertionError(f"not within {timeout_seconds} s: {what}\n{self.kubectl('describe', 'llmd')}")

    def serves(self, version: str) -> bool:
        status = self.llmd().get("status", {})
        return status.get("stable", {}).get("version") == version and self.condition("Ready")["status"] == "True"

    def alias(self, version: str, alias: str = "champion") -> None:
        set_alias(self.stack.mlflow.uri, MODEL, alias, version)

    def events(self) -> str:
        return self.kubectl("get", "events", "-o", "custom-columns=REASON:.reason,MESSAGE:.message", "--no-headers")


@pytest.fixture(scope="session")
def world(stack: Stack) -> World:
    return World(stack)
