"""updatePolicy Manual: which version is used while another one waits for a person's approval.
And which number was registered anew, so that it stands for another version."""

from dataclasses import replace

from llm_operator.crds import StableStatus
from llm_operator.crds.model import ServedModel
from llm_operator.plans import names
from llm_operator.state import ModelVersion, Observed, Resolution


def as_approved(observed: Observed, stable: StableStatus | None) -> Observed:
    """The observation to plan for. With updatePolicy Manual, a moved reference stays `available`
    until its version is approved. `stable`: what serves, also where the status was lost.

    Approval is level-triggered: a version is approved for as long as the annotation names it, even
    if it was written before the promotion. The way back to the version that serves needs no word,
    nor does another reference in the specification. A number that was registered anew is another
    version: the word for its number was about the former one.
    """
    model = observed.resolution.model
    if model is None:
        return observed
    asked = observed.spec.model.mlflow
    used = None
    if asked is not None and asked.update_policy != "Auto" and not observed.resolution.last_known:
        used = _used(observed, asked, stable)
    fresh = _fresh(observed, model)
    word = f"{model.version}:{fresh}" if fresh else model.version
    if used is None or _permitted(observed, model, used, word):
        return replace(observed, anew=_anew(observed, model))
    return replace(
        observed,
        resolution=Resolution(used),
        available=model,
        approval_word=word,
        anew=_anew(observed, used),
    )


def _used(
    observed: Observed, asked: ServedModel, stable: StableStatus | None
) -> ModelVersion | None:
    """The version in use under this very reference;
    read off what serves where the status was lost."""
    known = observed.status.model
    if known is None:
        return ModelVersion(asked.name, stable.version) if stable else None
    same = (known.name, known.connection, known.alias, known.stage)
    if same != (asked.name, asked.connection, asked.alias, asked.stage):
        return None
    return ModelVersion(
        known.name, known.version, known.source or "", known.run_id or "", known.registered_at or ""
    )


def _permitted(observed: Observed, model: ModelVersion, used: ModelVersion, word: str) -> bool:
    approved = observed.meta.annotations.get(names.APPROVE_ANNOTATION, "").strip()
    if word != model.version:
        return approved == word
    stable = observed.status.stable
    serving = stable.version if stable and used.name == model.name else ""
    return model.version in (used.version, approved, serving)


def _anew(observed: Observed, model: ModelVersion) -> str:
    """Mark of a version whose number was deleted while it was in use, and registered anew. Empty
    for every other version, which its number identifies."""
    known = observed.status.model
    if known is None or not _same_number(observed, model):
        return ""
    return _fresh(observed, model) or known.anew or ""


def _fresh(observed: Observed, model: ModelVersion) -> str:
    """The mark of a version that was registered under the number in use since;
    empty for any other."""
    known = observed.status.model
    if known is None or not _same_number(observed, model):
        return ""
    if model.registered_at:
        # A value that an older operator did not record decides nothing, so an upgrade rolls out
        # nothing.
        same = known.registered_at in (None, "", model.registered_at)
        value = model.registered_at
    else:
        same = not (known.source and model.source) or known.source == model.source[:2048]
        value = model.source
    return "" if same else names.mark(value)


def _same_number(observed: Observed, model: ModelVersion) -> bool:
    known = observed.status.model
    reference = observed.spec.model.mlflow
    if known is None or reference is None:
        return False
    return (known.name, known.version, known.connection) == (
        model.name,
        model.version,
        reference.connection,
    )
