"""The plan for one LLMDeployment: its objects, status and Events, from what was observed. Pure.

The parts stand elsewhere: the roll-out's decision in `rollout`, each object in `objects`, each
condition in `status`. Here they are put together.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from llm_operator.crds import LLMDeploymentStatus, ModelStatus
from llm_operator.plans import approval, events, names, rollout
from llm_operator.plans.objects import (
    adapter_judgement,
    adapters,
    autoscale,
    keys,
    monitor,
    network,
    revision,
    shadow,
    traffic,
    workload,
)
from llm_operator.plans.reasons import Reason
from llm_operator.plans.status import adapter_status, conditions
from llm_operator.state import Fault, Manifest, ModelVersion, Observed, Plan

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
    observed = approval.as_approved(observed)
    observed = replace(observed, adapter_versions=adapter_judgement.judge(observed, now))
    situation = _situation(observed, settle_seconds, now)
    decision = rollout.advance(situation)
    objects, lost = _objects(observed, decision)
    fault = _fault(observed, lost)
    picture = conditions.Picture(observed, decision, situation.replicas, fault)
    status = _status(observed, decision, picture, now)
    stalls_in = conditions.stalls_in(picture, now)
    deadline = (
        stalls_in.total_seconds() if stalls_in is not None and stalls_in > timedelta() else None
    )
    asked = (decision.requeue_seconds, adapter_status.look_again(observed, status, now), deadline)
    looks = [seconds for seconds in asked if seconds is not None]
    return Plan(
        key_file=_key_file(observed, decision),
        adapters=adapters.secret(observed) if _with_adapters(observed, objects) else None,
        objects=objects,
        delete=prune(observed, objects, decision),
        status=status,
        occurrences=(
            *events.together(decision.occurrences, events.changes(observed, status)),
            *events.mishaps(observed, now),
        ),
        requeue_seconds=min(looks, default=None),
    )


def replaced(observed: Observed, now: datetime) -> bool:
    """Whether another revision is wanted than the candidate of the status."""
    return rollout.replaced(_situation(approval.as_approved(observed), 0.0, now))


def _situation(observed: Observed, settle_seconds: float, now: datetime) -> rollout.Situation:
    """What the roll-out is decided from; `observed`: as approved."""
    return rollout.Situation(
        status=revision.recovered(observed),
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
        routed=traffic.routed(observed),
        coming=observed.coming,
    )


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
    told = conditions.with_fault(after.conditions, before.conditions, applied.fault, now)
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


def _objects(observed: Observed, decision: rollout.Decision) -> tuple[tuple[Manifest, ...], str]:
    """What should exist beside the key file, in the order of need;
    and a running revision that can't be rebuilt."""
    meta = observed.meta
    spec = observed.spec
    found: list[Manifest] = [network.service_account(meta, observed.pull_secrets)]
    if spec.model.mlflow:
        found.append(keys.registry_secret(meta, observed.connection))
    found += traffic.objects(observed, decision)
    lost = ""
    for name, replicas in decision.replicas.items():
        snapshot = revision.snapshot(observed, name)
        if snapshot is None:
            lost = name if replicas else lost
            continue
        found.append(workload.config_map(meta, name, snapshot.config, snapshot.template))
        found.append(workload.deployment(meta, spec, name, snapshot.template, replicas))
    if spec.autoscaling and not spec.suspend:
        found.append(autoscale.autoscaler(meta, spec.autoscaling))
    if observed.service_monitors and spec.monitoring.service_monitor.enabled != "Disabled":
        found.append(monitor.service_monitor(meta, spec))
    return tuple(found), lost


def _with_adapters(observed: Observed, objects: Iterable[Manifest]) -> bool:
    """Whether pods of any revision, running or planned, have a container that fetches adapters."""
    templates = [revision.template(each) for each in observed.revisions.values()]
    templates += [each["spec"]["template"] for each in objects if each["kind"] == "Deployment"]
    return any(workload.fetches_adapters(each) for each in templates)


def _key_file(observed: Observed, decision: rollout.Decision) -> Manifest:
    digested = (*observed.keys, *([observed.operator_key] if observed.operator_key else []))
    beside = adapters.beside_keys(observed)
    return keys.keys_secret(
        observed.meta, observed.spec.access, digested, beside, shadow.file(observed, decision)
    )


def prune(
    observed: Observed, objects: Iterable[Manifest], decision: rollout.Decision
) -> tuple[Manifest, ...]:
    """Own children that are not wanted.
    A revision's Deployment goes last: a crash in between leaves it findable."""
    wanted = {(o["kind"], o["metadata"]["name"]) for o in objects}
    # A revision that can't be rebuilt still serves:
    # it is no longer repaired, but not taken away either.
    kept = {
        names.child(observed.meta, name) for name, replicas in decision.replicas.items() if replicas
    }
    unwanted = [
        child
        for child in observed.children
        if (child["kind"], child["metadata"]["name"]) not in wanted
        and not (child["kind"] in ("Deployment", "ConfigMap") and child["metadata"]["name"] in kept)
        # Without a decision on what serves, nothing that serves is taken away.
        and not (not decision.serving and child["kind"] in ("Service", "PodDisruptionBudget"))
    ]
    return tuple(sorted(unwanted, key=lambda child: child["kind"] == "Deployment"))


def _fault(observed: Observed, lost: str) -> Fault | None:
    if (
        lost
        and observed.spec.model.mlflow
        and observed.connection is None
        and observed.resolution.fault
    ):
        return observed.resolution.fault
    if lost:
        return Fault(
            Reason.RevisionLost,
            f"the ConfigMap {names.child(observed.meta, lost)} was deleted or changed: its pods"
            " keep running, but a new pod of this revision can't start; change the specification"
            " or move the alias to roll out a new one",
        )
    asked = observed.spec.monitoring.service_monitor.enabled == "Enabled"
    if asked and not observed.service_monitors:
        return Fault(
            Reason.ServiceMonitorMissing,
            "spec.monitoring.serviceMonitor.enabled is Enabled but the cluster has no"
            " ServiceMonitor CRD: install the Prometheus operator, or write Auto",
        )
    return traffic.fault(observed)


def _status(
    observed: Observed, decision: rollout.Decision, picture: conditions.Picture, now: datetime
) -> LLMDeploymentStatus:
    return LLMDeploymentStatus(
        observed_generation=observed.meta.generation,
        conditions=conditions.deployment(picture, now),
        model=_model(observed, now),
        adapters=adapter_status.status(observed, now),
        adapter_candidates=adapter_status.candidates(observed, now),
        stable=decision.stable,
        candidate=decision.candidate.status() if decision.candidate else None,
        history=decision.history,
        directive=decision.directive,
        rollback=decision.rollback,
        replicas=sum(each.replicas for each in picture.serving),
        ready_replicas=picture.ready,
        selector=",".join(
            f"{name}={value}"
            for name, value in network.selector(observed.meta, decision.serving).items()
        ),
        url=network.url(observed.meta, observed.spec),
    )


def _model(observed: Observed, now: datetime) -> ModelStatus | None:
    model = observed.resolution.model
    before = observed.status.model
    if model is None or observed.resolution.last_known:
        return before
    reference = observed.spec.model.mlflow
    found = ModelStatus(
        name=model.name,
        version=model.version,
        alias=reference.alias if reference else None,
        stage=reference.stage if reference else None,
        connection=reference.connection if reference else None,
        source=model.source or None,
        run_id=model.run_id or None,
        registered_at=model.registered_at
        or (before.registered_at if before and _same_number(before, model) else None),
        anew=revision.anew(observed) or None,
        available=approval.available(observed, rollout.stamp(now)),
    )
    # A field that an older operator did not write makes no other version.
    loose = {
        "resolved_at": None,
        "available": found.available,
        "registered_at": found.registered_at,
    }
    same = before is not None and found == before.model_copy(update=loose)
    return found.model_copy(
        update={"resolved_at": before.resolved_at if before and same else rollout.stamp(now)}
    )


def _same_number(before: ModelStatus, model: ModelVersion) -> bool:
    return (before.name, before.version) == (model.name, model.version)
