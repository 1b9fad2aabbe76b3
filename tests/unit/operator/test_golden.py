"""Each golden folder: a situation in, everything that the operator would apply out.

UPDATE_GOLDEN=1 pytest tests/unit/operator/test_golden.py rewrites the expectations; read the
difference. tests/control_plane/test_crds.py lets a real API server judge the same objects.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_operator import plans
from llm_operator.crds import ApiKeySpec, LLMDeploymentSpec, LLMDeploymentStatus
from llm_operator.plans.objects import keys, pod_template, source
from llm_operator.settings import ContainerResources, Settings
from llm_operator.state import (
    Connection,
    DigestedKey,
    Evidence,
    Manifest,
    Meta,
    ModelVersion,
    Observed,
    Resolution,
    ResolvedAdapter,
    RevisionChildren,
    SmokeOutcome,
)

GOLDEN = Path(__file__).parent / "golden"
DEFAULTS = Settings(runtime_image="x").fetch_resources or ContainerResources()
FETCH_RESOURCES = DEFAULTS.manifest()
META = Meta("LLMDeployment", "default", "support-bot", "11111111-2222-3333-4444-555555555555", 1)


class _Dumper(yaml.SafeDumper):
    """Long texts as blocks, so that a difference can be read."""


_Dumper.add_representer(
    str,
    lambda d, text: d.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def observed(case: dict[str, Any]) -> Observed:
    spec = LLMDeploymentSpec.model_validate(case["spec"])
    secrets = (
        {"username": "u", "password": "p", "ca": "PEM", "workspace": "team"}
        if case.get("credentials")
        else {}
    )
    held = tuple(
        DigestedKey(
            k["id"],
            k["digest"],
            Meta("ApiKey", "default", k["name"], "u", 1),
            ApiKeySpec.model_validate({"owner": k["owner"], **k.get("spec", {})}),
        )
        for k in case.get("keys", [])
    )
    mlflow = spec.model.mlflow
    registered = mlflow and ModelVersion("support-bot", mlflow.version or "3", "s3://bot/3", "run")
    return Observed(
        meta=META,
        spec=spec,
        status=_status(case),
        resolution=Resolution(registered or source.version(spec.model.uri or "")),
        connection=Connection("default", "http://mlflow:5000", **secrets) if mlflow else None,
        revisions=_revisions(case),
        children=(),
        keys=held,
        image="example.com/llm-runtime:1",
        fetch_resources=FETCH_RESOURCES,
        service_monitors=case.get("service_monitors", False),
        adapters=tuple(
            ResolvedAdapter(
                each, Resolution(ModelVersion(each.mlflow.name, each.mlflow.version or "7"))
            )
            for each in spec.adapters or ()
        ),
        connections={"default": Connection("default", "http://mlflow:5000", **secrets)},
        http_routes=case.get("http_routes", False),
        operator_key=keys.operator_key(META, "operator", "cc" * 32)
        if spec.rollout.smoke_maps
        else None,
        evidence=Evidence(
            "261b89cb52", smoke={name: SmokeOutcome(1) for name in spec.rollout.smoke_maps}
        ),
    )


def _status(case: dict[str, Any]) -> LLMDeploymentStatus:
    """An earlier look: `stable` and `candidate` as the status had them."""
    return LLMDeploymentStatus.model_validate(
        {key: case[key] for key in ("stable", "candidate") if key in case}
    )


def _revisions(case: dict[str, Any]) -> dict[str, RevisionChildren]:
    """What runs of them: as many ready pods as `pods` says."""
    spec = LLMDeploymentSpec.model_validate(case["spec"])

    def stored(revision: str) -> Manifest:
        template = pod_template.pod_template(
            META, spec, revision, "example.com/llm-runtime:1", FETCH_RESOURCES
        )
        return {"data": {"config.json": "{}", "template.json": json.dumps(template)}}

    return {
        revision: RevisionChildren(
            revision,
            {"metadata": {"generation": 1}, "spec": {"replicas": count},
             "status": {"observedGeneration": 1, "replicas": count, "readyReplicas": count}},
            stored(revision),
            tuple({"metadata": {"name": f"{revision}-{number}"},
                   "status": {"conditions": [{"type": "Ready", "status": "True"}]}} for number in range(count)),
        )
        for revision, count in case.get("pods", {}).items()
    }  # fmt: skip


@pytest.mark.parametrize("folder", sorted(GOLDEN.iterdir()), ids=lambda folder: folder.name)
def test_golden(folder: Path) -> None:
    case = yaml.safe_load((folder / "in.yaml").read_text())
    plan = plans.deployment(observed(case), settle_seconds=5, now=datetime(2026, 1, 1, tzinfo=UTC))
    status = plan.status.model_dump(mode="json", by_alias=True, exclude_none=True)
    made = {
        "about": case["about"],
        "objects": [plan.key_file, *filter(None, [plan.adapters]), *plan.objects],
        "status": status,
    }
    text = yaml.dump(made, Dumper=_Dumper, sort_keys=False, width=120)
    if os.environ.get("UPDATE_GOLDEN"):
        (folder / "out.yaml").write_text(text)
    assert yaml.safe_load((folder / "out.yaml").read_text()) == yaml.safe_load(text)
