"""The template of a revision's pods: labels, security, volumes, and which containers. What is in
a container: containers.py."""

from llm_operator.crds import LLMDeploymentSpec
from llm_operator.crds.schema import plain
from llm_operator.plans import names
from llm_operator.plans.objects import source
from llm_operator.plans.objects.containers import (
    PRE_STOP_SECONDS,
    fetch,
    fetch_adapters,
    serve,
)
from llm_operator.state import Manifest, Meta
from llm_runtime import contract

GRACE_MARGIN_SECONDS = 15
"""Time that a stopping pod has beside spec.rollout.drainSeconds and the preStop hook."""


def pod_template(
    meta: Meta,
    spec: LLMDeploymentSpec,
    revision: str,
    image: str,
    fetch_resources: Manifest,
    app_armor: str = "",
) -> Manifest:
    """The pod of a new revision: fetch, then serve, under the restricted Pod Security profile.

    Where spec.adapters is written, even empty, another container fetches adapters while the first
    one serves.

    `fetch_resources` are those of the init container where the specification has none. `app_armor`:
    the profile to write, if any.
    """
    pod = spec.pod
    claimed = source.claimed(spec.model.uri)
    volumes = _volumes(meta, spec, revision, claimed)
    optional = {
        "nodeSelector": pod.node_selector,
        "tolerations": plain(pod.tolerations),
        "affinity": plain(pod.affinity),
        "topologySpreadConstraints": _spread(meta, spec),
        "priorityClassName": pod.priority_class_name,
        "runtimeClassName": pod.runtime_class_name,
        "imagePullSecrets": plain(pod.image_pull_secrets),
    }
    return {
        "metadata": {
            "labels": {**(pod.labels or {}), **names.labels(meta, revision)},
            **({"annotations": pod.annotations} if pod.annotations else {}),
        },
        "spec": {
            "serviceAccountName": meta.name,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": spec.rollout.drain_seconds
            + PRE_STOP_SECONDS
            + GRACE_MARGIN_SECONDS,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "fsGroup": 65532,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
                **({"appArmorProfile": {"type": app_armor}} if app_armor else {}),
            },
            "initContainers": [
                fetch(image, meta, spec, fetch_resources, claimed),
                *(
                    [fetch_adapters(image, spec, fetch_resources)]
                    if spec.adapters is not None
                    else []
                ),
            ],
            "containers": [serve(image, spec, claimed)],
            "volumes": volumes,
            **{name: value for name, value in optional.items() if value},
        },
    }


def _spread(meta: Meta, spec: LLMDeploymentSpec) -> list[Manifest] | None:
    selector = {"labelSelector": {"matchLabels": names.selector(meta)}}
    return [
        {**selector, **constraint}
        for constraint in plain(spec.pod.topology_spread_constraints) or []
    ] or None


def _volumes(
    meta: Meta, spec: LLMDeploymentSpec, revision: str, claimed: source.Claimed
) -> list[Manifest]:
    registry = {
        "name": "registry",
        "secret": {"secretName": names.registry_secret(meta), "optional": True},
    }
    return [
        {"name": "config", "configMap": {"name": names.child(meta, revision)}},
        {"name": "keys", "secret": {"secretName": names.keys_secret(meta)}},
        *(_adapters(meta) if spec.adapters is not None else []),
        *([registry] if spec.model.mlflow else claimed.volumes),
        {"name": "models", **_models(spec)},
        {"name": "fetch-tmp", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
    ]


def _adapters(meta: Meta) -> list[Manifest]:
    """The server gets the list out of the Secret, and nothing else in it."""
    listed = [{"key": contract.ADAPTERS_FILE, "path": contract.ADAPTERS_FILE}]
    return [
        {
            "name": "adapters",
            "secret": {"secretName": names.adapters_secret(meta), "items": listed},
        },
        {"name": "registries", "secret": {"secretName": names.adapters_secret(meta)}},
        {"name": "fetched", "emptyDir": {}},
        {"name": "adapters-tmp", "emptyDir": {}},
    ]


def _models(spec: LLMDeploymentSpec) -> Manifest:
    cache = spec.model_cache
    if cache and cache.persistent_volume_claim:
        return {"persistentVolumeClaim": {"claimName": cache.persistent_volume_claim.claim_name}}
    limit = cache.empty_dir.size_limit if cache and cache.empty_dir else None
    return {"emptyDir": {"sizeLimit": limit} if limit else {}}
