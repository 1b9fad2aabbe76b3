"""Everything that the operator and its pods need around them, on one machine:
control plane, MLflow, process node."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from devstack.cache import CACHE
from devstack.cluster import Cluster, ClusterError, Provider
from devstack.processes import Child, wait_until
from devstack.registry import MlflowServer

ROOT = Path(__file__).resolve().parents[2]
NODE_NAME = "process-node"


def _told_already(_: str) -> None:
    """Takes the lines of a wait that `progress` was told of."""


class Stack:
    """A running development stack below one folder; leaving the `with` block ends all of it.

    `provider`, `context` and `image` choose the cluster as `Cluster.start` does; MLflow and the
    process node are always local. Every container on the process node has the variables
    `pods_have`, each `NAME=VALUE`.
    """

    cluster: Cluster
    mlflow: MlflowServer
    node: Child

    def __init__(
        self,
        folder: Path,
        *,
        provider: Provider = "auto",
        context: str | None = None,
        image: str | None = None,
        pods_have: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.provider = provider
        self.context = context
        self.image = image
        self.pods_have = pods_have
        self._undo: list[tuple[str, Callable[[], None]]] = []

    def __enter__(self) -> Self:
        self.remove()
        self.folder.mkdir(parents=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self, progress: Callable[[str], None] = lambda _: None) -> None:
        """End what was started, the last first. Safe to call twice."""
        while self._undo:
            name, undo = self._undo.pop()
            progress(f"waiting for the end of {name}")
            undo()

    def remove(self) -> None:
        """Remove what it wrote: the MLflow server's folder has every model that was pushed to
        it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def left(self) -> list[str]:
        """What is in its folder, logs among it, after the end;
        a local control plane takes its own with it."""
        return (
            sorted(each.name + "/" * each.is_dir() for each in self.folder.iterdir())
            if self.folder.is_dir()
            else []
        )

    def start(self, progress: Callable[[str], None] = print) -> None:
        """Start the control plane while MLflow starts, then the process node.

        All from one thread: Linux ends a child with the thread that started it,
        not with the process.
        """
        self.mlflow = MlflowServer(self.folder / "mlflow")
        self._undo.append(("the MLflow server", self.mlflow.stop))
        self.mlflow.launch()
        self.cluster = Cluster.start(
            self.folder / "cluster",
            progress=progress,
            provider=self.provider,
            context=self.context,
            image=self.image,
        )
        self._undo.append(("the control plane", self.cluster.stop))
        progress("waiting for the process node")
        self._start_node()
        progress("waiting for the MLflow server")
        self.mlflow.wait(_told_already)

    def _start_node(self) -> None:
        command = [
            *(
                sys.executable,
                "-m",
                "node",
                "--kubeconfig",
                str(self.cluster.kubeconfig),
                "--name",
                NODE_NAME,
            ),
            *("--folder", str(self.folder / "node"), "--path", str(Path(sys.executable).parent)),
            # All pods share this machine's network: each must listen on its own address.
            *("--env", "API_HOST=$(POD_IP)"),
            # The kernels are compiled once, as for an image, and not in each pod.
            *("--env", f"XDG_CACHE_HOME={CACHE / 'process-node'}"),
            *(word for each in self.pods_have for word in ("--env", each)),
        ]
        # It makes its certificate with the cluster's own programs where they are on the PATH.
        env = {"PYTHONPATH": str(ROOT / "hack"), "PATH": self.cluster.environment()["PATH"]}
        self.node = Child("process node", command, self.folder / "node.log", env=env)
        self._undo.append(
            ("the process node and its pods", lambda: self.node.stop(grace_seconds=30))
        )
        wait_until(self.node, self._node_ready, timeout_seconds=60, say=_told_already)
        if self.cluster.kind == "kind":
            self._keep_pods_here()

    def _keep_pods_here(self) -> None:
        """Cordon the nodes of a kind cluster, which is ours alone:
        they have no images, the process node needs none."""
        for node in self.get("nodes")["items"]:
            if node["metadata"]["name"] != NODE_NAME:
                self.cluster.kubectl("cordon", node["metadata"]["name"])

    def _node_ready(self) -> bool:
        try:
            conditions = self.get("node", NODE_NAME)["status"]["conditions"]
        except (ClusterError, KeyError):
            return False
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get -o json` of one object or a list."""
        found: dict[str, Any] = json.loads(self.cluster.kubectl("get", *arguments, "-o", "json"))
        return found

    def service_url(self, name: str) -> str:
        """Where the process node makes a Service's first port reachable on this machine."""
        service = self.get("service", name)
        annotations = service["metadata"].get("annotations", {})
        address = annotations.get("process-node.llm-operator.dev/address")
        port = service["spec"]["ports"][0]["port"]
        if address:
            return f"http://{address}"
        return f"http://{service['spec']['clusterIP']}" + (f":{port}" if port != 80 else "")

    def install_manifest(self, poll_seconds: int = 5) -> str:
        """manifests/install.yaml with this stack's MLflow server as the default connection."""
        text = (ROOT / "manifests" / "install.yaml").read_text()
        for edit in self.install_edits(poll_seconds):
            text = text.replace(*edit)
        return text

    def install_edits(self, poll_seconds: int = 5) -> tuple[tuple[str, str], ...]:
        """What a person would edit in manifests/install.yaml for this machine: (from, to)."""
        return (
            ("http://mlflow.mlflow.svc.cluster.local:5000", self.mlflow.uri),
            ("pollSeconds: 30", f"pollSeconds: {poll_seconds}"),
        )
