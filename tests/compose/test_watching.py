"""Prometheus and what it is asked: targets,
every alert's expression, alerts that fire and clear, every panel."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from compose.site import MODEL, Site
from devstack.load import RequestLoop
from kindstack.compose import FOLDER
from kindstack.shell import ROOT
from waiting import eventually

pytestmark = pytest.mark.compose

SHIPPED = ROOT / "manifests" / "compose"
DASHBOARD = json.loads((SHIPPED / "grafana/dashboards/llm-runtime.json").read_text())
PANELS = [(p["title"], t["expr"]) for p in DASHBOARD["panels"] for t in p.get("targets", ())]
ABSENT = {"GPU memory": "this machine's runtime computes on CPUs"}
QUICK = """\
services:
  prometheus: {{volumes: ["{folder}:/etc/prometheus:ro"]}}
"""


@pytest.fixture(scope="module")
def quick(site: Site) -> Iterator[Site]:
    """The shipped rules with seconds in the place of minutes;
    promtool's stories hold the minutes."""
    folder = FOLDER / "prometheus"
    shutil.copytree(SHIPPED / "prometheus", folder, dirs_exist_ok=True)
    shorten(folder / "prometheus.yml", r"(scrape_interval|evaluation_interval): \d+s", r"\1: 1s")
    shorten(
        folder / "alerts.yml",
        r"for: \d+m",
        "for: 3s",
        r"\[\d+m\]",
        "[15s]",
        r"offset \d+m",
        "offset 15s",
    )
    override = FOLDER / "quick.yaml"
    override.write_text(QUICK.format(folder=folder))
    shipped = site.stack
    site.stack = replace(shipped, files=(*shipped.files, override))
    site.stack("up", "--detach", "--wait", "prometheus")
    eventually(lambda: site.query('up{job="llm-runtime"} == 1'))
    yield site
    site.stack = shipped
    site.stack("up", "--detach", "--wait", "prometheus")


def shorten(file: Path, *pairs: str) -> None:
    text = file.read_text()
    for pattern, by in zip(pairs[::2], pairs[1::2], strict=True):
        text, found = re.subn(pattern, by, text)
        assert found, f"{file} has no {pattern}"
    file.write_text(text)


def test_prometheus_reads_the_shipped_files_and_reaches_its_targets(site: Site) -> None:
    def targets() -> dict[str, str]:
        active = site.prometheus.get("/api/v1/targets").json()["data"]["activeTargets"]
        return {target["labels"]["job"]: target["health"] for target in active}

    eventually(lambda: targets() == {"llm-runtime": "up", "prometheus": "up"})


def test_every_alerts_expression_evaluates(site: Site) -> None:
    shipped = set(re.findall(r"alert: (\w+)", (SHIPPED / "prometheus/alerts.yml").read_text()))

    def rules() -> dict[str, str]:
        groups = site.prometheus.get("/api/v1/rules").json()["data"]["groups"]
        return {
            rule["name"]: rule["health"] + rule.get("lastError", "")
            for group in groups
            for rule in group["rules"]
        }

    eventually(lambda: rules() == dict.fromkeys(shipped, "ok"))


def firing(site: Site) -> set[str]:
    alerts = site.prometheus.get("/api/v1/alerts").json()["data"]["alerts"]
    return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


def test_every_panel_shows_something_under_load(quick: Site) -> None:
    silent = [
        title for title, expression in PANELS if title in ABSENT and quick.query(shown(expression))
    ]
    assert not silent, "no longer absent here"
    load = RequestLoop(
        quick.stack.url("RUNTIME_PORT"),
        quick.stack.settings["API_KEY"],
        MODEL,
        "Say something.",
        pause_seconds=0.2,
    ).start()
    limited = quick.key("limited", "--limit", "requests-per-minute=1")
    empty = list[str]()
    try:
        deadline = time.monotonic() + 90
        while True:
            quick.ask(temperature=0)  # the completion cache's panel
            quick.ask(headers=limited)  # that of refusals, and of errors
            empty = [
                title
                for title, expression in PANELS
                if title not in ABSENT and not values(quick, expression)
            ]
            if not empty or time.monotonic() > deadline:
                break
            time.sleep(1)
    finally:
        tally = load.stop()
    assert not empty
    instances = quick.prometheus.get(
        "/api/v1/label/instance/values", params={"match[]": "model_loaded"}
    )
    assert instances.json()["data"] == ["runtime:8000"], "the dashboard's choice of instances"
    assert tally.requests
    assert not tally.failures


def shown(expression: str) -> str:
    """The expression as Grafana asks it, for all instances."""
    return expression.replace("$instance", ".*").replace("$__rate_interval", "30s")


def values(site: Site, expression: str) -> list[float]:
    """What a panel would draw: NaN draws nothing."""
    found = [float(each["value"][1]) for each in site.query(shown(expression))]  # type: ignore[index]
    return [value for value in found if value == value]


def stop_runtime(site: Site) -> Callable[[], object]:
    site.stack("stop", "runtime")
    return lambda: site.stack("up", "--detach", "--wait", "runtime")


def stop_database(site: Site) -> Callable[[], object]:
    site.stack("stop", "postgres")
    return lambda: site.stack("up", "--detach", "--wait", "postgres")


def unload_model(site: Site) -> Callable[[], object]:
    admin = site.key("ops", "--admin")
    eventually(
        lambda: site.runtime.post("/unload_model", json={}, headers=admin).raise_for_status()
    )
    load = {"model_name": MODEL}
    return lambda: site.runtime.post("/load_model", json=load, headers=admin).raise_for_status()


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (stop_runtime, {"RuntimeDown"}),
        (stop_database, {"DatabaseAway"}),
        (unload_model, {"ModelNotLoaded", "ErrorRateHigh"}),
    ],
)
def test_an_alert_fires_and_clears(
    quick: Site, harm: Callable[[Site], Callable[[], object]], expected: set[str]
) -> None:
    eventually(lambda: not firing(quick), seconds=60)
    mend = harm(quick)

    def told() -> bool:
        if harm is unload_model:
            assert quick.ask().status_code == 503
        return expected <= firing(quick)

    try:
        eventually(told, seconds=90)
    finally:
        mend()
    eventually(lambda: quick.serves() and not firing(quick), seconds=120)
