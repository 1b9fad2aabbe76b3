"""Alerts and dashboards: written once for compose and chart,
about metrics that are there, each with a runbook."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from promql import TARGET_LABELS, labels_in, series_in
from unit.chart.rendered import CHART, ROOT, Chart

pytestmark = pytest.mark.timeout(20)
FILES = CHART / "files" / "monitoring"
COMPOSE = ROOT / "manifests" / "compose"
RUNBOOK = (ROOT / "docs" / "operations.md").read_text()
ON: dict[str, Any] = {"metrics": {"prometheusRule": {"enabled": True}}}
ALERTS = [
    rule
    for group in yaml.safe_load((FILES / "operator-alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((FILES / "llm-operator.json").read_text())
SOURCES = "".join(file.read_text() for file in (ROOT / "operator" / "llm_operator").rglob("*.py"))
# Of kube-state-metrics, and of Prometheus itself.
OTHERS = {
    "kube_pod_container_status_last_terminated_reason",
    "kube_pod_container_status_restarts_total",
    "up",
}
LABELS = TARGET_LABELS | {
    "kind", "name", "type", "status", "reason", "outcome", "phase", "container", "connection", "result", "verb"
}  # fmt: skip
SHOWN = [
    (panel["title"], each["expr"])
    for panel in DASHBOARD["panels"]
    for each in panel.get("targets", ())
]


def declared(series: str) -> bool:
    """Whether the operator's code has a metric of this name, or one that gives this series."""
    names = (series, re.sub(r"_(bucket|sum|count)$", "", series))
    return any(f'"{name}"' in SOURCES for name in names)


@pytest.mark.parametrize(
    ("where", "expression"), [*((rule["alert"], rule["expr"]) for rule in ALERTS), *SHOWN]
)
def test_every_metric_of_the_operators_alerts_and_dashboard_is_in_its_code(
    where: str, expression: str
) -> None:
    assert series_in(expression), where
    assert {each for each in series_in(expression) - OTHERS if not declared(each)} == set()
    assert labels_in(expression) <= LABELS


def test_a_metric_that_is_not_there_would_be_found() -> None:
    assert declared("llm_operator_reconcile_duration_seconds_bucket")
    assert not declared("llm_operator_reconcile_duration")


def test_every_alert_says_what_it_means_and_has_its_section_in_the_runbook() -> None:
    for rule in ALERTS:
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert f"### {rule['alert']}\n" in RUNBOOK, (
            f"docs/operations.md has no section {rule['alert']}"
        )


def test_the_chart_brings_the_alerts_of_compose_and_the_operators_with_links(chart: Chart) -> None:
    base = "https://example.com/operations.md"
    values = {
        "metrics": {
            "prometheusRule": {"enabled": True, "labels": {"release": "p"}, "runbookBaseUrl": base}
        }
    }
    found = chart.one("PrometheusRule", **values)
    assert found["metadata"]["labels"]["release"] == "p"
    rules = [rule for group in found["spec"]["groups"] for rule in group["rules"]]
    compose = yaml.safe_load((COMPOSE / "prometheus" / "alerts.yml").read_text())["groups"]
    expected = [*ALERTS, *(rule for group in compose for rule in group["rules"])]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["annotations"].pop("runbook_url") == f"{base}#{rule['alert'].lower()}"
    assert sorted(rules, key=lambda r: r["alert"]) == sorted(expected, key=lambda r: r["alert"])


def test_without_an_address_of_the_runbook_there_is_no_link(chart: Chart) -> None:
    rules = [
        rule
        for group in chart.one("PrometheusRule", **ON)["spec"]["groups"]
        for rule in group["rules"]
    ]
    assert not [rule for rule in rules if "runbook_url" in rule["annotations"]]


def test_the_jobs_of_alerts_are_those_that_the_service_monitors_make(chart: Chart) -> None:
    monitor = chart.one("ServiceMonitor", metrics={"serviceMonitor": {"enabled": True}})["spec"]
    service = chart.one("Service")
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "llm-operator"
    # Metrics about an LLMDeployment say its namespace, which Prometheus would rename otherwise.
    assert monitor["endpoints"][0]["honorLabels"] is True
    jobs = {job for rule in ALERTS for job in re.findall(r'job="([^"]*)"', rule["expr"])}
    assert jobs == {"llm-operator", "llm-runtime"}


def test_dashboards_are_config_maps_that_grafanas_sidecar_finds(chart: Chart) -> None:
    values = {"metrics": {"dashboards": {"enabled": True, "datasourceUid": "mimir"}}}
    maps = [each for each in chart.all("ConfigMap", **values) if "config.yaml" not in each["data"]]
    assert {each["metadata"]["labels"]["grafana_dashboard"] for each in maps} == {"1"}
    boards = {name: json.loads(text) for each in maps for name, text in each["data"].items()}
    originals = {
        "llm-operator.json": DASHBOARD,
        "llm-runtime.json": json.loads(
            (COMPOSE / "grafana" / "dashboards" / "llm-runtime.json").read_text()
        ),
    }
    assert boards.keys() == originals.keys()
    for name, board in boards.items():
        assert board == json.loads(
            json.dumps(originals[name]).replace('"uid": "prometheus"', '"uid": "mimir"')
        )
        assert '"uid": "prometheus"' not in json.dumps(board)


def test_the_operators_dashboard_is_whole() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        assert panel["type"] == "row" or panel["description"]


@pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed (apt-get install prometheus)",
)
def test_promtool_accepts_the_rendered_rules_and_the_alerts_fire_when_they_should(
    chart: Chart, tmp_path: Path
) -> None:
    rendered = tmp_path / "rules.yaml"
    rendered.write_text(yaml.safe_dump(chart.one("PrometheusRule", **ON)["spec"]))
    subprocess.run(["promtool", "check", "rules", str(rendered)], check=True, capture_output=True)
    stories = tmp_path / "stories.yaml"
    text = (Path(__file__).parent / "operator-alerts.test.yml").read_text()
    stories.write_text(text.replace("RULES", str(rendered)))
    done = subprocess.run(
        ["promtool", "test", "rules", str(stories)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
