"""The product as it is shipped: images, chart and a kind cluster,
with an MLflow server beside it."""

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from devstack.load import RequestLoop, Tally
from devstack.registry import MlflowServer
from e2e.world import World
from kindstack.cluster import KindCluster

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "llm-operator"
NAMESPACE = "llm-operator-system"
RELEASE = "llm-operator"
OPERATOR = f"app.kubernetes.io/name=llm-operator,app.kubernetes.io/instance={RELEASE}"
PROMPT = "hello world"


class Site:
    """A cluster, a registry that its pods reach, and the operator as `helm install` makes it."""

    def __init__(self, cluster: KindCluster, mlflow: MlflowServer) -> None:
        self.cluster = cluster
        self.mlflow = mlflow
        self.installed_seconds = 0.0

    def image_values(self) -> dict[str, Any]:
        """What everybody who installs has to say: where the images and the registry are."""
        operator, runtime = (
            image.rpartition(":")
            for image in (self.cluster.operator_image, self.cluster.runtime_image)
        )
        return {
            "image": {"repository": operator[0], "tag": operator[2]},
            "runtime": {"image": {"repository": runtime[0], "tag": runtime[2]}},
            "connections": {"default": {"trackingUri": self.mlflow.uri}},
        }

    def helm(self, verb: str, *options: str, chart: Path = CHART, **values: Any) -> float:
        """`helm install` or `upgrade` with these values over the images';
        the seconds until it is rolled out."""
        chosen = merged(self.image_values(), values)
        started = time.monotonic()
        command = (
            verb,
            RELEASE,
            str(chart),
            "--namespace",
            NAMESPACE,
            "--create-namespace",
            "--values",
            "-",
            *options,
        )
        self.cluster.helm(*command, stdin=json.dumps(chosen))
        self.rolled_out()
        return time.monotonic() - started

    def installed(self) -> bool:
        return RELEASE in self.cluster.helm("list", "--namespace", NAMESPACE, "--short").split()

    def rolled_out(self) -> None:
        command = ("rollout", "status", f"deployment/{RELEASE}", "--timeout=180s")
        self.cluster.kubectl("-n", NAMESPACE, *command)

    def get(self, *arguments: str) -> dict[str, Any]:
        return self.cluster.get(*arguments)

    def service_url(self, name: str, namespace: str = "default") -> str:
        return self.cluster.service_address(name, namespace)

    def key(self, name: str) -> str:
        """The text of an ApiKey, from its Secret."""
        return base64.b64decode(self.get("secret", f"{name}-llm-key")["data"]["api-key"]).decode()

    def pods(self, name: str) -> list[dict[str, Any]]:
        """The pods of an LLMDeployment that are not on their way out."""
        found = self.get("pods", "-l", f"llm-operator.dev/deployment={name}")["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def operator_pods(self) -> list[dict[str, Any]]:
        found = self.get("pods", "-n", NAMESPACE, "-l", OPERATOR)["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


class Front(World):
    """An LLMDeployment of this site as its clients and its owner see it."""

    stack: Any

    def __init__(self, site: Site, name: str) -> None:
        super().__init__(site)  # type: ignore[arg-type]  # a Site has what World uses of a Stack
        self.site = site
        self.name = name

    def ready(self, timeout_seconds: int = 240) -> None:
        self.kubectl(
            "wait", f"llmd/{self.name}", "--for=condition=Ready", f"--timeout={timeout_seconds}s"
        )

    def is_ready(self) -> bool:
        return bool(self.condition("Ready", self.name)["status"] == "True")

    def status(self) -> dict[str, Any]:
        return dict(self.llmd(self.name).get("status", {}))

    def told(self, *words: str) -> bool:
        """Whether the status or an Event of this very deployment says one of these:
        Events outlive their objects."""
        fields = f"involvedObject.uid={self.llmd(self.name)['metadata']['uid']}"
        events = self.kubectl("get", "events", "--field-selector", fields, "-o", "json")
        return any(word in events + json.dumps(self.status()) for word in words)

    @property
    def url(self) -> str:
        return self.site.service_url(self.name)

    @contextmanager
    def load(self, key: str = "", clients: int = 4, max_tokens: int = 60) -> Iterator[Tally]:
        """Requests all the time, every other one a stream; none may fail or be cut."""
        loop = RequestLoop(
            self.url, key, self.name, PROMPT, clients, max_tokens, pause_seconds=0.2
        ).start()
        try:
            self.until(lambda: loop.tally.requests >= 2 * clients, "requests before")
            yield loop.tally
            before = loop.tally.requests
            self.until(lambda: loop.tally.requests >= before + 2 * clients, "requests afterwards")
        finally:
            tally = loop.stop()
        assert tally.failures == [], (
            f"{len(tally.failures)} of {tally.requests} requests failed: {tally.failures[:5]}"
        )


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two trees of values, as helm merges them."""
    both = {
        key: merged(below[key], value)
        for key, value in above.items()
        if isinstance(value, dict) and key in below
    }
    return {**below, **above, **both}


def seconds_since_made(pod: dict[str, Any], condition: str) -> float:
    """From a pod's creation to its condition, by the cluster's own clock, in whole seconds."""
    made = datetime.fromisoformat(pod["metadata"]["creationTimestamp"])
    (at,) = [c["lastTransitionTime"] for c in pod["status"]["conditions"] if c["type"] == condition]
    return (datetime.fromisoformat(at) - made).total_seconds()


def inside(pod: dict[str, Any], cluster: KindCluster, *command: str) -> str:
    """Run a command in the serving container of a pod."""
    meta = pod["metadata"]
    return cluster.kubectl(
        "-n", meta["namespace"], "exec", meta["name"], "-c", "runtime", "--", *command
    )
