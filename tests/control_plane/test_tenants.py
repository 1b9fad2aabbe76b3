"""Three people of one namespace, with the chart's roles, try to get what is another's,
and fail everywhere."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    Refusal,
    account_config,
)
from devstack.cluster import Cluster
from llm_operator.crds import API_VERSION
from llm_operator.ports.cluster import path_of
from llm_runtime.contract import hash_key
from secrets_told import invented
from waiting import eventually

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]
ROLES = ("view", "edit", "admin")
PASSWORD = invented("operators-account")
READER = invented("pods-account")
SECRET_KINDS = ("Secret", "ConfigMap", "Pod", "LLMDeployment", "ApiKey", "ServiceAccount")


@dataclass
class Town:
    """Two namespaces: `mine`, with a person of each role,
    and `theirs`, with a model, a key and its Secrets."""

    mine: Place
    theirs: Place
    people: dict[str, Api]


@pytest.fixture(scope="module")
def town(
    api: Api,
    operator: Operator,
    kubelet: PlayedKubelet,
    models: Models,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Town]:
    mine, theirs = (Place(api, name, kubelet, models) for name in ("mine", "theirs"))
    people = {}
    for place in (mine, theirs):
        api.call(
            "POST",
            "/api/v1/namespaces",
            {"metadata": {"name": place.name, "labels": {"team": place.name}}},
        )
        look_at(api, place.name)
    for role in ROLES:
        meta = {"name": role, "namespace": "mine"}
        api.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})
        binding = {
            "metadata": meta,
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": role,
            },
            "subjects": [{"kind": "ServiceAccount", **meta}],
        }
        api.call("POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/mine/rolebindings", binding)
        people[role] = Api(account_config(api, tmp_path_factory.mktemp(role), "mine", role))
    credentials = tmp_path_factory.mktemp("credentials")
    for folder, password in (("operator", PASSWORD), ("pods", READER)):
        (credentials / folder).mkdir()
        (credentials / folder / "username").write_text(folder)
        (credentials / folder / "password").write_text(password)
    guarded = {
        "trackingUri": models.uri,
        "namespaces": ["theirs"],
        "namespaceSelector": {"matchLabels": {"models": "shared"}},
        "credentialsFolder": str(credentials / "operator"),
        "podCredentialsFolder": str(credentials / "pods"),
    }
    before = operator.settings["connections"]
    operator.settings["connections"] = {**before, "guarded": guarded}
    operator.write()
    models.create("secret-model")
    theirs.deploy(mlflow={"name": "secret-model", "alias": "champion", "connection": "guarded"})
    theirs.key(deployments=["bot"])
    theirs.ready()
    eventually(lambda: theirs.condition("Ready", "team", "ApiKey")["status"] == "True")
    yield Town(mine, theirs, people)
    operator.settings["connections"] = before
    operator.write()
    for place in (mine, theirs):
        api.call("DELETE", f"/api/v1/namespaces/{place.name}")


def look_at(api: Api, namespace: str) -> None:
    """What the chart adds to the operator's rights where a connection has a namespaceSelector."""
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    meta = {"name": "selects", "namespace": namespace}
    account = {"kind": "ServiceAccount", "name": "llm-operator", "namespace": "llm-operator-system"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "selects"}
    rule = {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]}
    api.call("POST", f"{rbac}/roles", {"metadata": meta, "rules": [rule]})
    api.call(
        "POST", f"{rbac}/rolebindings", {"metadata": meta, "roleRef": role, "subjects": [account]}
    )


def refused(person: Api, method: str, path: str, body: Any = None) -> bool:
    try:
        person.call(
            method,
            path,
            body,
            "application/merge-patch+json" if method == "PATCH" else "application/json",
        )
    except Refusal as error:
        return error.status == 403
    return False


def manifest(kind: str, name: str, **spec: Any) -> Json:
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name, "namespace": "mine"},
        "spec": spec,
    }


def stored(place: Place) -> str:
    """All that the Secrets of a namespace hold, in plain."""
    data = [each.get("data") or {} for each in place.api.list("Secret", place.name)]
    return " ".join(
        base64.b64decode(value).decode(errors="replace") for each in data for value in each.values()
    )


@pytest.mark.parametrize("role", ROLES)
def test_another_namespace_is_closed(town: Town, role: str) -> None:
    person = town.people[role]
    assert eventually(lambda: not refused(person, "GET", path_of("LLMDeployment", "mine")))
    for kind in SECRET_KINDS:
        for namespace in ("theirs", "llm-operator-system"):
            assert refused(person, "GET", path_of(kind, namespace)), (kind, namespace)
            assert refused(person, "POST", path_of(kind, namespace), {"metadata": {"name": "x"}}), (
                kind,
                namespace,
            )
        assert refused(person, "DELETE", path_of(kind, "theirs", "bot")), kind
    for name in ("bot-keys", "bot-registry", "team-llm-key", "bot-operator-key"):
        assert refused(person, "GET", path_of("Secret", "theirs", name)), name
    assert refused(person, "GET", path_of("LLMDeployment", ""))
    assert refused(person, "GET", path_of("ApiKey", ""))
    assert refused(
        person,
        "GET",
        "/apis/coordination.k8s.io/v1/namespaces/llm-operator-system/leases/llm-operator",
    )


@pytest.mark.parametrize("role", ROLES)
def test_nobody_writes_a_status_or_a_definition(town: Town, role: str) -> None:
    town.mine.key("forged", deployments=["bot"])
    forged = {
        "status": {"model": {"name": "secret-model", "version": "1", "connection": "guarded"}}
    }
    for kind, name in (("LLMDeployment", "bot"), ("ApiKey", "forged")):
        assert refused(
            town.people[role], "PATCH", path_of(kind, "mine", name) + "/status", forged
        ), kind
    crd = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/llmdeployments.llm-operator.dev"
    assert refused(town.people[role], "PATCH", crd, {"metadata": {"labels": {"a": "b"}}})


def test_who_may_view_reads_no_key_and_changes_nothing(town: Town) -> None:
    town.mine.key("mine", deployments=["bot"])
    eventually(lambda: town.mine.get("Secret", "mine-llm-key"))
    viewer = town.people["view"]
    assert viewer.get("ApiKey", "mine", "mine")
    assert refused(viewer, "GET", path_of("Secret", "mine", "mine-llm-key"))
    assert refused(viewer, "POST", path_of("ApiKey", "mine"), manifest("ApiKey", "more", owner="o"))
    assert refused(
        viewer,
        "PATCH",
        path_of("LLMDeployment", "mine", "bot") + "/scale",
        {"spec": {"replicas": 9}},
    )


@pytest.mark.parametrize("role", ["edit", "admin"])
def test_another_namespaces_connection_gives_no_model_and_no_credentials(
    town: Town, role: str
) -> None:
    stolen = {"name": "secret-model", "alias": "champion", "connection": "guarded"}
    adapter = {"name": "theirs", "mlflow": stolen}
    for name, spec in (
        (f"{role}-a", {"model": {"mlflow": stolen}}),
        (f"{role}-b", {"model": {"uri": "file:///model"}, "adapters": [adapter]}),
    ):
        town.people[role].apply(manifest("LLMDeployment", name, **spec))
    told = eventually(
        lambda: (
            c if (c := town.mine.condition("Stalled", f"{role}-a"))["status"] == "True" else None
        )
    )
    assert told["reason"] == "ConnectionNotPermitted"
    eventually(
        lambda: (
            town.mine.condition("AdaptersReady", f"{role}-b")["reason"] == "ConnectionNotPermitted"
        )
    )
    assert not town.mine.api.list("Deployment", "mine", f"llm-operator.dev/deployment={role}-a")
    found = stored(town.mine)
    assert PASSWORD not in found
    assert READER not in found
    assert READER in stored(town.theirs)
    assert PASSWORD not in stored(town.theirs)


@pytest.mark.parametrize("role", ["edit", "admin"])
def test_a_key_opens_nothing_of_another_namespace(town: Town, role: str) -> None:
    name = f"{role}-key"
    town.people[role].apply(manifest("ApiKey", name, owner="o", deployments=["bot"]))
    town.people[role].apply(
        manifest("ApiKey", f"{name}-all", owner="o", selector={"matchLabels": {}})
    )
    secret = eventually(lambda: town.mine.get("Secret", f"{name}-llm-key"))
    eventually(
        lambda: town.mine.condition("Ready", name, "ApiKey")["reason"] == "DeploymentNotFound"
    )
    key = base64.b64decode(secret["data"]["api-key"]).decode()
    theirs = town.theirs.get("LLMDeployment", "bot") or {}
    keys = stored(town.theirs)
    assert hash_key(key, theirs["metadata"]["uid"]) not in keys
    assert "mine/" not in keys


@pytest.mark.parametrize("role", ["edit", "admin"])
def test_no_pod_reads_the_operators_secrets_or_runs_as_somebody_else(town: Town, role: str) -> None:
    reads = {
        "name": "HF_TOKEN",
        "valueFrom": {"secretKeyRef": {"name": f"{role}-key-llm-key", "key": "api-key"}},
    }
    spec = {"model": {"uri": "file:///model"}}
    town.people[role].apply(
        manifest("LLMDeployment", f"{role}-reads", **spec, pod={"env": [reads]})
    )
    town.people[role].apply(
        manifest("LLMDeployment", role, **spec)
    )  # There is a ServiceAccount of this name.
    for name, reason in ((f"{role}-reads", "SecretReserved"), (role, "NameTaken")):
        told = eventually(
            lambda name=name: (
                c if (c := town.mine.condition("Stalled", name))["status"] == "True" else None
            )
        )
        assert told["reason"] == reason
        assert not town.mine.api.list("Deployment", "mine", f"llm-operator.dev/deployment={name}")


def test_a_right_that_is_taken_back_takes_the_credentials_with_it(api: Api, town: Town) -> None:
    def label(value: str | None) -> None:
        api.patch("Namespace", "", "mine", {"metadata": {"labels": {"models": value}}})

    label("shared")
    town.mine.deploy(
        "lent", mlflow={"name": "secret-model", "alias": "champion", "connection": "guarded"}
    )
    town.mine.ready("lent")
    assert READER in stored(town.mine)
    label(None)
    eventually(
        lambda: (
            town.mine.condition("RegistryReachable", "lent")["reason"] == "ConnectionNotPermitted"
        )
    )
    eventually(lambda: READER not in stored(town.mine))
    assert town.mine.condition("Available", "lent")["status"] == "True"
    api.delete("LLMDeployment", "mine", "lent")


@pytest.fixture
def policy(api: Api, cluster: Cluster) -> Iterator[None]:
    """The chart's admission policy."""
    assert cluster.programs is not None
    command = [cluster.programs / "helm", "template", "llm-operator", ROOT / "charts" / "llm-operator",
               "--namespace", "llm-operator-system", "--set", "admissionPolicy.enabled=true",
               "--show-only", "templates/admissionpolicy.yaml"]  # fmt: skip
    made = [
        *yaml.safe_load_all(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout
        )
    ]
    root = "/apis/admissionregistration.k8s.io/v1"
    paths = [
        f"{root}/validatingadmissionpolic" + ("ybindings" if "Binding" in each["kind"] else "ies")
        for each in made
    ]
    for path, each in zip(paths, made, strict=True):
        api.call("POST", path, each)
    yield
    for path, each in zip(paths, made, strict=True):
        api.call("DELETE", f"{path}/{each['metadata']['name']}")


def test_with_the_admission_policy_the_operators_account_writes_only_its_own(
    api: Api, town: Town, account: Path, policy: None
) -> None:
    thief = Api(account)
    api.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "own", "namespace": "mine"}}
    )

    def denied(method: str, kind: str, name: str, body: Any = None) -> bool:
        try:
            thief.call(method, path_of(kind, "mine", name), body, "application/merge-patch+json")
        except Refusal as error:
            return "the operator's account" in error.message
        return False

    eventually(lambda: denied("PATCH", "Secret", "own", {"data": {"a": "Yg=="}}))
    assert denied("DELETE", "Secret", "own")
    assert denied(
        "PATCH",
        "Secret",
        "own",
        {"metadata": {"labels": {"app.kubernetes.io/managed-by": "llm-operator"}}},
    )
    assert denied("PATCH", "ServiceAccount", "admin", {"metadata": {"annotations": {"a": "b"}}})
    town.mine.model()
    town.mine.deploy("guarded")
    town.mine.ready("guarded")
    (pod,) = api.list("Pod", "mine", "llm-operator.dev/deployment=guarded")
    name = pod["metadata"]["name"]
    assert denied(
        "PATCH", "Pod", name, {"metadata": {"labels": {"llm-operator.dev/deployment": "other"}}}
    )
    thief.patch("Pod", "mine", name, {"metadata": {"annotations": {"a": "b"}}})
    town.mine.key("guarded", deployments=["guarded"])
    eventually(lambda: town.mine.condition("Ready", "guarded", "ApiKey")["status"] == "True")
    api.delete("LLMDeployment", "mine", "guarded")
