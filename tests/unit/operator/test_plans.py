"""Revisions, conditions and configuration: what may change without new pods, and what may not."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llm_operator.crds import LLMDeploymentSpec, definitions
from llm_operator.crds.common import quantity_value
from llm_operator.plans.objects.config import config_text, runtime_config
from llm_operator.plans.objects.revision import revision_id
from llm_operator.plans.status.findings import as_conditions
from llm_operator.state import ModelVersion

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MODEL = ModelVersion("bot", "3")


def spec(**fields: Any) -> LLMDeploymentSpec:
    base = {"model": {"mlflow": {"name": "bot", "alias": "champion"}}}
    return LLMDeploymentSpec.model_validate(base | fields)


def test_the_revision_of_a_plain_specification_is_the_same_for_ever() -> None:
    # Changing this line restarts every pod of every user at their next operator upgrade.
    assert revision_id(spec(), MODEL) == "b088812812"


@pytest.mark.parametrize(
    "fields",
    [
        {"replicas": 5},
        {"suspend": True},
        {"autoscaling": {"maxReplicas": 3, "metrics": [{"type": "CPU", "target": 50}]}},
        {"rollout": {"strategy": "Recreate", "revisionHistoryLimit": 1}},
        {"service": {"port": 8080}},
        {"monitoring": {"serviceMonitor": {"interval": "30s"}}},
        {"engine": {"dtype": "auto", "maxModelLength": 4096}},
        {"model": {"mlflow": {"name": "bot", "version": "3"}}},
    ],
)
def test_what_does_not_shape_pods_makes_no_revision(fields: dict[str, Any]) -> None:
    assert revision_id(spec(**fields), MODEL) == revision_id(spec(), MODEL)


@pytest.mark.parametrize(
    "fields",
    [
        {"engine": {"maxModelLength": 1024}},
        {"task": "embed"},
        {"resources": {"limits": {"memory": "1Gi"}}},
        {"pod": {"env": [{"name": "A", "value": "b"}]}},
        {"image": "example.com/llm-runtime:1-cpu"},
        {"pod": {"imagePullPolicy": "Always"}},
        {"pod": {"fetchResources": {"limits": {"memory": "1Gi"}}}},
        {"access": {"authentication": "Disabled"}},
        {"rollout": {"drainSeconds": 5}},
        {"modelCache": {"emptyDir": {"sizeLimit": "1Gi"}}},
        {"server": {"corsOrigins": ["https://a"]}},
    ],
)
def test_what_shapes_pods_makes_a_new_revision(fields: dict[str, Any]) -> None:
    assert revision_id(spec(**fields), MODEL) != revision_id(spec(), MODEL)


def test_the_task_reaches_the_runtime_and_an_older_one_hears_nothing_new() -> None:
    told = [
        json.loads(config_text(runtime_config("bot", spec(**fields), MODEL, None)))["engine"]
        for fields in ({}, {"task": "embed"})
    ]
    assert [engine.get("task") for engine in told] == [None, "embed"]


def test_the_moment_of_a_condition_moves_only_with_its_status() -> None:
    first = as_conditions({"Ready": ("True", "Serving", "a")}, (), 1, NOW)
    later = NOW + timedelta(hours=1)
    same = as_conditions({"Ready": ("True", "Serving", "b")}, first, 2, later)
    other = as_conditions({"Ready": ("False", "Scaling", "b")}, first, 2, later)
    assert same[0].last_transition_time == first[0].last_transition_time
    assert other[0].last_transition_time != first[0].last_transition_time


@pytest.mark.parametrize(
    ("text", "value"),
    [("1Mi", 1 << 20), ("500m", 0.5), ("2", 2), ("1e3", 1000), ("1.5Gi", 1.5 * (1 << 30))],
)
def test_quantities(text: str, value: float) -> None:
    assert float(quantity_value(text)) == value


def bounded(schema: dict[str, Any], path: str = "") -> list[str]:
    """Paths of strings, lists and maps without a maximum: CEL would be too dear."""
    kind = schema.get("type")
    missing = []
    if (
        kind == "string"
        and not {"maxLength", "enum", "format"} & set(schema)
        and path.startswith(".spec")
    ):
        missing.append(path)
    if kind == "array":
        missing += [path] * ("maxItems" not in schema) + bounded(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        missing += [path] * ("maxProperties" not in schema) + bounded(
            schema["additionalProperties"], f"{path}{{}}"
        )
    for name, field in schema.get("properties", {}).items():
        missing += bounded(field, f"{path}.{name}")
    return missing


def described(schema: dict[str, Any], path: str = "") -> list[str]:
    """Paths of fields without a description."""
    return [
        found
        for name, field in schema.get("properties", {}).items()
        for found in [
            *([f"{path}.{name}"] if "description" not in field else []),
            *described(field, f"{path}.{name}"),
        ]
    ]


@pytest.mark.parametrize("name", sorted(definitions()))
def test_every_field_is_bounded_and_described(name: str) -> None:
    schema = definitions()[name]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert bounded(schema) == []
    plain = {".apiVersion", ".kind", ".metadata"}
    keys = ("key", "whenUnsatisfiable")
    missing = [path for path in described(schema) if path not in plain and not path.endswith(keys)]
    assert [path for path in missing if not path.startswith((".spec.pod", ".spec.selector"))] == []
