"""Every right of the chart's role is needed: each verb is used,
and without a rule something is forbidden and told."""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from control_plane.operator_fixtures import (
    ROOT,
    Api,
    Json,
    Models,
    Operator,
    Place,
    PlayedKubelet,
    account_config,
    established,
    settings,
)
from devstack.gateway import http_route_crd
from llm_operator.plans.names import DEPLOYMENT_LABEL, MANAGED_SELECTOR
from llm_operator.ports.cluster import path_of
from waiting import eventually

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]

RBAC = "/apis/rbac.authorization.k8s.io/v1"
CORE = "/api/v1"
SERVER_SIDE = "application/apply-patch+yaml"
GRANTED: list[Json] = next(
    manifest["rules"]
    for manifest in yaml.safe_load_all((ROOT / "manifests" / "install.yaml").read_text())
    if manifest
    and manifest["kind"] == "ClusterRole"
    and manifest["metadata"]["name"] == "llm-operator"
)
ONLY_WITH_AN_ADMISSION_PLUGIN = frozenset({"llmdeployments/finalizers"})
"""OwnerReferencesPermissionEnforcement asks for these;
it is off unless a cluster's owner turns it on."""
UNTOLD = ONLY_WITH_AN_ADMISSION_PLUGIN | {"nodes", "replicasets"}
"""Nodes are asked for a hint, and not at all by an operator of some namespaces; ReplicaSets only
before smoke prompts, whose gate says what can't be read."""
CASES = [rule for rule in GRANTED if not UNTOLD & set(rule["resources"])]


def foreign_crd(group: str, version: str, kind: str) -> Json:
    """As far as the operator's manifests need it: whose kind it is brings the real one."""
    plural = f"{kind.lower()}s"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
        },
    }


FOREIGN = (
    foreign_crd("monitoring.coreos.com", "v1", "ServiceMonitor"),
    foreign_crd("keda.sh", "v1alpha1", "ScaledObject"),
)


@pytest.fixture(scope="module", autouse=True)
def foreign_kinds(api: Api, quiet: None) -> Iterator[None]:
    """The kinds that the operator uses where they are installed;
    its Role in each test covers them like the rest."""
    for crd in (*FOREIGN, http_route_crd()):
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
        api.call("PATCH", path, crd, SERVER_SIDE, fieldManager="test", force="true")
        eventually(lambda path=path: established(api, path))
    yield
    for crd in FOREIGN:
        name = crd["metadata"]["name"]
        api.call("DELETE", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")


@pytest.fixture
def empty(
    api: Api, kubelet: PlayedKubelet, models: Models, request: pytest.FixtureRequest
) -> Iterator[Place]:
    """A namespace that no operator looks at yet."""
    name = f"may-{abs(hash(request.node.name)) % 10**9}"
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    yield Place(api, name, kubelet, models)
    api.call("DELETE", f"/api/v1/namespaces/{name}")


UNLABELLED = {DEPLOYMENT_LABEL: None, MANAGED_SELECTOR.partition("=")[0]: None}
"""A patch of labels."""


def operator_with(rules: list[Json], place: Place, models: Models, folder: Path) -> Operator:
    """An operator for this namespace alone, under a Role with these rules and one for its Lease."""
    meta = {"name": "trial", "namespace": place.name}
    leases = {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "verbs": ["get", "create", "patch"],
    }
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": meta,
        "rules": [*rules, leases],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": meta,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "trial"},
        "subjects": [{"kind": "ServiceAccount", "name": "trial", "namespace": place.name}],
    }
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}
    for root, plural, manifest in (
        (CORE, "serviceaccounts", account), (RBAC, "roles", role), (RBAC, "rolebindings", binding),
    ):  # fmt: skip
        path = f"{root}/namespaces/{place.name}/{plural}/trial"
        place.api.call("PATCH", path, manifest, SERVER_SIDE, fieldManager="test", force="true")
    kubeconfig = account_config(place.api, folder, place.name, "trial")
    chosen = settings(models, watchNamespaces=[place.name])
    chosen["lease"] = {**chosen["lease"], "namespace": place.name}
    return Operator(folder, kubeconfig, chosen)


def everything(place: Place) -> None:
    """A deployment and a key with every kind of child; the model has three versions."""
    place.model(versions=3)
    place.deploy(
        autoscaling={
            "minReplicas": 2,
            "maxReplicas": 3,
            "metrics": [{"type": "CPU", "target": 80}],
        },
        resources={"requests": {"cpu": "100m"}},
        rollout={
            "strategy": "Canary",
            "canary": {
                "steps": [{"weight": 50, "holdSeconds": 1}],
                "httpRoute": {"parentRefs": [{"name": "public"}]},
            },
        },
    )
    place.key(owner="team@example.com", deployments=["bot"])


def forbidden(operator: Operator, resources: set[str]) -> bool:
    """Whether the log tells of a request on one of these that was not allowed."""
    said = [line for line in operator.log.read_text().splitlines() if "forbidden" in line]
    return any(
        f'resource \\"{name}' in line or f'resource "{name}' in line
        for line in said
        for name in resources
    )


def test_with_all_rules_nothing_is_forbidden(empty: Place, models: Models, tmp_path: Path) -> None:
    operator = operator_with(GRANTED, empty, models, tmp_path)
    operator.start()
    try:
        everything(empty)
        empty.ready()
        assert empty.get("HorizontalPodAutoscaler", "bot")
        assert empty.get("ServiceMonitor", "bot")
        assert empty.get("HTTPRoute", "bot")
        assert "forbidden" not in operator.log.read_text()
    finally:
        operator.stop()


def test_every_verb_is_used(
    empty: Place, account: Path, models: Models, kubelet: PlayedKubelet, tmp_path: Path
) -> None:
    """A life in which everything happens that the operator has rights for,
    with all of its requests recorded."""
    model = f"{empty.name}-model"
    used = set[tuple[str, str]]()
    chosen = settings(models, watchNamespaces=[empty.name], fetchResources=None)
    with recording(empty.api, account, tmp_path, used) as kubeconfig:
        operator = Operator(tmp_path, kubeconfig, chosen)
        operator.start()
        try:
            everything(empty)
            empty.ready()
            eventually(lambda: empty.get("Secret", "team-llm-key"))
            empty.key(owner="team@example.com", deployments=["bot"], secretName="moved")
            eventually(
                lambda: empty.get("Secret", "moved") and not empty.get("Secret", "team-llm-key")
            )
            # What has lost our labels is not seen any more, and asked for by its name.
            for kind, name in children(empty):
                empty.api.patch(kind, empty.name, name, {"metadata": {"labels": UNLABELLED}})
            eventually(lambda: all(labelled(empty, *child) for child in children(empty)))
            empty.deploy("gone", model=model)
            eventually(lambda: empty.status("gone").get("observedGeneration"))
            for kind, name in (("LLMDeployment", "gone"), ("ApiKey", "team")):
                empty.api.call("DELETE", path_of(kind, empty.name, name))
            # Its node is doubted at once, as it has not been ready for long,
            # and only Events say why it waits.
            since = {"status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"}
            waits = {"type": "PodScheduled", "status": "True"}
            kubelet.fate[empty.name, "2"] = {"conditions": [waits, {"type": "Ready", **since}]}
            empty.models.promote(model, 2)
            eventually(lambda: {("nodes", "get"), ("events", "list")} <= used)
            del kubelet.fate[empty.name, "2"]
            empty.ready(version="2")
            for version in (1, 2):  # The same is told twice; the old revision's objects go.
                empty.models.promote(model, version)
                empty.ready(version=str(version))
            empty.deploy(
                replicas=1,
                rollout={"revisionHistoryLimit": 1},
                monitoring={"serviceMonitor": {"enabled": "Disabled"}},
            )
            empty.models.promote(model, 3)
            empty.ready(version="3")
            # Whose a pod is, is asked before it gets the operator's key and a prompt.
            smoke = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "smoke", "namespace": empty.name},
            }
            empty.api.apply({**smoke, "data": {"hello": "prompt: Hi\n"}})
            empty.deploy(rollout={"gates": [{"smokePrompts": {"configMap": "smoke"}}]})
            empty.models.promote(model, 1)
            eventually(lambda: ("replicasets", "get") in used)
            keda(empty, used)
            empty.deploy(suspend=True)
            eventually(lambda: not granted() - used)
        except AssertionError as error:
            raise AssertionError(f"nobody needs {sorted(granted() - used)}") from error
        finally:
            operator.stop()
    assert not granted() - used


def keda(place: Place, used: set[tuple[str, str]]) -> None:
    """A ScaledObject is made once its name is free, changed, and deleted."""
    theirs = {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": "bot", "namespace": place.name},
        "spec": {"scaleTargetRef": {"name": "else"}},
    }
    place.api.apply(theirs)
    scaled: Json = {"scaler": "KEDA", "metrics": [{"type": "QueueDepth", "target": 4}]}
    place.deploy(autoscaling={**scaled, "maxReplicas": 2})
    eventually(lambda: ("scaledobjects", "get") in used)
    place.api.delete("ScaledObject", place.name, "bot")

    def most() -> int:
        return int((place.get("ScaledObject", "bot") or {})["spec"]["maxReplicaCount"])

    eventually(lambda: most() == 2)
    place.deploy(autoscaling={**scaled, "maxReplicas": 3})
    eventually(lambda: most() == 3)


def children(place: Place) -> list[tuple[str, str]]:
    """What the deployment has, but pods and Secrets."""
    revision = place.status()["stable"]["revision"]
    once = ("ServiceAccount", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler")
    monitored = ("ServiceMonitor", "HTTPRoute")
    return [
        *((kind, "bot") for kind in (*once, *monitored)),
        *((kind, f"bot-{revision}") for kind in ("Deployment", "ConfigMap")),
    ]


def labelled(place: Place, kind: str, name: str) -> bool:
    live = place.get(kind, name) or {"metadata": {}}
    return UNLABELLED.keys() <= (live["metadata"].get("labels") or {}).keys()


def granted() -> set[tuple[str, str]]:
    """Resources and verbs, but for what only an admission plugin asks for."""
    rules = [rule for rule in GRANTED if not ONLY_WITH_AN_ADMISSION_PLUGIN & set(rule["resources"])]
    return {
        (resource, verb)
        for rule in rules
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@contextmanager
def recording(api: Api, account: Path, folder: Path, used: set[tuple[str, str]]) -> Iterator[Path]:
    """A kubeconfig that leads to the API server through a proxy that notes each right that is made
    use of."""
    target = urlsplit(api.server)
    context = ssl.create_default_context(cadata=api.ca)

    class Proxy(BaseHTTPRequestHandler):
        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            connection = HTTPSConnection(str(target.hostname), target.port, context=context)
            plain = {
                name: value
                for name, value in self.headers.items()
                if name.lower() != "accept-encoding"
            }
            connection.request(self.command, self.path, body, plain)
            answer = connection.getresponse()
            if answer.status != HTTPStatus.FORBIDDEN:
                used.update(rights(self.command, self.path, answer.status))
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.end_headers()
            with suppress(OSError):  # Whoever watched has gone.
                while piece := answer.read1():
                    self.wfile.write(piece)
            connection.close()

        do_GET = do_POST = do_PATCH = do_DELETE = forward

        def log_message(self, *_: object) -> None:
            """The operator's own log says more."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = yaml.safe_load(account.read_text())
    config["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{server.server_port}"}
    file = folder / "recorded"
    file.write_text(yaml.safe_dump(config))
    yield file
    server.shutdown()


def rights(method: str, path: str, status: int) -> Iterator[tuple[str, str]]:
    """What the API server wants granted for a request: resource, with its subresource, and verb."""
    url = urlsplit(path)
    place = re.sub(r"^/(api|apis/[^/]+)/[^/]+/(namespaces/[^/]+/(?=.))?", "", url.path)
    resource, _, rest = place.partition("/")
    name, _, subresource = rest.partition("/")
    resource = f"{resource}/{subresource}" if subresource else resource
    if method == "GET":
        yield resource, "get" if name else "watch" if "watch=true" in url.query else "list"
    else:
        yield resource, {"POST": "create", "PATCH": "patch", "DELETE": "delete"}[method]
    if (method, status) == ("PATCH", 201):
        yield resource, "create"


@pytest.mark.parametrize("rule", CASES, ids=lambda rule: ",".join(rule["resources"]))
def test_without_a_rule_something_is_forbidden_and_told(
    empty: Place, models: Models, tmp_path: Path, rule: Json
) -> None:
    operator = operator_with([each for each in GRANTED if each != rule], empty, models, tmp_path)
    operator.start()
    try:
        everything(empty)
        eventually(
            lambda: forbidden(operator, {name.partition("/")[0] for name in rule["resources"]})
        )
    finally:
        operator.stop()
