"""What each situation says in Ready, Reconciling, Stalled and Available,
and that every reason is documented."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest

from llm_operator import plans
from llm_operator.crds import CandidateStatus, LLMDeploymentSpec, LLMDeploymentStatus, StableStatus
from llm_operator.plans.objects.revision import revision_id
from llm_operator.plans.reasons import Reason
from llm_operator.state import (
    Connection,
    Fault,
    Meta,
    ModelVersion,
    Observed,
    Resolution,
    RevisionChildren,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = LLMDeploymentSpec.model_validate(
    {"model": {"mlflow": {"name": "bot", "alias": "champion"}}, "replicas": 2}
)
ONE = ModelVersion("bot", "1")
TWO = ModelVersion("bot", "2")
OLD = revision_id(SPEC, ONE)
NEW = revision_id(SPEC, TWO)
DOWN = Fault("RegistryUnreachable", "does not answer")
STABLE = StableStatus(revision=OLD, version="1", image="i", started_at="2026-01-01T00:00:00Z")
COMING = CandidateStatus(revision=NEW, version="2", image="i", started_at="2026-01-01T00:00:00Z")
FAILED = COMING.model_copy(
    update={"outcome": "Failed", "reason": "ModelCorrupt", "message": "a shard is short"}
)


def pods(revision: str, ready: int, wanted: int = 2) -> RevisionChildren:
    deployment = {
        "kind": "Deployment",
        "metadata": {"generation": 1, "name": f"bot-{revision}", "namespace": "team", "uid": "d"},
        "spec": {"replicas": wanted},
        "status": {"observedGeneration": 1, "replicas": wanted, "readyReplicas": ready},
    }
    config = {
        "kind": "ConfigMap",
        "metadata": {"name": f"bot-{revision}", "namespace": "team", "uid": "c"},
        "data": {
            "config.json": "{}",
            "template.json": '{"spec": {"containers": [{"image": "i"}]}}',
        },
    }
    said = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    played = tuple({"metadata": {"name": f"p{n}"}, "status": said} for n in range(ready))
    return RevisionChildren(revision, deployment, config, played)


@dataclass(frozen=True)
class Case:
    says: dict[str, tuple[str, str]]
    resolution: Resolution = field(default_factory=lambda: Resolution(ONE))
    status: LLMDeploymentStatus = field(default_factory=lambda: LLMDeploymentStatus(stable=STABLE))
    children: tuple[RevisionChildren, ...] = (pods(OLD, 2),)
    spec: LLMDeploymentSpec = SPEC
    faults: dict[str, Fault] = field(default_factory=dict)


def says(
    ready: str, reconciling: str, stalled: str, available: str, why: str
) -> dict[str, tuple[str, str]]:
    return {
        "Ready": (ready, why),
        "Reconciling": (reconciling, ""),
        "Stalled": (stalled, ""),
        "Available": (available, ""),
    }


ROLLING = LLMDeploymentStatus(stable=STABLE, candidate=COMING)
CASES = {
    "serving": Case(says("True", "False", "False", "True", "Serving")),
    "rolling out beside a stable version": Case(
        says("Unknown", "True", "False", "True", "RollingOut"),
        Resolution(TWO),
        ROLLING,
        (pods(OLD, 2), pods(NEW, 1)),
    ),
    "a candidate that finds no node": Case(
        says("Unknown", "True", "False", "True", "PodUnschedulable"),
        Resolution(TWO),
        ROLLING,
        (pods(OLD, 2), pods(NEW, 0)),
        faults={NEW: Fault("PodUnschedulable", "no room")},
    ),
    "the first roll-out": Case(
        says("Unknown", "True", "False", "False", "RollingOut"),
        status=LLMDeploymentStatus(),
        children=(),
    ),
    "a failed candidate": Case(
        says("False", "False", "True", "True", "ModelCorrupt"),
        Resolution(TWO),
        LLMDeploymentStatus(stable=STABLE, candidate=FAILED),
        (pods(OLD, 2), pods(NEW, 0, 0)),
    ),
    "the registry is down, the last version is known": Case(
        says("True", "False", "False", "True", "Serving"), Resolution(ONE, DOWN)
    ),
    "the registry is down from the start": Case(
        says("False", "True", "False", "False", "RegistryUnreachable"),
        Resolution(None, DOWN),
        LLMDeploymentStatus(),
        (),
    ),
    "no such model from the start": Case(
        says("False", "False", "True", "False", "ModelNotFound"),
        Resolution(None, Fault("ModelNotFound", "no model", terminal=True)),
        LLMDeploymentStatus(),
        (),
    ),
    "suspended": Case(
        says("False", "False", "False", "False", "Suspended"),
        children=(pods(OLD, 0, 0),),
        spec=SPEC.model_copy(update={"suspend": True}),
    ),
    "scaled to zero": Case(
        says("False", "False", "False", "False", "ScaledToZero"),
        children=(pods(OLD, 0, 0),),
        spec=SPEC.model_copy(update={"replicas": 0}),
    ),
    "at zero from the start": Case(
        says("False", "False", "False", "False", "ScaledToZero"),
        status=LLMDeploymentStatus(),
        children=(),
        spec=SPEC.model_copy(update={"replicas": 0}),
    ),
    "a pod is missing": Case(
        says("Unknown", "True", "False", "True", "Scaling"), children=(pods(OLD, 1),)
    ),
    "pods crash": Case(
        says("False", "True", "False", "False", "CrashLoopBackOff"),
        children=(pods(OLD, 0),),
        faults={OLD: Fault("CrashLoopBackOff", "ends again and again")},
    ),
}


def observed(case: Case) -> Observed:
    return Observed(
        meta=Meta("LLMDeployment", "team", "bot", "u", 7),
        spec=case.spec,
        status=case.status,
        resolution=case.resolution,
        connection=Connection("default", "http://mlflow:5000"),
        revisions={each.revision: each for each in case.children},
        children=(),
        keys=(),
        image="i",
        faults=case.faults,
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_situation_is_told_as_it_is(case: Case) -> None:
    told = {
        c.type: c
        for c in plans.deployment(observed(case), settle_seconds=5, now=NOW).status.conditions
    }
    assert {kind: told[kind].status for kind in case.says} == {
        kind: status for kind, (status, _) in case.says.items()
    }
    assert told["Ready"].reason == case.says["Ready"][1]
    assert {c.reason for c in told.values()} <= set(Reason)
    assert all(c.message and c.observed_generation == 7 for c in told.values())
    assert not (told["Reconciling"].status == "True" and told["Stalled"].status == "True")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_second_look_twenty_minutes_later_moves_no_transition(case: Case) -> None:
    first = plans.deployment(observed(case), settle_seconds=5, now=NOW).status
    again = replace(
        observed(case), status=case.status.model_copy(update={"conditions": first.conditions})
    )
    later = datetime(2026, 1, 1, 0, 20, tzinfo=UTC)
    second = plans.deployment(again, settle_seconds=5, now=later).status.conditions
    moments = {c.type: c.last_transition_time for c in first.conditions}
    assert {c.type: c.last_transition_time for c in second} == moments


def test_pods_that_died_are_not_counted_although_the_deployment_still_counts_them() -> None:
    """readyReplicas outlives the pods until the Deployment's controller looks again."""
    stale = replace(pods(OLD, 2), pods=())
    told = plans.deployment(observed(Case({}, children=(stale,))), settle_seconds=5, now=NOW).status
    verdicts = {c.type: c.status for c in told.conditions}
    assert (verdicts["Ready"], verdicts["Available"], told.ready_replicas) == (
        "Unknown",
        "False",
        0,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"}},
        {"status": {"phase": "Failed", "conditions": [{"type": "Ready", "status": "True"}]}},
        {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "Unknown"}]}},
    ],
    ids=["leaving", "ended", "its node is silent"],
)
def test_a_pod_counts_by_its_own_word(change: dict[str, object]) -> None:
    whole = pods(OLD, 2)
    children = replace(whole, pods=(whole.pods[0], {**whole.pods[1], **change}))
    told = plans.deployment(
        observed(Case({}, children=(children,))), settle_seconds=5, now=NOW
    ).status
    assert (told.ready_replicas, {c.type: c.status for c in told.conditions}["Ready"]) == (
        1,
        "Unknown",
    )
