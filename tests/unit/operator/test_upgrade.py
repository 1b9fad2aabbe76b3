"""An upgrade changes no pod: what earlier operators rendered (hack/record)
is what this one goes on with.

tests/control_plane/test_upgrade.py does the same on a real API server, with pods.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_operator import plans
from llm_operator.crds import LLMDeploymentStatus
from llm_operator.plans import names
from llm_operator.plans.objects import keys, revision
from llm_operator.state import Manifest, ModelVersion, Observed, Resolution, RevisionChildren
from unit.operator.test_golden import META, observed

RECORDED = sorted((Path(__file__).resolve().parents[2] / "upgrade").glob("*/*.yaml"))
LATER = datetime(2026, 6, 1, tzinfo=UTC)


def upgraded(case: dict[str, Any]) -> Observed:
    """What a new operator sees where an old one has applied its objects:
    all ready, and a newer runtime image set."""
    found = [copy.deepcopy(o) for o in case["out"]["objects"] if o["kind"] != "Secret"]
    for child in found:
        child["metadata"] |= {
            "uid": "u",
            "ownerReferences": [{"uid": META.uid, "controller": True}],
            "generation": 1,
        }
    status = LLMDeploymentStatus.model_validate(case["out"]["status"])
    assert status.candidate is not None
    revision = status.candidate.revision
    deployment = _of("Deployment", found)
    wanted = deployment["spec"]["replicas"]
    deployment["status"] = {"observedGeneration": 1, "readyReplicas": wanted, "replicas": wanted}
    said = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    pods = tuple({"metadata": {"name": f"p{n}"}, "status": said} for n in range(wanted))
    children = RevisionChildren(revision, deployment, _of("ConfigMap", found), pods)
    return replace(
        observed(case["in"]),
        status=status,
        revisions={revision: children},
        children=tuple(found),
        image="example.com/llm-runtime:next",
        adapters_beside_keys=keys.given(_of("Secret", case["out"]["objects"])).adapters,
    )


def _of(kind: str, objects: list[Manifest]) -> Manifest:
    return next(each for each in objects if each["kind"] == kind)


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_newer_operator_keeps_the_revision_and_the_template_of_an_older_one(file: Path) -> None:
    world = upgraded(yaml.safe_load(file.read_text()))
    plan = plans.deployment(world, settle_seconds=5, now=LATER)
    before = _of("Deployment", list(world.children))
    after = [o for o in plan.objects if o["kind"] == "Deployment"]
    assert [o["metadata"]["name"] for o in after] == [before["metadata"]["name"]], (
        "a new revision was begun"
    )
    assert after[0]["spec"]["template"] == before["spec"]["template"]
    assert after[0]["spec"]["selector"] == before["spec"]["selector"]
    assert not [o for o in plan.delete if o["kind"] in ("Deployment", "ConfigMap")]
    selector = _of("Service", list(plan.objects))["spec"]["selector"]
    assert selector[names.REVISION_LABEL] == before["metadata"]["labels"][names.REVISION_LABEL]


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_of_a_settled_deployment_an_upgrade_changes_nothing_but_what_its_monitor_selects(
    file: Path,
) -> None:
    """Neither the strategy Auto nor the Services of a roll-out reach what is not being rolled
    out. The budget of a single pod, which allowed everything, goes."""
    world = upgraded(yaml.safe_load(file.read_text()))
    settled = plans.deployment(world, settle_seconds=5, now=LATER).status
    plan = plans.deployment(replace(world, status=settled), settle_seconds=5, now=LATER)
    written = {(o["kind"], o["metadata"]["name"]): o for o in plan.objects if o["kind"] != "Secret"}
    for (kind, _), found in written.items():
        if kind == "Deployment":  # It restarts no pod.
            assert [*found["metadata"].pop("annotations")] == [names.TEMPLATE_ANNOTATION]
    recorded = yaml.safe_load(file.read_text())["out"]["objects"]
    before = {(o["kind"], o["metadata"]["name"]): o for o in recorded if o["kind"] != "Secret"}
    single = world.spec.replicas == 1 and not world.spec.autoscaling
    useless = {("PodDisruptionBudget", META.name)} if single else set()
    assert written.keys() == before.keys() - useless
    changed = {kind for (kind, name), found in written.items() if found != before[kind, name]}
    assert changed <= {
        "ServiceMonitor"
    }  # It leaves out the Services of candidates, which tell of the same pods.
    assert {(o["kind"], o["metadata"]["name"]) for o in plan.delete} == useless
    assert plan.status == settled


ADAPTERS = next(
    file for file in reversed(RECORDED) if file.stem == "adapters" and "0.1.0.dev121" in file.parts
)
"""Rendered when servers fetched adapters by themselves, with credentials beside their keys."""


def test_pods_that_fetch_adapters_by_themselves_keep_what_they_need_and_no_others_are_given_it() -> (
    None
):
    case = yaml.safe_load(ADAPTERS.read_text())
    world = upgraded(case)
    before = keys.decode(_of("Secret", case["out"]["objects"]), "adapters.json")
    plan = plans.deployment(world, settle_seconds=5, now=LATER)
    assert keys.decode(plan.key_file, "adapters.json") == before
    assert plan.adapters is None
    assert before
    assert '"password":"p"' in before

    moved = replace(
        world, resolution=Resolution(ModelVersion("support-bot", "4", "s3://bot/4", "run"))
    )
    plan = plans.deployment(moved, settle_seconds=5, now=LATER)
    made = [each["spec"]["template"] for each in plan.objects if each["kind"] == "Deployment"]
    assert sorted(map(revision.fetches_adapters, made)) == [False, True]
    assert keys.decode(plan.key_file, "adapters.json") == before
    assert plan.adapters is not None
    assert '"password":"p"' in (keys.decode(plan.adapters, "registries.json") or "")

    (old,) = moved.revisions.values()
    assert old.deployment
    gone = replace(
        old,
        deployment={**old.deployment, "spec": {**old.deployment["spec"], "replicas": 0}},
        pods=(),
    )
    plan = plans.deployment(
        replace(moved, revisions={old.revision: gone}), settle_seconds=5, now=LATER
    )
    assert keys.decode(plan.key_file, "adapters.json") == "{}"


def test_a_connection_that_is_away_for_a_moment_takes_no_adapter_from_pods_that_fetch_by_themselves() -> (
    None
):
    world = replace(upgraded(yaml.safe_load(ADAPTERS.read_text())), connections={})
    withdrawn = plans.deployment(world, settle_seconds=5, now=LATER)
    next_look = replace(world, adapters_beside_keys=keys.given(withdrawn.key_file).adapters)
    plan = plans.deployment(next_look, settle_seconds=5, now=LATER)
    listed = keys.decode(plan.key_file, "adapters.json") or ""
    assert '"adapters":[' in listed
    assert "password" not in listed
    made = [each["spec"]["template"] for each in plan.objects if each["kind"] == "Deployment"]
    assert list(map(revision.fetches_adapters, made)) == [False]


def test_there_is_something_recorded() -> None:
    assert len(RECORDED) >= 10
