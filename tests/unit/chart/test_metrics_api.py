"""The metrics API in the chart: nothing of it by default; on, every part of it belongs together."""

from __future__ import annotations

import pytest
import yaml

from llm_operator.metricsapi import answers
from llm_operator.metricsapi.registration import OTHERS
from llm_operator.settings import Settings
from unit.chart.rendered import Chart

pytestmark = pytest.mark.timeout(20)
NAME = "llm-operator-metrics-api"
ON = {"metricsApi": {"enabled": True}}


def test_nothing_of_it_is_there_unless_it_is_asked_for(chart: Chart) -> None:
    assert not [each for each in chart.objects() if "metrics-api" in yaml.safe_dump(each)]


def test_configuration_service_and_rights_name_the_same_things(chart: Chart) -> None:
    written = chart.one("ConfigMap", **ON)["data"]["config.yaml"]
    found = Settings.model_validate(yaml.safe_load(written)).metrics_api
    assert (found.service, found.cluster_role) == (NAME, NAME)
    made = {
        (each["kind"], each["metadata"].get("namespace")): each
        for each in chart.objects(**ON)
        if each["metadata"]["name"].startswith(NAME)
    }
    (port,) = made["Service", "llm-operator-system"]["spec"]["ports"]
    assert port["port"] == found.service_port
    (container,) = chart.one("Deployment", **ON)["spec"]["template"]["spec"]["containers"]
    listening = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert listening[port["targetPort"]] == found.port
    others, services, _, itself = made["ClusterRole", None]["rules"]
    groups = {f"{version}.{group}" for group, version in answers.VERSIONS.items()}
    looked_for = {f"{version}.{group}" for group, each in OTHERS.items() for version in each}
    assert set(services["resourceNames"]) == groups
    assert (set(others["resourceNames"]), others["verbs"]) == (looked_for, ["get"])
    assert itself["resourceNames"] == [found.cluster_role]
    (secrets, _) = made["Role", "llm-operator-system"]["rules"]
    assert secrets["resourceNames"] == [found.service]
    assert made["RoleBinding", "kube-system"]["roleRef"]["name"] == (
        "extension-apiserver-authentication-reader"
    )


def test_the_api_server_reaches_it_through_the_network_policy(chart: Chart) -> None:
    peer = {"podSelector": {}}
    policies = chart.all(
        "NetworkPolicy", **ON, networkPolicy={"enabled": True, "ingressFrom": [peer]}
    )
    own = next(each for each in policies if each["metadata"]["name"] == "llm-operator")
    assert own["spec"]["ingress"][-1] == {"ports": [{"protocol": "TCP", "port": "metrics-api"}]}
