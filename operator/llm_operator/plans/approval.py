"""updatePolicy Manual: which version to use while another one waits for somebody's word."""

from dataclasses import replace

from llm_operator.crds import AvailableVersion
from llm_operator.crds.model import ServedModel
from llm_operator.plans import names, revision
from llm_operator.state import ModelVersion, Observed, Resolution


def held(observed: Observed) -> Observed:
    """What is to be planned for: with Manual, a moved reference stays `available` until its version is approved.

    Level-triggered: approved is what the annotation says for as long as it says so, be it written before the promotion.
    The way back to the version that serves needs no word, nor does another reference in the specification.
    """
    model, status, asked = observed.resolution.model, observed.status, observed.spec.model.mlflow
    if asked is None or asked.update_policy == "Auto" or model is None or observed.resolution.last_known:
        return observed
    used = _used(observed, asked)
    approved = observed.meta.annotations.get(names.APPROVE_ANNOTATION, "").strip()
    serving = status.stable.version if status.stable and used and used.name == model.name else ""
    if used is None or model.version in (used.version, approved, serving):
        return observed
    return replace(observed, resolution=Resolution(used), available=model)


def _used(observed: Observed, asked: ServedModel) -> ModelVersion | None:
    """The version in use under this very reference; read off what serves where the status was lost."""
    known = observed.status.model
    if known is None:
        stable = revision.recovered(observed).stable
        return ModelVersion(asked.name, stable.version) if stable else None
    same = (known.name, known.connection, known.alias, known.stage)
    if same != (asked.name, asked.connection, asked.alias, asked.stage):
        return None
    return ModelVersion(known.name, known.version, known.source or "", known.run_id or "")


def available(observed: Observed, stamp: str) -> AvailableVersion | None:
    """For the status: what waits, and since when."""
    if observed.available is None:
        return None
    before = observed.status.model.available if observed.status.model else None
    if before is not None and before.version == observed.available.version:
        return before
    return AvailableVersion(version=observed.available.version, since=stamp)


def told(observed: Observed) -> str:
    """What waits, and the command that lets it go."""
    found, meta, reference = observed.available, observed.meta, observed.spec.model.mlflow
    assert found is not None
    assert reference is not None
    assert observed.resolution.model is not None
    return (
        f"{found.name}@{reference.alias or reference.stage} is version {found.version}, version "
        f"{observed.resolution.model.version} is kept: kubectl -n {meta.namespace} annotate llmd/{meta.name} "
        f"--overwrite {names.APPROVE_ANNOTATION}={found.version}"
    )
