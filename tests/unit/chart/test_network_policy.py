"""NetworkPolicies: off by default;
on, they leave everything open that the operator and its pods are known to need."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from llm_operator.plans import names
from llm_operator.state import Meta
from llm_runtime import contract
from unit.chart.rendered import Chart, Json

pytestmark = pytest.mark.timeout(20)
META = Meta("LLMDeployment", "team-a", "bot", "u", 1)
OPERATOR = "llm-operator-system"
PEER = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}


def ports(rules: list[Json]) -> set[int]:
    """Of rules that name no peer: reachable anywhere."""
    return {each["port"] for rule in rules if "to" not in rule for each in rule.get("ports", ())}


def policies(chart: Chart, **policy: Any) -> dict[str, Json]:
    connections = {
        "default": {"trackingUri": "http://mlflow.mlflow:5000"},
        "cloud": {"trackingUri": "https://mlflow.example.com/team"},
        "plain": {"trackingUri": "http://mlflow.example.com"},
    }
    values = {
        "connections": connections,
        "prometheusUrl": "http://prometheus:9090",
        "networkPolicy": policy,
    }
    found = chart.all("NetworkPolicy", **values)
    evaluation = "llm-operator-evaluation"
    return {
        (
            name
            if (name := each["metadata"]["name"]) == evaluation
            else each["metadata"]["namespace"]
        ): each["spec"]
        for each in found
    }


def test_the_operator_reaches_what_its_configuration_names(chart: Chart) -> None:
    spec = policies(chart, enabled=True, apiServerPorts=[6443])[OPERATOR]
    assert ports(spec["egress"]) == {53, 6443, 5000, 443, 80, 9090}
    assert spec["podSelector"] == chart.one("Deployment")["spec"]["selector"]


def test_dns_may_listen_on_another_port(chart: Chart) -> None:
    for spec in policies(
        chart, enabled=True, dnsPorts=[5353], runtime={"namespaces": ["team-a"]}
    ).values():
        assert {"ports": [{"protocol": way, "port": 5353} for way in ("UDP", "TCP")]} in spec[
            "egress"
        ]
        assert 53 not in ports(spec["egress"])


def test_no_rule_is_left_that_opens_every_port(chart: Chart) -> None:
    """A rule with neither peers nor ports lets everything through."""
    empty = {
        "dnsPorts": [],
        "apiServerPorts": [],
        "runtime": {"namespaces": ["team-a"], "egressPorts": []},
    }
    for spec in policies(chart, enabled=True, **empty).values():
        assert all(rule.get("ports") or rule.get("to") for rule in spec["egress"])


def test_the_operator_reaches_the_pods_that_it_makes(chart: Chart) -> None:
    spec = policies(chart, enabled=True)[OPERATOR]
    peers = [
        peer["podSelector"]["matchLabels"] for rule in spec["egress"] for peer in rule.get("to", ())
    ]
    assert any(peer.items() <= names.labels(META, "r").items() for peer in peers)
    # A stand-by hands webhooks on to the leader.
    assert chart.one("Deployment")["spec"]["selector"]["matchLabels"] in peers


def test_metrics_and_webhooks_are_open_to_everybody_or_to_those_named_and_helm_test(
    chart: Chart,
) -> None:
    spec = policies(chart, enabled=True)[OPERATOR]
    (rule,) = spec["ingress"]
    opened = {
        each["name"]
        for each in chart.one("Deployment")["spec"]["template"]["spec"]["containers"][0]["ports"]
    }
    assert {each["port"] for each in rule["ports"]} == opened
    assert "from" not in rule
    spec = policies(chart, enabled=True, ingressFrom=[PEER])[OPERATOR]
    first, own = spec["ingress"][0]["from"]
    assert first == PEER
    for pod in (
        chart.test_pod()["metadata"],
        chart.one("Deployment")["spec"]["template"]["metadata"],
    ):
        assert own["podSelector"]["matchLabels"].items() <= pod["labels"].items()


def test_pods_that_serve_are_asked_on_their_port_and_reach_registry_and_stores(
    chart: Chart,
) -> None:
    found = policies(chart, runtime={"namespaces": ["team-a", "team-b"]})
    assert set(found) == {"team-a", "team-b"}
    spec = found["team-a"]
    assert spec["podSelector"]["matchLabels"].items() <= names.labels(META, "r").items()
    assert spec["ingress"] == [{"ports": [{"protocol": "TCP", "port": contract.PORT}]}]
    assert ports(spec["egress"]) == {53, 5000, 443, 80, 5432, 6379}


def test_the_operator_may_ask_the_pods_also_where_others_may_not(chart: Chart) -> None:
    found = policies(chart, runtime={"namespaces": ["team-a"], "ingressFrom": [PEER]})
    first, operator, evaluation, _ = found["team-a"]["ingress"][0]["from"]
    assert first == PEER
    assert operator["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": "llm-operator-system"
    }
    assert operator["podSelector"] == chart.one("Deployment")["spec"]["selector"]
    assert (
        evaluation["podSelector"]["matchLabels"].items()
        <= evaluation_pod(chart)["metadata"]["labels"].items()
    )


def test_the_jobs_of_evaluations_reach_mlflow_judges_and_the_pods_and_are_asked_by_nobody(
    chart: Chart,
) -> None:
    spec = policies(chart, enabled=True)["llm-operator-evaluation"]
    assert ports(spec["egress"]) == {53, 5000, 443, 80}
    assert (
        spec["podSelector"]["matchLabels"].items()
        <= evaluation_pod(chart)["metadata"]["labels"].items()
    )
    assert "ingress" not in spec
    peers = [
        peer["podSelector"]["matchLabels"] for rule in spec["egress"] for peer in rule.get("to", ())
    ]
    assert any(peer.items() <= names.labels(META, "r").items() for peer in peers)


def evaluation_pod(chart: Chart) -> Json:
    """The template of the Jobs' pods, as the operator reads it."""
    config = yaml.safe_load(chart.one("ConfigMap")["data"]["config.yaml"])
    found: Json = config["evaluation"]["podTemplate"]
    return found


def test_pods_that_serve_reach_each_other_in_their_namespace_to_copy_requests(chart: Chart) -> None:
    spec = policies(chart, runtime={"namespaces": ["team-a"], "ingressFrom": [PEER]})["team-a"]
    peer = {"podSelector": spec["podSelector"]}
    assert {"ports": [{"protocol": "TCP", "port": contract.PORT}], "to": [peer]} in spec["egress"]
    assert spec["ingress"][0]["from"][-1] == peer


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param({"ingressFrom": [{}]}, id="peer-without-a-selector-is-everybody"),
        pytest.param({"ingressFrom": [{"pods": {}}]}, id="no-peer"),
        pytest.param({"apiServerPorts": [0]}, id="no-port"),
        pytest.param({"runtime": {"namespaces": ["*"]}}, id="no-namespace"),
    ],
)
def test_wrong_peers_and_ports_are_refused(chart: Chart, policy: Json) -> None:
    refused = chart.template(networkPolicy={"enabled": True, **policy})
    assert refused.returncode != 0
    assert "schema" in refused.stderr
