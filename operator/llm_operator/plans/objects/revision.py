"""What a revision is made of, and how it is found again when part of it is gone."""

import hashlib
import json
from dataclasses import dataclass

from llm_operator.crds import LLMDeploymentStatus, StableStatus
from llm_operator.plans import names
from llm_operator.plans.objects import pod_template, source, workload
from llm_operator.plans.objects.config import config_text, revision_id, runtime_config
from llm_operator.plans.rollout import Wanted
from llm_operator.state import Manifest, ModelVersion, Observed, RevisionChildren
from llm_runtime import contract


@dataclass(frozen=True)
class Snapshot:
    """What a revision's pods are made from: the configuration file and the pods' template."""

    config: str
    template: Manifest


def wanted(observed: Observed) -> Wanted | None:
    """The revision that the specification asks for;
    its image is the one that it was first made with.

    That image is spec.image, which the revision's id covers,
    or else the one of the operator's configuration at that time.
    """
    model = observed.resolution.model
    if model is None:
        return None
    revision = _id(observed, model)
    return Wanted(
        revision, model.version, _image(observed, revision) or observed.spec.image or observed.image
    )


def _id(observed: Observed, model: ModelVersion) -> str:
    plain, fetching = (
        revision_id(observed.spec, model, anew(observed), adapters=each) for each in (False, True)
    )
    run = {name for name, each in observed.revisions.items() if each.wanted}
    if observed.spec.adapters is None:
        # The last adapter that goes restarts no pod:
        # a server-side apply of an empty list takes the field away, too.
        return fetching if fetching in run and plain not in run else plain
    # Nor does an upgrade: these pods fetch by themselves.
    return plain if observed.adapters_beside_keys and plain in run else fetching


def anew(observed: Observed) -> str:
    """Mark of a version whose number was deleted while it was in use, and registered anew. Empty
    for every other version, which its number identifies."""
    model = observed.resolution.model
    known = observed.status.model
    if model is None or known is None or not _same_number(observed, model):
        return ""
    return fresh(observed, model) or known.anew or ""


def fresh(observed: Observed, model: ModelVersion) -> str:
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
    return "" if same else mark(value)


def mark(text: str) -> str:
    """Digest of what distinguishes a version from others of the same number."""
    return hashlib.sha256(text.encode()).hexdigest()[:10]


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


def kept(observed: Observed) -> dict[str, Wanted]:
    """Revisions that have served and can be gone back to, newest first."""
    served = [entry for entry in observed.status.history if entry.served]
    stable = observed.status.stable
    versions = {entry.revision: entry.version for entry in reversed(served)}
    order = [
        *([stable.revision] if stable else []),
        *dict.fromkeys(entry.revision for entry in served),
    ]
    if stable:
        versions[stable.revision] = stable.version
    return {
        name: Wanted(name, versions[name], _image(observed, name) or observed.image)
        for name in order
        if (found := observed.revisions.get(name)) is not None and found.config is not None
    }


def snapshot(observed: Observed, revision: str) -> Snapshot | None:
    """The revision as remembered, else rebuilt from the specification if it is still the wanted
    one."""
    children = observed.revisions.get(revision)
    stored = (children.config or {}).get("data", {}) if children else {}
    if contract.CONFIG_FILE in stored and workload.TEMPLATE_FILE in stored:
        return Snapshot(
            _readdressed(observed, stored[contract.CONFIG_FILE]),
            json.loads(stored[workload.TEMPLATE_FILE]),
        )
    target = wanted(observed)
    if (
        target is None
        or target.revision != revision
        or (observed.connection is None and observed.spec.model.mlflow)
    ):
        return None
    model = observed.resolution.model
    assert model is not None
    running = (children.deployment or {}).get("spec", {}).get("template") if children else None
    return Snapshot(
        config_text(
            runtime_config(
                observed.meta.name, observed.spec, model, observed.connection, anew(observed)
            )
        ),
        # A template that runs is kept as it is: a newer operator's would restart the pods.
        running
        or pod_template.pod_template(
            observed.meta,
            observed.spec,
            revision,
            target.image,
            observed.fetch_resources,
            observed.app_armor_profile,
        ),
    )


def believed(
    status: LLMDeploymentStatus, revision: str, config: Manifest | None, deployment: Manifest | None
) -> bool:
    """Whether a ConfigMap may be what the operator remembers of a revision.

    Who may write ConfigMaps must not choose what runs: a template could have any account, volume
    and privilege. Two witnesses vouch for it that only writers of Deployments and the operator can
    make: the Deployment's annotation, or a status by which the revision has served. A Deployment of
    an operator before this one has no annotation.
    """
    if config is None:
        return False
    if deployment is None:
        served = {entry.revision for entry in status.history if entry.served}
        return revision in served | ({status.stable.revision} if status.stable else set())
    annotation = (deployment["metadata"].get("annotations") or {}).get(names.TEMPLATE_ANNOTATION)
    try:
        return annotation in (
            None,
            workload.digest(json.loads(config["data"][workload.TEMPLATE_FILE])),
        )
    except (KeyError, TypeError, ValueError, RecursionError):
        return False


def _readdressed(observed: Observed, config: str) -> str:
    """The stored file with the registry's present address, for pods that are still to come."""
    stored = json.loads(config)
    mlflow = (stored.get("model") or {}).get("mlflow")
    if (
        mlflow is None
        or observed.connection is None
        or mlflow.get("trackingUri") == observed.connection.tracking_uri
    ):
        return config
    mlflow["trackingUri"] = observed.connection.tracking_uri
    return json.dumps(stored, indent=2)


def _image(observed: Observed, revision: str) -> str | None:
    known = (observed.status.stable, observed.status.candidate)
    pinned = next(
        (r.image for r in known if r is not None and r.revision == revision and r.image), None
    )
    children = observed.revisions.get(revision)
    if pinned or children is None:
        return pinned
    found = template(children)
    return str(found["spec"]["containers"][0]["image"]) if found else None


def template(children: RevisionChildren) -> Manifest | None:
    """The pods' template of a revision, as remembered or else as it runs."""
    stored = (children.config or {}).get("data", {}).get(workload.TEMPLATE_FILE)
    found: Manifest | None = (children.deployment or {}).get("spec", {}).get("template")
    return dict(json.loads(stored)) if stored else found


def recovered(observed: Observed) -> LLMDeploymentStatus:
    """The status, with the stable revision read off the Service where the status was lost."""
    status = observed.status
    if status.stable is not None or status.candidate is not None:
        return status
    service = next((child for child in observed.children if child["kind"] == "Service"), None)
    revision = ((service or {}).get("spec", {}).get("selector") or {}).get(names.REVISION_LABEL)
    children = observed.revisions.get(revision or "")
    if children is None or not children.ready or children.config is None:
        return status
    config = json.loads(children.config["data"][contract.CONFIG_FILE])
    stable = StableStatus(
        revision=children.revision,
        version=source.configured(config["model"]),
        image=_image(observed, children.revision),
        started_at=(children.deployment or {}).get("metadata", {}).get("creationTimestamp"),
    )
    return status.model_copy(update={"stable": stable})
