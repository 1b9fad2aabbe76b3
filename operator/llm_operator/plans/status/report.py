"""The status of an LLMDeployment: what it says beside its conditions."""

from datetime import datetime

from llm_operator.crds import AvailableVersion, LLMDeploymentStatus, ModelStatus
from llm_operator.plans.objects import network
from llm_operator.plans.rollout import stamp
from llm_operator.plans.status import conditions
from llm_operator.plans.status.picture import Picture
from llm_operator.state import ModelVersion, Observed


def status(picture: Picture) -> LLMDeploymentStatus:
    """The status once the plan is carried out."""
    observed = picture.observed
    decision = picture.decision
    return LLMDeploymentStatus(
        observed_generation=observed.meta.generation,
        model=_model(observed, picture.now),
        conditions=conditions.deployment(picture),
        adapters=picture.adapters.versions,
        adapter_candidates=picture.adapters.candidates,
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
        anew=observed.anew or None,
        available=_available(observed, now),
    )
    # A field that an older operator did not write must not count as a change.
    loose = {
        "resolved_at": None,
        "available": found.available,
        "registered_at": found.registered_at,
    }
    same = before is not None and found == before.model_copy(update=loose)
    return found.model_copy(
        update={"resolved_at": before.resolved_at if before and same else stamp(now)}
    )


def _same_number(before: ModelStatus, model: ModelVersion) -> bool:
    return (before.name, before.version) == (model.name, model.version)


def _available(observed: Observed, now: datetime) -> AvailableVersion | None:
    """What waits for a person's word, and since when."""
    if (found := observed.available) is None:
        return None
    before = observed.status.model.available if observed.status.model else None
    made = found.registered_at or None
    if before is not None and (before.version, before.registered_at) == (found.version, made):
        return before
    return AvailableVersion(version=found.version, registered_at=made, since=stamp(now))
