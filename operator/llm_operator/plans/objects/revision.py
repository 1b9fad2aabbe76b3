"""What a revision is made of, and how it is found again when part of it is gone."""

import hashlib
import json
from typing import Any

from llm_operator.crds import LLMDeploymentSpec, LLMDeploymentStatus, StableStatus
from llm_operator.plans import names
from llm_operator.plans.objects import config, pod_template, source, workload
from llm_operator.plans.rollout import Wanted
from llm_operator.state import Manifest, ModelVersion, Observed, RevisionChildren
from llm_runtime import contract

REVISION_FIELDS = {
    "model": {
        "mlflow": {"name", "connection", "sub_path"},
        "uri": True,
        "credentials_secret_ref": True,
        "system_prompt": True,
        "chat_template": True,
    },
    "image": True,
    "task": True,
    "engine": True,
    "server": True,
    "access": {"authentication"},
    "database": True,
    "resources": True,
    "model_cache": True,
    "pod": True,
    "rollout": {"drain_seconds"},
}
"""What shapes the pods. Replicas, autoscaling, the Service and the rest of the rollout change
without new pods; so do the tiers, which travel in the key file.
"""


def wanted(observed: Observed) -> Wanted | None:
    """The revision that the specification asks for;
    its image is the one that it was first made with.

    That image is spec.image, which the revision's id covers,
    or else the one of the operator's configuration at that time.
    """
    model = observed.resolution.model
    if model is None:
        return None
    plain, adapted = (
        revision_id(observed.spec, model, observed.anew, adapters=each) for each in (False, True)
    )
    run = {name for name, each in observed.revisions.items() if each.wanted}
    if observed.spec.adapters is None:
        # The last adapter that goes restarts no pod:
        # a server-side apply of an empty list takes the field away, too.
        revision = adapted if adapted in run and plain not in run else plain
    else:
        # Nor does an upgrade: these pods fetch by themselves.
        revision = plain if observed.adapters_beside_keys and plain in run else adapted
    return Wanted(
        revision, model.version, _image(observed, revision) or observed.spec.image or observed.image
    )


def revision_id(
    spec: LLMDeploymentSpec, model: ModelVersion, anew: str = "", *, adapters: bool = False
) -> str:
    """Ten hexadecimal digits over the user's inputs and the resolved version.

    Fields at their defaults are left out, so that a newer operator with more fields computes the
    same id and restarts no pod. `anew` marks a number that was registered anew. `adapters`: whether
    the pods have a container that fetches some; which ones is no part of a revision.
    """
    inputs = spec.model_dump(mode="json", include=REVISION_FIELDS, exclude_defaults=True)  # type: ignore[arg-type]
    # A revision is one version, whichever of alias, stage or number led to it.
    version = (
        {"version": model.version}
        | ({"anew": anew} if anew else {})
        | ({"adapters": True} if adapters else {})
    )
    canonical = json.dumps({**version, **_pruned(inputs)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def _pruned(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs without empty sections, because an empty section shapes no pod."""
    kept = {
        name: _pruned(value) if isinstance(value, dict) else value for name, value in inputs.items()
    }
    return {name: value for name, value in kept.items() if value != {}}


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


def snapshot(observed: Observed, revision: str, target: Wanted | None) -> workload.Snapshot | None:
    """The revision as remembered, else rebuilt from the specification if that asks for it
    (`target`)."""
    children = observed.revisions.get(revision)
    stored = (children.config or {}).get("data", {}) if children else {}
    if contract.CONFIG_FILE in stored and workload.TEMPLATE_FILE in stored:
        return workload.Snapshot(
            _readdressed(observed, stored[contract.CONFIG_FILE]),
            json.loads(stored[workload.TEMPLATE_FILE]),
        )
    if (
        target is None
        or target.revision != revision
        or (observed.connection is None and observed.spec.model.mlflow)
    ):
        return None
    model = observed.resolution.model
    assert model is not None
    running = (children.deployment or {}).get("spec", {}).get("template") if children else None
    return workload.Snapshot(
        config.config_text(
            config.runtime_config(
                observed.meta.name, observed.spec, model, observed.connection, observed.anew
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
    status: LLMDeploymentStatus,
    revision: str,
    snapshot: Manifest | None,
    deployment: Manifest | None,
) -> bool:
    """Whether a ConfigMap may be what the operator remembers of a revision.

    Who may write ConfigMaps must not choose what runs: a template could have any account, volume
    and privilege. Two witnesses vouch for it that only writers of Deployments and the operator can
    make: the Deployment's annotation, or a status by which the revision has served. A Deployment of
    an operator before this one has no annotation.
    """
    if snapshot is None:
        return False
    if deployment is None:
        served = {entry.revision for entry in status.history if entry.served}
        return revision in served | ({status.stable.revision} if status.stable else set())
    annotation = (deployment["metadata"].get("annotations") or {}).get(names.TEMPLATE_ANNOTATION)
    try:
        return annotation in (
            None,
            workload.digest(json.loads(snapshot["data"][workload.TEMPLATE_FILE])),
        )
    except (KeyError, TypeError, ValueError, RecursionError):
        return False


def _readdressed(observed: Observed, text: str) -> str:
    """The stored file with the registry's present address, for pods that are still to come."""
    stored = json.loads(text)
    mlflow = (stored.get("model") or {}).get("mlflow")
    if (
        mlflow is None
        or observed.connection is None
        or mlflow.get("trackingUri") == observed.connection.tracking_uri
    ):
        return text
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


def fetches_adapters(template: Manifest | None) -> bool:
    """Whether pods of this template have a container that fetches adapters."""
    inits = template["spec"].get("initContainers") or [] if template else []
    return any(each["name"] == names.ADAPTERS_CONTAINER for each in inits)


def fetching(observed: Observed) -> frozenset[str]:
    """The revisions whose pods have a container that fetches adapters."""
    templates = {name: template(each) for name, each in observed.revisions.items()}
    return frozenset(name for name, each in templates.items() if fetches_adapters(each))


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
    stored = json.loads(children.config["data"][contract.CONFIG_FILE])
    stable = StableStatus(
        revision=children.revision,
        image=_image(observed, children.revision),
        version=source.configured(stored["model"]),
        started_at=(children.deployment or {}).get("metadata", {}).get("creationTimestamp"),
    )
    return status.model_copy(update={"stable": stable})
