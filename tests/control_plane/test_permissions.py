"""Every rule of the chart's role is needed: without it something is forbidden, and that is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
from waiting import eventually

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]

RBAC = "/apis/rbac.authorization.k8s.io/v1"
CORE = "/api/v1"
SERVER_SIDE = "application/apply-patch+yaml"
GRANTED: list[Json] = next(
    manifest["rules"]
    for manifest in yaml.safe_load_all((ROOT / "manifests" / "install.yaml").read_text())
    if manifest and manifest["kind"] == "ClusterRole" and manifest["metadata"]["name"] == "llm-operator"
)
ONLY_WITH_AN_ADMISSION_PLUGIN = frozenset({"llmdeployments/finalizers"})
"""OwnerReferencesPermissionEnforcement asks for these; it is off unless a cluster's owner turns it on."""
CASES = [rule for rule in GRANTED if not ONLY_WITH_AN_ADMISSION_PLUGIN & set(rule["resources"])]


def service_monitor_crd() -> Json:
    """As far as the operator's manifests need it: the Prometheus operator brings the real one."""
    group, plural = "monitoring.coreos.com", "servicemonitors"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": "ServiceMonitor", "plural": plural, "singular": "servicemonitor"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }


@pytest.fixture(scope="module", autouse=True)
def foreign_kinds(api: Api, quiet: None) -> Iterator[None]:
    """The kinds that the operator uses where they are installed; its Role in each test covers them like the rest."""
    for crd in (service_monitor_crd(), http_route_crd()):
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
        api.call("PATCH", path, crd, SERVER_SIDE, fieldManager="test", force="true")
        eventually(lambda path=path: established(api, path))
    yield
    name = service_monitor_crd()["metadata"]["name"]
    api.call("DELETE", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")


@pytest.fixture
def empty(api: Api, kubelet: PlayedKubelet, models: Models, request: pytest.FixtureRequest) -> Iterator[Place]:
    """A namespace that no operator looks at yet."""
    name = f"may-{abs(hash(request.node.name)) % 10**9}"
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    yield Place(api, name, kubelet, models)
    api.call("DELETE", f"/api/v1/namespaces/{name}")


def operator_with(rules: list[Json], place: Place, models: Models, folder: Path) -> Operator:
    """An operator for this namespace alone, under a Role with these rules and one for its Lease."""
    meta = {"name": "trial", "namespace": place.name}
    leases = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "patch"]}
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": meta, "rules": [*rules, leases]}
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
    """A deployment and a key with every kind of child."""
    place.model()
    place.deploy(
        autoscaling={"minReplicas": 2, "maxReplicas": 3, "metrics": [{"type": "CPU", "target": 80}]},
        resources={"requests": {"cpu": "100m"}},
        rollout={
            "strategy": "Canary",
            "canary": {"steps": [{"weight": 50, "holdSeconds": 1}], "httpRoute": {"parentRefs": [{"name": "public"}]}},
        },
    )
    place.key(owner="team@example.com", deployments=["bot"])


def forbidden(operator: Operator, resources: set[str]) -> bool:
    """Whether the log tells of a request on one of these that was not allowed."""
    said = [line for line in operator.log.read_text().splitlines() if "forbidden" in line]
    return any(f'resource \\"{name}' in line or f'resource "{name}' in line for line in said for name in resources)


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


@pytest.mark.parametrize("rule", CASES, ids=lambda rule: ",".join(rule["resources"]))
def test_without_a_rule_something_is_forbidden_and_told(
    empty: Place, models: Models, tmp_path: Path, rule: Json
) -> None:
    operator = operator_with([each for each in GRANTED if each != rule], empty, models, tmp_path)
    operator.start()
    try:
        everything(empty)
        eventually(lambda: forbidden(operator, {name.partition("/")[0] for name in rule["resources"]}))
    finally:
        operator.stop()
