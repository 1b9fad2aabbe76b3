"""updatePolicy Manual: which version is used while another one waits for a person's approval."""

from dataclasses import replace

from llm_operator.crds import AvailableVersion
from llm_operator.crds.model import ServedModel
from llm_operator.plans import names
from llm_operator.plans.objects import revision
from llm_operator.state import ModelVersion, Observed, Resolution


def as_approved(observed: Observed) -> Observed:
    """The observation to plan for. With updatePolicy Manual, a moved reference stays `available`
    until its version is approved.

    Approval is level-triggered: a version is approved for as long as the annotation names it, even
    if it was written before the promotion. The way back to the version that serves needs no word,
    nor does another reference in the specification. A number that was registered anew is another
    version: the word for its number was about the former one.
    """
    model = observed.resolution.model
    asked = observed.spec.model.mlflow
    if (
        asked is None
        or asked.update_policy == "Auto"
        or model is None
        or observed.resolution.last_known
    ):
        return observed
    used = _used(observed, asked)
    if used is None or _permitted(observed, model, used):
        return observed
    return replace(observed, resolution=Resolution(used), available=model)


def _permitted(observed: Observed, model: ModelVersion, used: ModelVersion) -> bool:
    approved = observed.meta.annotations.get(names.APPROVE_ANNOTATION, "").strip()
    if revision.fresh(observed, model):
        return approved == _word(observed, model)
    stable = observed.status.stable
    serving = stable.version if stable and used.name == model.name else ""
    return model.version in (used.version, approved, serving)


def _word(observed: Observed, model: ModelVersion) -> str:
    """What the annotation must say for this version."""
    mark = revision.fresh(observed, model)
    return f"{model.version}:{mark}" if mark else model.version


def _used(observed: Observed, asked: ServedModel) -> ModelVersion | None:
    """The version in use under this very reference;
    read off what serves where the status was lost."""
    known = observed.status.model
    if known is None:
        stable = revision.recovered(observed).stable
        return ModelVersion(asked.name, stable.version) if stable else None
    same = (known.name, known.connection, known.alias, known.stage)
    if same != (asked.name, asked.connection, asked.alias, asked.stage):
        return None
    return ModelVersion(
        known.name, known.version, known.source or "", known.run_id or "", known.registered_at or ""
    )


def available(observed: Observed, stamp: str) -> AvailableVersion | None:
    """For the status: what waits, and since when."""
    if (found := observed.available) is None:
        return None
    before = observed.status.model.available if observed.status.model else None
    made = found.registered_at or None
    if before is not None and (before.version, before.registered_at) == (found.version, made):
        return before
    return AvailableVersion(version=found.version, registered_at=made, since=stamp)


def waiting_message(observed: Observed) -> str:
    """What waits, and the command that lets it go."""
    found = observed.available
    used = observed.resolution.model
    reference = observed.spec.model.mlflow
    assert found is not None
    assert used is not None
    assert reference is not None
    meta = observed.meta
    word = _word(observed, found)
    again = ", registered anew under the same number" if word != found.version else ""
    kept = (
        f"version {used.version} is kept"
        if not again
        else "the former content is kept as long as pods hold it"
    )
    if (
        (stable := observed.status.stable) is not None
        and stable.version != used.version
        and not again
    ):
        kept = f"version {used.version} stays the target, and version {stable.version} serves"
    return (
        f"{found.name}@{reference.alias or reference.stage} is version {found.version}{again},"
        f" {kept}: kubectl -n {meta.namespace} annotate llmd/{meta.name} --overwrite"
        f" {names.APPROVE_ANNOTATION}={word}"
    )
