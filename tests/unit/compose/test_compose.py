"""The compose stack, read as its consumers read it:
there is no Docker engine here that could start it.

What it names must be there: Dockerfiles, files, settings, ports, paths,
and every metric of alerts and dashboard.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from llm_runtime import contract
from llm_runtime.metrics import Metrics, Sources
from llm_runtime.request import EngineStats
from llm_runtime.settings import Environment
from promql import TARGET_LABELS, labels_in, series_in

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "manifests"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROMETHEUS = FOLDER / "compose/prometheus"
RUNBOOK = (ROOT / "docs/operations.md").read_text()
DASHBOARD = json.loads((FOLDER / "compose/grafana/dashboards/llm-runtime.json").read_text())


def settings_of_the_runtime() -> set[str]:
    """Names that the environment may have;
    DATABASE_URL is in the contract for the operator, too."""
    fields = Environment.model_fields.items()
    aliases = {
        str(choice) for _, f in fields for choice in getattr(f.validation_alias, "choices", ())
    }
    return {name.upper() for name, _ in fields} | aliases | {contract.ENV_DATABASE_URL}


def test_every_service_is_confined_and_has_a_health_check() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert re.fullmatch(r"[1-9]\d*:\d+", service["user"]), f"{name} runs as root"
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert "start_period" in service["healthcheck"], name


def test_the_runtime_has_a_memory_limit_and_no_swap_beyond_it() -> None:
    runtime = SERVICES["runtime"]
    assert runtime["mem_limit"] == runtime["memswap_limit"] == "${RUNTIME_MEMORY:-4g}"
    assert "RUNTIME_MEMORY=4g" in (FOLDER / "compose/env.example").read_text()


def test_images_are_pinned_to_a_version() -> None:
    for name, service in SERVICES.items():
        tag = re.sub(r"\$\{[A-Z_]+:-(.*?)\}", r"\1", service["image"]).rpartition(":")[2]
        assert re.match(r"v?\d+\.\d+", tag), f"{name}: {service['image']}"


def test_every_image_of_another_registry_can_be_one_of_a_mirror() -> None:
    official = (
        COMPOSE["x-bases"]["BASE_IMAGE"],
        *(s["image"] for s in SERVICES.values() if "build" not in s),
    )
    for image in official:
        assert re.fullmatch(r"\$\{[A-Z]+_IMAGE:-[^$]+\}", image), image
    for name in ("runtime", "mlflow"):
        assert SERVICES[name]["build"]["args"].items() >= COMPOSE["x-bases"].items(), name
    assert "python:" not in SERVICES["mlflow"]["build"]["dockerfile_inline"]


def test_mlflow_is_the_version_that_the_tests_run_against() -> None:
    tested, installed = (
        re.findall(r"^mlflow==(\S+)", (ROOT / f"requirements/{name}.txt").read_text(), re.M)
        for name in ("dev", "mlflow")
    )
    assert tested == installed
    assert SERVICES["mlflow"]["image"].endswith(f":{tested[0]}")


def test_mlflow_is_installed_by_its_hashes() -> None:
    build = SERVICES["mlflow"]["build"]
    assert "pip install --no-cache-dir --require-hashes --no-deps" in build["dockerfile_inline"]
    lock = (ROOT / "manifests" / build["context"] / "requirements/mlflow.txt").resolve()
    pinned = re.findall(r"^[a-z][^ ]*==", lock.read_text(), re.M)
    assert len(pinned) > 20
    assert lock.read_text().count("--hash=sha256:") >= len(pinned)


def test_the_runtime_is_built_from_its_dockerfile_and_runs_as_its_user() -> None:
    runtime = SERVICES["runtime"]
    dockerfile = (FOLDER / runtime["build"]["context"] / runtime["build"]["dockerfile"]).read_text()
    assert f"USER {runtime['user']}" in dockerfile
    assert f"EXPOSE {contract.PORT}" in dockerfile
    assert [f"127.0.0.1:${{RUNTIME_PORT:-{contract.PORT}}}:{contract.PORT}"] == runtime["ports"]
    assert (
        f"http://127.0.0.1:{contract.PORT}{contract.READY_PATH}"
        in runtime["healthcheck"]["test"][-1]
    )
    # Read-only but for these two: the models' volume takes the owner of the image's folder.
    assert runtime["volumes"] == [f"models:{contract.MODELS_MOUNT}"]
    assert f"chown {runtime['user']} {contract.MODELS_MOUNT}" in dockerfile
    assert runtime["tmpfs"] == [contract.SCRATCH_MOUNT]


def test_the_runtime_is_given_time_to_drain() -> None:
    assert (
        int(SERVICES["runtime"]["stop_grace_period"].removesuffix("s"))
        > contract.ServerConfig().drain_seconds
    )


def test_every_setting_of_the_runtime_is_one_that_it_reads() -> None:
    assert set(SERVICES["runtime"]["environment"]) <= settings_of_the_runtime()


def test_addresses_between_services_are_those_of_services() -> None:
    environment = SERVICES["runtime"]["environment"]
    assert environment["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert "--port=5000" in SERVICES["mlflow"]["command"]
    assert any(
        word.startswith("--allowed-hosts=mlflow:5000,") for word in SERVICES["mlflow"]["command"]
    )
    postgres = SERVICES["postgres"]["environment"]
    address = re.sub(r"\$\{.*?\}", "password", environment["DATABASE_URL"])
    assert (
        address
        == f"postgresql://{postgres['POSTGRES_USER']}:password@postgres:5432/{postgres['POSTGRES_DB']}"
    )
    source = yaml.safe_load(
        (FOLDER / "compose/grafana/provisioning/datasources/prometheus.yaml").read_text()
    )
    assert source["datasources"][0]["url"] == "http://prometheus:9090"


def test_what_depends_waits_until_the_other_is_healthy() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in SERVICES, name
            assert how == {"condition": "service_healthy"}, name


def test_only_this_machine_reaches_the_ports() -> None:
    for name, service in SERVICES.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_volumes_are_declared_and_mounted_files_exist() -> None:
    named = set()
    for service in SERVICES.values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            named |= {source} if not source.startswith(".") else set()
            assert not source.startswith(".") or (FOLDER / source).exists(), source
    assert named == set(COMPOSE["volumes"])


def test_every_variable_is_in_the_example_and_secrets_have_no_default() -> None:
    used = dict(re.findall(r"\$\{([A-Z_]+)(:[-?])", (FOLDER / "compose.yaml").read_text()))
    offered = set(
        re.findall(r"^(?:# )?([A-Z_]+)=", (FOLDER / "compose/env.example").read_text(), re.M)
    )
    assert set(used) == offered
    assert {name for name, how in used.items() if how == ":?"} == {
        "API_KEY", "POSTGRES_PASSWORD", "GRAFANA_ADMIN_PASSWORD"
    }  # fmt: skip


def test_the_gpu_file_adds_to_a_service_that_is_there() -> None:
    gpu = yaml.safe_load((FOLDER / "compose.gpu.yaml").read_text())
    assert set(gpu["services"]) == {"runtime"}


def exposed() -> Iterator[str]:
    """Every series of the runtime's registry, and those that Prometheus itself adds."""
    metrics = Metrics()
    stats = EngineStats(0, 0, 0.0, 0, True, gpu_memory_bytes=0)
    metrics.watch(Sources(engine=lambda: stats, database_away=lambda: False))
    for family in metrics.registry.collect():
        if family.type == "counter":
            yield f"{family.name}_total"
        elif family.type == "histogram":
            yield from (f"{family.name}_{end}" for end in ("bucket", "sum", "count"))
        else:
            yield family.name
    yield "up"


SERIES = set(exposed())
LABELS = TARGET_LABELS | {
    label
    for one in vars(Metrics()).values()
    if isinstance(one, MetricWrapperBase)
    for label in one._labelnames
}


def expressions() -> list[tuple[str, str]]:
    alerts = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())
    rules = [(rule["alert"], rule["expr"]) for group in alerts["groups"] for rule in group["rules"]]
    shown = [
        (panel["title"], target["expr"])
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    ]
    return [*rules, *shown]


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_every_metric_and_label_is_one_of_the_runtimes(where: str, expression: str) -> None:
    assert series_in(expression), where
    assert series_in(expression) <= SERIES
    assert labels_in(expression) <= LABELS


def test_a_metric_that_is_not_there_would_be_found() -> None:
    expression = 'sum by (le, x) (rate(gone_total{type=~"a|b", other="c"}[5m])) / sum(up) > 0.5'
    assert series_in(expression) == {"gone_total", "up"}
    assert labels_in(expression) == {"le", "x", "type", "other"}


def test_prometheus_scrapes_the_runtime_and_reads_the_rules() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert jobs["llm-runtime"]["metrics_path"] == contract.METRICS_PATH
    assert jobs["llm-runtime"]["static_configs"] == [{"targets": [f"runtime:{contract.PORT}"]}]
    assert all((PROMETHEUS / file).is_file() for file in config["rule_files"])


def test_every_alert_says_what_it_means_and_what_to_do() -> None:
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert {"summary", "description"} == set(rule["annotations"]), rule["alert"]
            assert rule["labels"]["severity"] in {"critical", "warning", "info"}
            assert f"### {rule['alert']}\n" in RUNBOOK, (
                f"docs/operations.md has no section {rule['alert']}"
            )


def test_the_dashboard_is_whole() -> None:
    panels = DASHBOARD["panels"]
    assert DASHBOARD["schemaVersion"] >= 41
    assert len({panel["id"] for panel in panels}) == len(panels)
    source = yaml.safe_load(
        (FOLDER / "compose/grafana/provisioning/datasources/prometheus.yaml").read_text()
    )
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] == "row":
            continue
        assert panel["description"]
        assert panel["datasource"]["uid"] == source["datasources"][0]["uid"]
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels]
    assert len(set(places)) == len(places)


def test_grafana_finds_the_dashboard_where_it_is_mounted() -> None:
    mounted = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    provider = yaml.safe_load(
        (FOLDER / "compose/grafana/provisioning/dashboards/files.yaml").read_text()
    )
    folder = provider["providers"][0]["options"]["path"]
    assert mounted["./compose/grafana/dashboards"] == folder
    assert SERVICES["grafana"]["environment"][
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"
    ].startswith(f"{folder}/")


@pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed (apt-get install prometheus)",
)
def test_promtool_accepts_the_configuration_and_the_alerts_fire_when_they_should() -> None:
    for what, file in (("config", "prometheus.yml"), ("rules", "alerts.yml")):
        subprocess.run(
            ["promtool", "check", what, str(PROMETHEUS / file)], check=True, capture_output=True
        )
    stories = Path(__file__).parent / "alerts.test.yml"
    subprocess.run(["promtool", "test", "rules", str(stories)], check=True, capture_output=True)
