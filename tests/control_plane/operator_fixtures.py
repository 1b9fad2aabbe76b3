"""A running operator under the chart's own permissions, a registry to promote in,
and a kubelet played by hand."""

from __future__ import annotations

import base64
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import secrets_told
from devstack.cluster import Cluster
from devstack.ports import free_port
from devstack.registry import MlflowServer
from llm_operator import crds
from llm_operator.ports.cluster import path_of
from waiting import PATIENCE_SECONDS, eventually

ROOT = Path(__file__).resolve().parents[2]
NODE = "played"
EVALUATION_POD = {
    "spec": {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "evaluation",
                "image": "example.com/llm-operator:1",
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
    }
}
"""No node here runs it: a test ends it by hand.
The operator's namespace takes restricted pods only."""
IMAGE = "example.com/llm-runtime:1"
Json = dict[str, Any]


class Api:
    """The administrator's plain REST client."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        server = config["clusters"][0]["cluster"]
        user = config["users"][0]["user"]
        self.server = server["server"]
        self.ca = base64.b64decode(server["certificate-authority-data"]).decode()
        self.client = httpx.Client(
            base_url=self.server,
            verify=ssl.create_default_context(cadata=self.ca),
            headers={"Authorization": f"Bearer {user['token']}"},
            timeout=20,
            trust_env=False,
        )

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        content: str = "application/json",
        **query: str,
    ) -> Json:
        answer = self.client.request(
            method, path, json=body, params=query, headers={"Content-Type": content}
        )
        if answer.is_error:
            raise Refusal(answer.status_code, answer.json().get("message", answer.text))
        return dict(answer.json())

    def get(self, kind: str, namespace: str, name: str) -> Json | None:
        try:
            return self.call("GET", path_of(kind, namespace, name))
        except Refusal as error:
            if error.status == 404:
                return None
            raise

    def list(self, kind: str, namespace: str, labels: str = "") -> list[Json]:
        query = {"labelSelector": labels} if labels else {}
        return list(self.call("GET", path_of(kind, namespace), **query)["items"])

    def apply(self, manifest: Json, manager: str = "test", **query: str) -> Json:
        meta = manifest["metadata"]
        path = path_of(manifest["kind"], meta.get("namespace", ""), meta["name"])
        kind = "application/apply-patch+yaml"
        return self.call("PATCH", path, manifest, kind, fieldManager=manager, force="true", **query)

    def patch(
        self, kind: str, namespace: str, name: str, change: Json, subresource: str = ""
    ) -> Json:
        path = path_of(kind, namespace, name) + subresource
        return self.call("PATCH", path, change, "application/merge-patch+json")

    def delete(self, kind: str, namespace: str, name: str, **body: Any) -> None:
        self.call("DELETE", path_of(kind, namespace, name), body or None)


class Refusal(Exception):
    """The API server said no."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class Models:
    """The registry, as a person who promotes uses it.
    Versions have no artifacts: nobody fetches here."""

    def __init__(self, server: MlflowServer) -> None:
        self.server = server
        self.uri = server.uri
        self.credentials = server.folder / "credentials"
        """The account of the operator's connection. This server asks for none."""
        self.credentials.mkdir()
        (self.credentials / "username").write_text("operator")
        (self.credentials / "password").write_text(secrets_told.invented("mlflow-password"))

    def call(self, path: str, method: str = "POST", **body: Any) -> Json:
        answer = httpx.request(
            method, f"{self.uri}/api/2.0/mlflow/{path}", json=body, timeout=20, trust_env=False
        )
        answer.raise_for_status()
        return dict(answer.json())

    def create(self, name: str, versions: int = 2, alias: str | None = "champion") -> None:
        self.call("registered-models/create", name=name)
        for number in range(1, versions + 1):
            self.call("model-versions/create", name=name, source=f"s3://models/{name}/{number}")
        if alias:
            self.promote(name, 1, alias)

    def promote(self, name: str, version: int, alias: str = "champion") -> None:
        self.call("registered-models/alias", name=name, alias=alias, version=str(version))

    def remove_alias(self, name: str, alias: str = "champion") -> None:
        self.call("registered-models/alias", "DELETE", name=name, alias=alias)

    def stage(self, name: str, version: int, stage: str) -> None:
        body: Json = {
            "name": name,
            "version": str(version),
            "stage": stage,
            "archive_existing_versions": False,
        }
        self.call("model-versions/transition-stage", **body)


class PlayedKubelet:
    """One node whose pods get ready at once, unless a test says what becomes of them.
    Pods at their end stay so."""

    def __init__(self, api: Api, name: str = NODE) -> None:
        self.api = api
        self.name = name
        self.fate: dict[tuple[str, str], Json] = {}
        """Container status by (namespace, model version) instead of getting ready;
        {} means: stay pending."""
        self._size: dict[str, str | None] = {"cpu": "1000", "memory": "1000Gi", "pods": "10000"}
        self._versions: dict[tuple[str, str], str] = {}
        self._stop = threading.Event()
        self._heartbeat = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "labels": {"played": "yes", "kubernetes.io/hostname": self.name},
            },
            "spec": {"taints": [{"key": "played", "value": "yes", "effect": "NoSchedule"}]},
        }
        self.api.call(
            "PATCH",
            f"/api/v1/nodes/{self.name}",
            node,
            "application/apply-patch+yaml",
            fieldManager="test",
        )
        self._thread.start()

    def resize(self, resource: str, amount: str | None) -> None:
        """Have the node offer so much of a resource, or none of it, from the next look on."""
        self._size[resource] = amount
        self._heartbeat = 0.0

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self.api.call("DELETE", f"/api/v1/nodes/{self.name}")

    def _run(self) -> None:
        took = 0.0
        # A look at hundreds of pods takes so long that ten a second would leave the operator a part
        # of the machine only.
        while not self._stop.wait(max(0.1, 3 * took)):
            began = time.monotonic()
            try:
                self._beat()
                pods = self._pods()
            except (Refusal, httpx.HTTPError):
                continue
            for pod in pods:
                # One pod whose ConfigMap is gone,
                # as in a namespace that is deleted, holds up no other.
                with suppress(Refusal, httpx.HTTPError):
                    self._play(pod)
            took = time.monotonic() - began

    def _beat(self) -> None:
        if time.monotonic() - self._heartbeat < 5:
            return
        self._heartbeat = time.monotonic()
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        ready = {"type": "Ready", "status": "True", "reason": "Played", "lastHeartbeatTime": now}
        status = {
            "status": {"conditions": [ready], "capacity": self._size, "allocatable": self._size}
        }
        self.api.call(
            "PATCH", f"/api/v1/nodes/{self.name}/status", status, "application/merge-patch+json"
        )
        self.api.call("PATCH", f"/api/v1/nodes/{self.name}", {"spec": {"taints": [
            {"key": "played", "value": "yes", "effect": "NoSchedule"}]}}, "application/merge-patch+json")  # fmt: skip

    def _pods(self) -> list[Json]:
        return list(
            self.api.call("GET", "/api/v1/pods", fieldSelector=f"spec.nodeName={self.name}")[
                "items"
            ]
        )

    def _play(self, pod: Json) -> None:
        meta = pod["metadata"]
        if "deletionTimestamp" in meta:
            self.api.delete("Pod", meta["namespace"], meta["name"], gracePeriodSeconds=0)
            return
        if pod["status"].get("phase") in ("Failed", "Succeeded"):
            return
        status = self._status(pod)
        known = {k: pod["status"].get(k) for k in status}
        if known != status:
            self.api.patch("Pod", meta["namespace"], meta["name"], {"status": status}, "/status")

    def _status(self, pod: Json) -> Json:
        namespace = pod["metadata"]["namespace"]
        fate = self.fate.get((namespace, pod["spec"]["containers"][0]["image"]))
        fate = self.fate.get((namespace, self._version(pod)), fate)
        conditions = [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        ]
        if fate is None:
            moment = {"lastTransitionTime": "2026-01-01T00:00:00Z", "status": "True"}
            conditions += [{"type": kind, **moment} for kind in ("Ready", "ContainersReady")]
            return {"phase": "Running", "conditions": conditions}
        return {"phase": "Pending", "conditions": conditions, **fate}

    def _version(self, pod: Json) -> str:
        volume = next(v for v in pod["spec"]["volumes"] if v["name"] == "config")
        key = pod["metadata"]["namespace"], volume["configMap"]["name"]
        if key not in self._versions:  # It is immutable.
            config = json.loads(
                self.api.call("GET", path_of("ConfigMap", *key))["data"]["config.json"]
            )
            self._versions[key] = str(config["model"]["mlflow"]["version"])
        return self._versions[key]


class Operator:
    """`python -m llm_operator` as a child process,
    with the chart's ServiceAccount and nothing more.

    With `restarts` one that ends by itself is started again,
    as a kubelet would: a busy machine may cost it its Lease.
    """

    def __init__(
        self,
        folder: Path,
        kubeconfig: Path,
        settings: Json,
        name: str = "operator",
        *,
        restarts: bool = False,
    ) -> None:
        self.folder = folder
        self.kubeconfig = kubeconfig
        self.restarts = restarts
        self.ends: list[str] = []
        """Each time that it ended by itself: its exit status and its last lines."""
        self._changing = threading.Lock()
        self._stopped = False
        self.settings = {**settings, "port": free_port()}
        self.config = folder / f"{name}.yaml"
        self.log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.write()

    def write(self) -> None:
        self.config.write_text(yaml.safe_dump(self.settings))

    def start(self) -> None:
        process = self.process = self._begin()
        self._stopped = False
        if self.restarts:
            threading.Thread(target=self._follow, args=(process,), daemon=True).start()
        eventually(lambda: self.answers("/livez"), 90)
        secrets_told.page(
            f"http://127.0.0.1:{self.settings['port']}/metrics", f"operator of {self.log}"
        )

    def _begin(self) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "KUBECONFIG": str(self.kubeconfig),
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("operator", "runtime")),
            "API_HOST": "127.0.0.1",
        }
        command = [sys.executable, "-m", "llm_operator", "--config", str(self.config)]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def _follow(self, process: subprocess.Popen[bytes]) -> None:
        while process.wait() is not None:
            with self._changing:
                if self.process is not process or self._stopped:
                    return
                self.ends.append(f"status {process.returncode}: {self.log.read_text()[-2000:]}")
                process = self.process = self._begin()

    def answers(self, path: str) -> str | None:
        try:
            return httpx.get(
                f"http://127.0.0.1:{self.settings['port']}{path}", timeout=2, trust_env=False
            ).text
        except httpx.HTTPError:
            assert self.process is None or self.process.poll() is None, self.log.read_text()[-3000:]
            return None

    def writes(self) -> dict[str, float]:
        """How often this process has written, by the metric's labels. Without the Lease."""
        found = self._samples('llm_operator_writes_total{kind="')
        return {name: count for name, count in found.items() if 'kind="Lease"' not in name}

    def looks(self) -> float:
        """How often it has looked at LLMDeployments."""
        name = 'llm_operator_reconcile_duration_seconds_count{kind="LLMDeployment"'
        return sum(self._samples(name).values())

    def _samples(self, start: str) -> dict[str, float]:
        lines = (self.answers("/metrics") or "").splitlines()
        pairs = (line.rpartition(" ") for line in lines if line.startswith(start))
        return {name: float(value) for name, _, value in pairs}

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> int:
        with self._changing:
            assert self.process is not None
            self._stopped = True
            self.process.send_signal(sign)
        return self.process.wait(20)


class Place:
    """A namespace of one test and shortcuts into it."""

    def __init__(self, api: Api, name: str, kubelet: PlayedKubelet, models: Models) -> None:
        self.api = api
        self.name = name
        self.kubelet = kubelet
        self.models = models

    def model(self, versions: int = 2, alias: str | None = "champion") -> str:
        name = f"{self.name}-model"
        self.models.create(name, versions, alias)
        return name

    def deploy(self, name: str = "bot", model: str | None = None, **spec: Any) -> Json:
        mlflow = spec.pop("mlflow", None) or {
            "name": model or f"{self.name}-model",
            "alias": "champion",
        }
        pod = {
            "nodeSelector": {"played": "yes"},
            "tolerations": [{"key": "played", "operator": "Exists"}],
            **spec.pop("pod", {}),
        }
        labels = spec.pop("labels", {})
        manifest = {
            "apiVersion": crds.API_VERSION,
            "kind": "LLMDeployment",
            "metadata": {"name": name, "namespace": self.name, "labels": labels},
            "spec": {"model": {"mlflow": mlflow}, "pod": pod, **spec},
        }
        return self.api.apply(manifest)

    def key(self, name: str = "team", **spec: Any) -> Json:
        meta = {"name": name, "namespace": self.name}
        return self.api.apply(
            {"apiVersion": crds.API_VERSION, "kind": "ApiKey", "metadata": meta, "spec": spec}
        )

    def get(self, kind: str, name: str) -> Json | None:
        return self.api.get(kind, self.name, name)

    def look_again(self, operator: Operator, number: int = 0, name: str = "bot") -> None:
        """Have the operator look once more, by a change that changes nothing."""
        looked = operator.looks()
        note = {"metadata": {"annotations": {"example.com/note": str(number)}}}
        self.api.patch("LLMDeployment", self.name, name, note)
        eventually(lambda: operator.looks() > looked)

    def status(self, name: str = "bot", kind: str = "LLMDeployment") -> Json:
        return dict((self.get(kind, name) or {}).get("status") or {})

    def condition(self, kind: str, name: str = "bot", of: str = "LLMDeployment") -> Json:
        return next(
            (c for c in self.status(name, of).get("conditions", []) if c["type"] == kind), {}
        )

    def ready(
        self, name: str = "bot", version: str | None = None, seconds: float = PATIENCE_SECONDS
    ) -> Json:
        """Wait for Ready=True of the present generation, serving `version` if given;
        returns the status."""

        def holds() -> Json | None:
            resource = self.get("LLMDeployment", name) or {}
            status = resource.get("status", {})
            ready = next(c for c in status["conditions"] if c["type"] == "Ready")
            current = (
                ready["status"] == "True"
                and ready["observedGeneration"] == resource["metadata"]["generation"]
            )
            assert current, ready
            return status if version is None or status["stable"]["version"] == version else None

        return dict(eventually(holds, seconds))

    def selected(self, name: str = "bot") -> str:
        service = self.get("Service", name) or {}
        return str(service["spec"]["selector"]["llm-operator.dev/revision"])

    def events(self, reason: str) -> list[Json]:
        return [event for event in self.api.list("Event", self.name) if event["reason"] == reason]


@pytest.fixture(scope="session")
def api(cluster: Cluster) -> Api:
    """The administrator's client; the CRDs are installed and established."""
    client = Api(cluster.kubeconfig)
    for crd in crds.definitions().values():
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
        client.call(
            "PATCH", path, crd, "application/apply-patch+yaml", fieldManager="test", force="true"
        )
        eventually(partial(established, client, path))
    return client


def established(client: Api, path: str) -> bool:
    """Whether a CRD is served and its schema is whole."""
    crd = client.call("GET", path)
    conditions = {c["type"]: c["status"] for c in crd.get("status", {}).get("conditions", [])}
    return (
        conditions.get("Established") == "True" and conditions.get("NonStructuralSchema") != "True"
    )


@pytest.fixture(scope="session")
def account(api: Api) -> Iterator[Path]:
    """A kubeconfig with the permissions that the chart gives the operator:
    not the administrator's."""
    wanted = (
        "Namespace",
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
    )
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    for manifest in yaml.safe_load_all((ROOT / "manifests" / "install.yaml").read_text()):
        if not manifest or manifest["kind"] not in wanted:
            continue
        meta = manifest["metadata"]
        plural = manifest["kind"].lower() + "s"
        root = rbac if "Role" in manifest["kind"] else "/api/v1"
        place = f"/namespaces/{meta['namespace']}" if "namespace" in meta else ""
        path = f"{root}{place}/{plural}/{meta['name']}"
        api.call(
            "PATCH",
            path,
            manifest,
            "application/apply-patch+yaml",
            fieldManager="test",
            force="true",
        )
    with tempfile.TemporaryDirectory() as folder:
        yield account_config(api, Path(folder), "llm-operator-system", "llm-operator")


def account_config(api: Api, folder: Path, namespace: str, name: str) -> Path:
    """A kubeconfig with a ServiceAccount's token."""
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
    answer = api.call("POST", path, {"spec": {"expirationSeconds": 7200}})
    token = secrets_told.used(f"token of {namespace}/{name}", answer["status"]["token"])
    file = folder / "kubeconfig"
    file.write_text(yaml.safe_dump(_kubeconfig(api, token)))
    return file


def _kubeconfig(api: Api, token: str) -> Json:
    ca = base64.b64encode(api.ca.encode()).decode()
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [
            {"name": "test", "cluster": {"server": api.server, "certificate-authority-data": ca}}
        ],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    """A real MLflow server that may send webhooks to loopback."""
    env = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode(),
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
    }
    server = MlflowServer(tmp_path_factory.mktemp("models"), env=env)
    server.start()
    yield Models(server)
    server.stop()


@pytest.fixture(scope="session")
def kubelet(api: Api) -> Iterator[PlayedKubelet]:
    """The node that all pods of these tests run on."""
    played = PlayedKubelet(api)
    played.start()
    yield played
    played.stop()


SHORT_LEASE = {"durationSeconds": 3, "renewDeadlineSeconds": 2}
"""For tests that kill the leader and wait for the next one.
A busy machine loses such a Lease once in a while."""


def settings(models: Models, lease: Json | None = None, **more: Any) -> Json:
    """The operator's configuration with a pace for tests. An operator that is told to end gives its
    Lease back, so the usual duration holds up nobody. `lease`: what differs from it."""
    return {
        "runtimeImage": IMAGE,
        "workers": 4,
        "pollSeconds": 0.5,
        "verifySeconds": 1,
        "settleSeconds": 0.5,
        "logFormat": "console",
        "lease": {"namespace": "llm-operator-system", "retrySeconds": 0.3, **(lease or {})},
        "connections": {
            "default": {"trackingUri": models.uri, "credentialsFolder": str(models.credentials)}
        },
        "evaluation": {"podTemplate": EVALUATION_POD},
        **more,
    }


@pytest.fixture(scope="session")
def lease() -> Json:
    """What the session's operator has of its own in its Lease's settings."""
    return {}


@pytest.fixture(scope="session")
def operator(
    api: Api, account: Path, models: Models, lease: Json, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    """The one operator of the session."""
    running = Operator(
        tmp_path_factory.mktemp("operator"), account, settings(models, lease), restarts=True
    )
    running.start()
    yield running
    running.stop()
    log = running.log.read_text()
    unexplained = [
        end for end in running.ends if "ending, so that only one operator works" not in end
    ]
    assert not unexplained, unexplained[0]
    assert "unexpected" not in log, log[-4000:]
    denied = [line for line in log.splitlines() if "is forbidden: User" in line]
    assert not denied, denied[:3]


@pytest.fixture(scope="module")
def quiet(operator: Operator) -> Iterator[None]:
    """The session's operator stops for a while:
    here the tests start and end operators themselves."""
    operator.stop()
    yield
    operator.start()


@pytest.fixture
def place(api: Api, operator: Operator, kubelet: PlayedKubelet, models: Models) -> Iterator[Place]:
    """A fresh namespace under the running operator."""
    name = f"t{time.time_ns() % 10**12}"
    meta = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    api.call("POST", "/api/v1/namespaces", meta)
    yield Place(api, name, kubelet, models)
    api.call("DELETE", f"/api/v1/namespaces/{name}")
