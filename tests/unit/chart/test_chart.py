"""The chart, rendered by the real helm."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_operator import settings
from unit.chart.rendered import CHART, ROOT, Chart, Json

# Helm is a program of its own: on a busy machine it alone may take two seconds.
pytestmark = pytest.mark.timeout(20)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"replicaCount": 2}, id="unknown-value"),
        pytest.param({"replicas": "two"}, id="replicas-no-number"),
        pytest.param({"pollSeconds": 0}, id="poll-never-pauses"),
        pytest.param({"logFormat": "xml"}, id="log-format"),
        pytest.param({"image": {"repository": "x", "digest": "latest"}}, id="digest-no-digest"),
        pytest.param(
            {"runtime": {"image": {"repository": "x", "pullPolicy": "Always"}}},
            id="no-effect-on-pods",
        ),
        pytest.param(
            {"runtime": {"fetchResources": {"limits": {"memory": "much"}}}}, id="no-quantity"
        ),
        pytest.param({"watchNamespaces": ["Team A"]}, id="no-namespace-name"),
        pytest.param(
            {"connections": {"default": {"trackingUri": "mlflow:5000"}}}, id="uri-without-scheme"
        ),
        pytest.param({"connections": {"other": {"workspace": "w"}}}, id="connection-without-uri"),
        pytest.param(
            {"connections": {"default": {"trackingUri": "http://a", "namespaceSelector": {}}}},
            id="selects-all-unsaid",
        ),
        pytest.param({"metrics": {"serviceMonitor": {"enabled": "yes"}}}, id="enabled-no-boolean"),
    ],
)
def test_wrong_values_are_refused(chart: Chart, values: Json) -> None:
    refused = chart.template(**values)
    assert refused.returncode != 0
    assert "schema" in refused.stderr


def test_manifests_install_is_the_chart_with_default_values(chart: Chart) -> None:
    def key(found: Json) -> tuple[str, str, str]:
        return found["kind"], found["metadata"].get("namespace", ""), found["metadata"]["name"]

    def without_helm(found: Json) -> Json:
        labels = found["metadata"].get("labels", {})
        for name in ("app.kubernetes.io/managed-by", "helm.sh/chart"):
            labels.pop(name, None)
        return found

    installed = [
        each
        for each in yaml.safe_load_all((ROOT / "manifests" / "install.yaml").read_text())
        if each
    ]
    namespace, *rest = installed
    assert namespace["kind"] == "Namespace"
    rendered = {key(each): without_helm(each) for each in chart.objects()}
    assert {key(each): each for each in rest} == rendered


def test_webhooks_reach_a_port_of_their_own_only_when_asked_for(chart: Chart) -> None:
    secret = {
        "connections": {
            "default": {"trackingUri": "http://a", "credentialsSecret": "c", "writeVerdicts": False}
        }
    }
    assert not [
        each for each in chart.objects() if each["metadata"]["name"] == "llm-operator-webhooks"
    ]
    objects = chart.objects(webhooks={"service": {"enabled": True}}, **secret)
    service = next(each for each in objects if each["metadata"]["name"] == "llm-operator-webhooks")
    deployment = next(each for each in objects if each["kind"] == "Deployment")["spec"]["template"][
        "spec"
    ]
    config = next(each for each in objects if each["kind"] == "ConfigMap")["data"]["config.yaml"]
    ports = {port["name"]: port["containerPort"] for port in deployment["containers"][0]["ports"]}
    assert ports[service["spec"]["ports"][0]["targetPort"]] == yaml.safe_load(config)["webhookPort"]
    assert yaml.safe_load(config)["connections"]["default"]["writeVerdicts"] is False
    (source,) = next(v for v in deployment["volumes"] if v["name"] == "connections")["projected"][
        "sources"
    ]
    assert {"key": "webhookSecret", "path": "default/webhookSecret"} in source["secret"]["items"]


def test_no_rule_has_a_wildcard_and_nobody_may_list_secrets(chart: Chart) -> None:
    for values in ({}, {"watchNamespaces": ["team-a"]}):
        roles = [
            each for each in chart.objects(**values) if each["kind"] in ("Role", "ClusterRole")
        ]
        assert roles
        for rule in [rule for role in roles for rule in role["rules"]]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            if "secrets" in rule["resources"]:
                assert rule["resources"] == ["secrets"]
                assert not {"list", "watch", "deletecollection", "update"} & set(rule["verbs"])


def test_watching_some_namespaces_needs_no_right_in_the_others(chart: Chart) -> None:
    objects = chart.objects(watchNamespaces=["team-a", "team-b"])
    assert not [each for each in objects if each["kind"] == "ClusterRoleBinding"]
    bindings = {each["metadata"]["namespace"] for each in objects if each["kind"] == "RoleBinding"}
    assert bindings == {"team-a", "team-b", "llm-operator-system"}


def test_releases_of_one_name_in_two_namespaces_share_no_cluster_wide_name(chart: Chart) -> None:
    def cluster_wide(namespace: str) -> set[str]:
        values = {"watchNamespaces": [namespace], "crds": {"install": False}}
        objects = yaml.safe_load_all(
            chart.template("--skip-tests", "--namespace", namespace, **values).stdout
        )
        return {
            f"{each['kind']}/{each['metadata']['name']}"
            for each in objects
            if "namespace" not in each["metadata"]
        }

    assert cluster_wide("team-a")
    assert not cluster_wide("team-a") & cluster_wide("team-b")


def test_each_connection_has_its_credentials_in_a_folder_of_its_name(chart: Chart) -> None:
    uri = "https://mlflow.example.com"
    connections = {
        "default": {"trackingUri": uri},
        "team-a": {"trackingUri": uri, "credentialsSecret": "team-a-mlflow"},
    }
    deployment = chart.one("Deployment", connections=connections)
    pod = deployment["spec"]["template"]["spec"]
    (volume,) = [each for each in pod["volumes"] if each["name"] == "connections"]
    (source,) = volume["projected"]["sources"]
    assert source["secret"]["name"] == "team-a-mlflow"
    assert {item["path"] for item in source["secret"]["items"]} >= {"team-a/token", "team-a/ca.crt"}
    config = yaml.safe_load(chart.one("ConfigMap", connections=connections)["data"]["config.yaml"])
    assert config["connections"]["team-a"]["trackingUri"] == uri
    assert "team-a-mlflow" not in json.dumps(config["connections"])


def test_a_connection_says_whose_it_is_and_who_the_pods_are(chart: Chart, tmp_path: Path) -> None:
    mine = {
        "trackingUri": "https://mlflow.example.com",
        "credentialsSecret": "operator-mlflow",
        "podCredentialsSecret": "pods-mlflow",
        "namespaces": ["team-a"],
        "namespaceSelector": {"matchLabels": {"models": "internal"}},
        "artifactHosts": ["store.example.com:9000"],
    }
    file = tmp_path / "config.yaml"
    file.write_text(chart.one("ConfigMap", connections={"default": mine})["data"]["config.yaml"])
    found = settings.load(file).connections["default"]
    assert found.permits("team-a")
    assert found.permits("team-b", {"models": "internal"})
    assert not found.permits("team-b", {})
    assert found.artifact_hosts == ("store.example.com:9000",)
    pod = chart.one("Deployment", connections={"default": mine})["spec"]["template"]["spec"]
    (volume,) = [each for each in pod["volumes"] if each["name"] == "connections"]
    paths = {
        each["secret"]["name"]: {i["path"] for i in each["secret"]["items"]}
        for each in volume["projected"]["sources"]
    }
    mounted = "/etc/llm-operator/connections/"
    assert {str(found.pod_credentials_folder / "token").removeprefix(mounted)} <= paths[
        "pods-mlflow"
    ]
    assert {str(found.credentials_folder / "token").removeprefix(mounted)} <= paths[
        "operator-mlflow"
    ]
    assert "default/pods/webhookSecret" not in paths["pods-mlflow"]


def test_the_operator_changes_its_own_lease_and_no_other(chart: Chart) -> None:
    leader = next(
        each for each in chart.objects() if each["metadata"]["name"] == "llm-operator-leader"
    )
    rules = {tuple(rule["verbs"]): rule.get("resourceNames") for rule in leader["rules"]}
    config = yaml.safe_load(chart.one("ConfigMap")["data"]["config.yaml"])
    assert rules == {("get", "patch"): [config["lease"]["name"]], ("create",): None}


@pytest.mark.parametrize("role", ["view", "edit", "admin"])
def test_people_have_roles_that_write_no_status(chart: Chart, role: str) -> None:
    found = next(
        each for each in chart.objects() if each["metadata"]["name"] == f"llm-operator-{role}"
    )
    labels = found["metadata"]["labels"]
    assert [name for name in labels if "aggregate" in name] == [
        f"rbac.authorization.k8s.io/aggregate-to-{role}"
    ]
    verbs = {
        (resource, verb)
        for rule in found["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    writes = {resource for resource, verb in verbs if verb not in ("get", "list", "watch")}
    assert writes == (
        set() if role == "view" else {"llmdeployments", "apikeys", "llmdeployments/scale"}
    )


def test_the_pods_of_evaluations_have_the_operators_files_and_no_right_on_the_cluster(
    chart: Chart,
) -> None:
    values = {
        "connections": {
            "default": {"trackingUri": "http://mlflow:5000", "credentialsSecret": "account"}
        }
    }
    config = yaml.safe_load(chart.one("ConfigMap", **values)["data"]["config.yaml"])
    pod = config["evaluation"]["podTemplate"]["spec"]
    operator = chart.one("Deployment", **values)["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["volumes"] == operator["volumes"]
    assert {each["name"] for each in pod["volumes"]} == {"config", "connections", "tmp"}
    (container,) = pod["containers"]
    for name in ("image", "command", "volumeMounts", "securityContext"):
        assert container[name] == operator["containers"][0][name]


def test_the_admission_policy_is_about_the_operators_account_alone(chart: Chart) -> None:
    assert not chart.all("ValidatingAdmissionPolicy")
    values = {"admissionPolicy": {"enabled": True}, "serviceAccount": {"name": "other"}}
    policy = chart.one("ValidatingAdmissionPolicy", **values)
    (condition,) = policy["spec"]["matchConditions"]
    assert "'system:serviceaccount:llm-operator-system:other'" in condition["expression"]
    binding = chart.one("ValidatingAdmissionPolicyBinding", **values)["spec"]
    assert (binding["policyName"], binding["validationActions"]) == (
        policy["metadata"]["name"],
        ["Deny"],
    )
    written = {
        resource
        for each in chart.objects()
        if each["kind"] == "ClusterRole" and each["metadata"]["name"] == "llm-operator"
        for rule in each["rules"]
        for resource in rule["resources"]
        if {"create", "patch", "delete"} & set(rule["verbs"])
    }
    (rule,) = policy["spec"]["matchConstraints"]["resourceRules"]
    # Of the rest the operator writes statuses alone, and tells Events.
    assert written - set(rule["resources"]) == {"llmdeployments/status", "apikeys/status", "events"}


def test_the_charts_policy_is_the_operators_own(chart: Chart, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(chart.one("ConfigMap")["data"]["config.yaml"])
    assert settings.load(file).pod_policy == settings.PodPolicy()


def test_namespaces_are_read_only_where_a_connection_selects_by_their_labels(chart: Chart) -> None:
    def reads(**connection: Any) -> bool:
        role = next(
            each for each in chart.objects(connections={"default": {"trackingUri": "http://a", **connection}})
            if each["kind"] == "ClusterRole" and each["metadata"]["name"] == "llm-operator"
        )  # fmt: skip
        return any("namespaces" in rule["resources"] for rule in role["rules"])

    assert not reads(namespaces=["team-a"])
    assert reads(namespaceSelector={"matchLabels": {"models": "internal"}})


def test_a_changed_configuration_restarts_the_operator(chart: Chart) -> None:
    def stamp(**values: Any) -> str:
        return str(
            chart.one("Deployment", **values)["spec"]["template"]["metadata"]["annotations"][
                "llm-operator.dev/config"
            ]
        )

    assert stamp() == stamp(replicas=1)
    assert stamp() != stamp(pollSeconds=5)


def test_the_operator_reads_every_setting_that_the_chart_writes(
    chart: Chart, tmp_path: Path
) -> None:
    for values in (
        {},
        {"runtime": {"fetchResources": {"requests": {}, "limits": {"cpu": 1, "memory": "1Gi"}}}},
    ):
        file = tmp_path / "config.yaml"
        file.write_text(chart.one("ConfigMap", **values)["data"]["config.yaml"])
        found = settings.load(file)
    assert found.fetch_resources.manifest()["limits"] == {"cpu": "1", "memory": "1Gi"}


def test_crds_survive_an_uninstall_and_follow_an_upgrade(chart: Chart) -> None:
    crds = [each for each in chart.objects() if each["kind"] == "CustomResourceDefinition"]
    assert {each["spec"]["names"]["kind"] for each in crds} == {"LLMDeployment", "ApiKey"}
    assert all(
        each["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for each in crds
    )
    # Helm never upgrades what lies in crds/.
    assert not (CHART / "crds").exists()
    assert not [
        each
        for each in chart.objects(crds={"install": False})
        if each["kind"] == "CustomResourceDefinition"
    ]


def test_optional_parts_come_and_go(chart: Chart) -> None:
    kinds = {each["kind"] for each in chart.objects()}
    assert "PodDisruptionBudget" in kinds
    assert not kinds & {"ServiceMonitor", "PrometheusRule", "NetworkPolicy", "Pod"}
    bare = chart.objects(
        replicas=1,
        rbac={"create": False, "aggregateToUserRoles": False},
        serviceAccount={"create": False},
    )
    assert {each["kind"] for each in bare} == {
        "CustomResourceDefinition",
        "ConfigMap",
        "Deployment",
        "Service",
    }
    assert chart.one("ServiceMonitor", metrics={"serviceMonitor": {"enabled": True}})["spec"][
        "endpoints"
    ]
