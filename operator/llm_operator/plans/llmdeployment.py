"""The plan for one LLMDeployment: its objects, status and Events, from what was observed. Pure.

Its stages, in order: `approval` (the version to plan for), `objects.adapter_judgement`, `rollout`
(the decision), `objects.children`, `status` and `events`. Each gets what those before it answered.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from llm_operator.crds import LLMDeploymentStatus
from llm_operator.plans import approval, events, rollout
from llm_operator.plans.objects import adapter_judgement, children, revision
from llm_operator.plans.status import adapter_status, faults, report
from llm_operator.plans.status.findings import with_fault
from llm_operator.plans.status.picture import Picture
from llm_operator.state import Fault, Observed, Plan

CHILD_KINDS = (
    "Deployment",
    "ConfigMap",
    "Service",
    "ServiceAccount",
    "HorizontalPodAutoscaler",
    "PodDisruptionBudget",
)
"""Kinds of children that are listed for pruning. Secrets are not: the operator may not list them,
and knows their names."""


def deployment(observed: Observed, *, settle_seconds: float, now: datetime) -> Plan:
    """The plan for one LLMDeployment."""
    observed, situation = _aim(observed, settle_seconds, now)
    observed = replace(observed, adapter_versions=adapter_judgement.judge(observed, now))
    decision = rollout.advance(situation)
    made = children.planned(observed, decision, situation.wanted)
    adapters = adapter_status.report(observed, now)
    mishaps = faults.mishaps(pod for each in observed.revisions.values() for pod in each.pods)
    picture = Picture(
        observed, decision, situation.replicas, now, adapters, mishaps, applied=made.fault
    )
    status = report.status(picture)
    stalls_in = picture.stalls_in
    asked = (
        decision.requeue_seconds,
        adapter_status.look_again(observed, adapters, status, now),
        stalls_in.total_seconds() if stalls_in is not None and stalls_in > timedelta() else None,
    )
    of_adapters = adapter_status.events(observed, status)
    return Plan(
        key_file=made.key_file,
        adapters=made.adapters,
        objects=made.objects,
        delete=made.delete,
        status=status,
        occurrences=(
            *events.together(decision.occurrences, events.changes(observed, status, of_adapters)),
            *events.mishaps(mishaps, now),
        ),
        requeue_seconds=min((seconds for seconds in asked if seconds is not None), default=None),
    )


def replaced(observed: Observed, now: datetime) -> bool:
    """Whether another revision is wanted than the candidate of the status."""
    return rollout.replaced(_aim(observed, 0.0, now)[1])


def _aim(
    observed: Observed, settle_seconds: float, now: datetime
) -> tuple[Observed, rollout.Situation]:
    """The observation as approved, and what the roll-out is decided from."""
    known = revision.recovered(observed)
    observed = approval.as_approved(observed, known.stable)
    http_route = observed.spec.rollout.http_route
    situation = rollout.Situation(
        status=known,
        wanted=revision.wanted(observed),
        revisions=observed.revisions,
        faults=observed.faults,
        spec=observed.spec.rollout,
        replicas=0 if observed.spec.suspend else observed.spec.replicas,
        settle_seconds=settle_seconds,
        now=now,
        annotations=observed.meta.annotations,
        kept=revision.kept(observed),
        evidence=observed.evidence,
        routed=http_route is not None and observed.http_routes,
        coming=observed.coming,
    )
    return observed, situation


@dataclass(frozen=True)
class Applied:
    """How applying a plan went."""

    fault: Fault | None = None
    """The worst that happened."""
    turned: bool = True
    """The traffic goes where the plan sends it."""
    passing: bool = False
    """All that went wrong may go right the next time."""


def after_apply(
    plan: Plan, observed: Observed, applied: Applied, now: datetime
) -> LLMDeploymentStatus:
    """The status once it is known how applying went.

    The record of the roll-out (times, failures, holds) goes on whatever was refused. Where traffic
    could not be turned, the status does not say that it was, nor anything that follows from it.
    """
    if applied.fault is None:
        return plan.status
    before = observed.status
    after = plan.status
    told = with_fault(after.conditions, before.conditions, applied.fault, now)
    if applied.turned or not _turns(before, after):
        return after.model_copy(update={"conditions": told})
    kept = ("stable", "candidate", "history", "replicas", "ready_replicas", "selector")
    return after.model_copy(
        update={**{name: getattr(before, name) for name in kept}, "conditions": told},
    )


def recorded(plan: Plan, status: LLMDeploymentStatus) -> bool:
    """Whether the status shows what the plan decided. Until it does, the plan's Events are not
    written."""
    return (status.stable, status.candidate) == (plan.status.stable, plan.status.candidate)


def _turns(before: LLMDeploymentStatus, after: LLMDeploymentStatus) -> bool:
    """Whether traffic goes another way in `after`,
    as where a candidate gets some or is promoted."""
    if (before.stable and before.stable.revision) != (after.stable and after.stable.revision):
        return True
    old = before.candidate
    new = after.candidate
    if new is None or new.outcome is not None:
        return False
    known = old if old is not None and old.revision == new.revision else None
    had = (known.traffic_since, known.weight or 0) if known else (None, 0)
    return (new.traffic_since, new.weight or 0) != had
