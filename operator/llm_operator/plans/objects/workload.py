"""The Deployment of one revision, its pods' template, and the ConfigMap that remembers both."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from llm_operator.crds import LLMDeploymentSpec
from llm_operator.crds.pod import PodSpec
from llm_operator.crds.schema import Section
from llm_operator.crds.server import DatabaseSpec, SecretKey
from llm_operator.plans import names
from llm_operator.plans.objects import source
from llm_operator.plans.objects.keys import REGISTRY_MOUNT
from llm_operator.state import Manifest, Meta
from llm_runtime import contract

TEMPLATE_FILE = "template.json"
PRE_STOP_SECONDS = 5
"""Endpoints leave load balancers first; the runtime hears SIGTERM after that."""
GRACE_MARGIN_SECONDS = 15
POD_DATABASE = f"sqlite:///{contract.SCRATCH_MOUNT}/llm-runtime.db"
"""Nothing else of a pod's file system may be written; it lives as long as the pod."""
CONFIG_PATH = f"{contract.CONFIG_MOUNT}/{contract.CONFIG_FILE}"
KEYS_PATH = f"{contract.KEYS_MOUNT}/{contract.KEYS_FILE}"


def plain(section: Section | tuple[Any, ...] | None) -> Any:
    """A part of the specification as Kubernetes' own YAML, without what was not written."""
    if isinstance(section, tuple):
        return [plain(item) for item in section]
    return (
        section.model_dump(mode="json", by_alias=True, exclude_none=True)
        if section is not None
        else None
    )


def config_map(meta: Meta, revision: str, config: str, template: Manifest) -> Manifest:
    """Immutable snapshot of a revision: drift is repaired and undo is done from here,
    not from newer operator code."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": names.metadata(meta, names.child(meta, revision), revision),
        "immutable": True,
        "data": {contract.CONFIG_FILE: config, TEMPLATE_FILE: _text(template)},
    }


def _text(template: Manifest) -> str:
    return json.dumps(template, sort_keys=True)


def digest(template: Manifest) -> str:
    """What tells a template from any other, as the Deployment's annotation has it."""
    return hashlib.sha256(_text(template).encode()).hexdigest()


def deployment(
    meta: Meta, spec: LLMDeploymentSpec, revision: str, template: Manifest, replicas: int
) -> Manifest:
    """The Deployment of one revision. Its template never changes; only `replicas` does."""
    strategy: Manifest = (
        {"type": "Recreate"}
        if spec.rollout.strategy == "Recreate"
        else {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    )
    about = names.metadata(meta, names.child(meta, revision), revision)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {**about, "annotations": {names.TEMPLATE_ANNOTATION: digest(template)}},
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 1,
            "progressDeadlineSeconds": spec.rollout.progress_deadline_seconds,
            "selector": {"matchLabels": names.selector(meta, revision)},
            "strategy": strategy,
            "template": template,
        },
    }


def pod_template(
    meta: Meta,
    spec: LLMDeploymentSpec,
    revision: str,
    image: str,
    fetch_resources: Manifest,
    app_armor: str = "",
) -> Manifest:
    """The pod of a new revision: fetch, then serve, under the restricted Pod Security profile.

    With spec.adapters, be it empty, another container fetches these while the first serves.

    `fetch_resources` are those of the init container where the specification has none. `app_armor`:
    the profile to write, if any.
    """
    pod = spec.pod
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
                _fetch(image, meta, spec, fetch_resources),
                *(
                    [_fetch_adapters(image, spec, fetch_resources)]
                    if spec.adapters is not None
                    else []
                ),
            ],
            "containers": [_serve(image, spec)],
            "volumes": _volumes(meta, spec, revision),
            **{name: value for name, value in optional.items() if value},
        },
    }


def fetches_adapters(template: Manifest | None) -> bool:
    """Whether pods of this template have a container that fetches adapters."""
    inits = template["spec"].get("initContainers") or [] if template else []
    return any(each["name"] == names.ADAPTERS_CONTAINER for each in inits)


def uses(template: Manifest) -> Iterator[tuple[str, str, bool]]:
    """Objects that the operator makes and that pods of this template mount by name:
    kind, name, and whether they are optional."""
    spec = template["spec"]
    yield "ServiceAccount", spec["serviceAccountName"], False
    for volume in spec["volumes"]:
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"], bool(volume["secret"].get("optional"))
        elif "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"], False


def reads(meta: Meta, template: Manifest) -> Iterator[str]:
    """The Secrets that the specification names: their content is the containers'."""
    fetch = template["spec"]["initContainers"][0]
    serve = template["spec"]["containers"][0]
    yield from (each["secretRef"]["name"] for each in fetch.get("envFrom") or ())
    for container, own in ((fetch, names.registry_secret(meta)), (serve, None)):
        sources = [each.get("valueFrom") or {} for each in container["env"]]
        yield from {each["secretKeyRef"]["name"] for each in sources if "secretKeyRef" in each} - {
            own
        }


def store_secret(template: Manifest) -> str | None:
    """The Secret of an artifact store's credentials, of which only some keys are read."""
    found = (
        each
        for each in template["spec"]["initContainers"][0]["env"]
        if each["name"] == STORE_VARIABLES[0]
    )
    return next((str(each["valueFrom"]["secretKeyRef"]["name"]) for each in found), None)


def _spread(meta: Meta, spec: LLMDeploymentSpec) -> list[Manifest] | None:
    selector = {"labelSelector": {"matchLabels": names.selector(meta)}}
    return [
        {**selector, **constraint}
        for constraint in plain(spec.pod.topology_spread_constraints) or []
    ] or None


def _container(
    name: str, image: str, pod: PodSpec, command: tuple[str, ...], args: list[str]
) -> Manifest:
    return {
        "name": name,
        "image": image,
        **({"imagePullPolicy": pod.image_pull_policy} if pod.image_pull_policy else {}),
        "command": list(command),
        "args": [*args, contract.MODELS_FLAG, contract.MODELS_MOUNT],
        # The last log line is a FatalReport:
        # it reaches the pod's status without a path to agree on.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _fetch(image: str, meta: Meta, spec: LLMDeploymentSpec, resources: Manifest) -> Manifest:
    model = spec.model
    pod = spec.pod
    credentials = model.credentials_secret_ref
    registry = bool(model.mlflow)
    config = [contract.CONFIG_FLAG, CONFIG_PATH]
    return _container(names.FETCH_CONTAINER, image, pod, contract.FETCH_COMMAND, config) | {
        # Beside the registry's credentials no variable of a tenant's choice:
        # it could bring code that reads them.
        **(
            {"envFrom": [{"secretRef": {"name": credentials.name}}]}
            if credentials and not registry
            else {}
        ),
        "env": [
            _home(),
            *(_credential(names.registry_secret(meta), name) for name in _CREDENTIALS if registry),
            *(
                _credential(credentials.name, name)
                for name in STORE_VARIABLES
                if credentials and registry
            ),
            *source.path(model.uri),
        ],
        "resources": plain(pod.fetch_resources) if pod.fetch_resources else resources,
        "volumeMounts": [
            {"name": "config", "mountPath": contract.CONFIG_MOUNT, "readOnly": True},
            *(
                [{"name": "registry", "mountPath": REGISTRY_MOUNT, "readOnly": True}]
                if registry
                else []
            ),
            *source.mount(model.uri),
            {"name": "models", "mountPath": contract.MODELS_MOUNT},
            _scratch("fetch-tmp"),
        ],
    }


def _fetch_adapters(image: str, spec: LLMDeploymentSpec, resources: Manifest) -> Manifest:
    """Stays as long as the pod, and alone has the registries' credentials."""
    listed, registries = (
        f"{contract.ADAPTERS_MOUNT}/{f}" for f in (contract.ADAPTERS_FILE, contract.REGISTRIES_FILE)
    )
    args = [contract.ADAPTERS_FLAG, listed, contract.REGISTRIES_FLAG, registries]
    args += [contract.FETCHED_FLAG, contract.FETCHED_MOUNT]
    given = plain(spec.pod.fetch_resources) if spec.pod.fetch_resources else resources
    # It is idle but for a moment: what it may take is the other's,
    # what is kept for it is what it takes when idle.
    limits = {name: most for name, most in (given.get("limits") or {}).items() if name in IDLE}
    return _container(
        names.ADAPTERS_CONTAINER, image, spec.pod, contract.FETCH_ADAPTERS_COMMAND, args
    ) | {
        "restartPolicy": "Always",
        "env": [_home()],
        "resources": {"requests": IDLE, **({"limits": limits} if limits else {})},
        "volumeMounts": [
            {"name": "registries", "mountPath": contract.ADAPTERS_MOUNT, "readOnly": True},
            {"name": "fetched", "mountPath": contract.FETCHED_MOUNT},
            {"name": "models", "mountPath": contract.MODELS_MOUNT},
            _scratch("adapters-tmp"),
        ],
    }


IDLE = {"cpu": "10m", "memory": "64Mi"}
"""What the container that fetches adapters takes while it fetches none: 38 MiB."""


_CREDENTIALS = (
    contract.ENV_MLFLOW_USERNAME,
    contract.ENV_MLFLOW_PASSWORD,
    contract.ENV_MLFLOW_TOKEN,
    contract.ENV_MLFLOW_WORKSPACE,
    contract.ENV_MLFLOW_CA_FILE,
    contract.ENV_ARTIFACT_HOSTS,
)


STORE_VARIABLES = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_S3_ENDPOINT_URL", "MLFLOW_S3_IGNORE_TLS",
    "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID",
)  # fmt: skip
"""What spec.model.credentialsSecretRef may hold beside a model in MLflow:
of the store behind it."""


def _home() -> Manifest:
    return {"name": "HOME", "value": contract.SCRATCH_MOUNT}


def _scratch(volume: str) -> Manifest:
    """HOME and working folder, each container's own:
    Python and libraries look there for code and settings."""
    return {"name": volume, "mountPath": contract.SCRATCH_MOUNT}


def _credential(secret: str, name: str) -> Manifest:
    # Optional and always present, so that credentials may come and go without new pods.
    reference = {"name": secret, "key": name, "optional": True}
    return {"name": name, "valueFrom": {"secretKeyRef": reference}}


def _serve(image: str, spec: LLMDeploymentSpec) -> Manifest:
    args = [contract.CONFIG_FLAG, CONFIG_PATH, contract.KEYS_FLAG, KEYS_PATH]
    adapters = spec.adapters is not None
    if adapters:
        args += [contract.ADAPTERS_FLAG, f"{contract.ADAPTERS_MOUNT}/{contract.ADAPTERS_FILE}"]
        args += [contract.FETCHED_FLAG, contract.FETCHED_MOUNT]
    mounts = (("adapters", contract.ADAPTERS_MOUNT), ("fetched", contract.FETCHED_MOUNT))
    return _container(names.RUNTIME_CONTAINER, image, spec.pod, contract.SERVE_COMMAND, args) | {
        "env": [
            _home(),
            *source.path(spec.model.uri),
            *_databases(spec.database),
            *(plain(spec.pod.env) or []),
        ],
        "ports": [{"name": "http", "containerPort": contract.PORT, "protocol": "TCP"}],
        **({"resources": plain(spec.resources)} if spec.resources else {}),
        "startupProbe": _probe(
            contract.LIVE_PATH, period_seconds=2, failures=_startup_failures(spec)
        ),
        "livenessProbe": _probe(contract.LIVE_PATH, period_seconds=10, failures=6),
        "readinessProbe": _probe(contract.READY_PATH, period_seconds=2, failures=2),
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_SECONDS}}},
        "volumeMounts": [
            {"name": "config", "mountPath": contract.CONFIG_MOUNT, "readOnly": True},
            {"name": "keys", "mountPath": contract.KEYS_MOUNT, "readOnly": True},
            *(
                {"name": name, "mountPath": path, "readOnly": True}
                for name, path in mounts
                if adapters
            ),
            *source.mount(spec.model.uri),
            {"name": "models", "mountPath": contract.MODELS_MOUNT},
            _scratch("tmp"),
        ],
    }


def _databases(spec: DatabaseSpec) -> list[Manifest]:
    """Addresses as the runtime reads them.
    Not optional: a pod that kept usage elsewhere would not be noticed."""

    def variable(name: str, source: SecretKey) -> Manifest:
        return {
            "name": name,
            "valueFrom": {"secretKeyRef": {"name": source.name, "key": source.key}},
        }

    if spec.secret_ref:
        found = [variable(contract.ENV_DATABASE_URL, spec.secret_ref)]
    else:
        found = [{"name": contract.ENV_DATABASE_URL, "value": POD_DATABASE}]
    return [
        *found,
        *(
            [variable(contract.ENV_REDIS_URL, spec.redis_secret_ref)]
            if spec.redis_secret_ref
            else []
        ),
    ]


def _startup_failures(spec: LLMDeploymentSpec) -> int:
    return max(30, spec.rollout.progress_deadline_seconds // 2)


def _probe(path: str, *, period_seconds: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": contract.PORT, "scheme": "HTTP"},
        "periodSeconds": period_seconds,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _volumes(meta: Meta, spec: LLMDeploymentSpec, revision: str) -> list[Manifest]:
    registry = {
        "name": "registry",
        "secret": {"secretName": names.registry_secret(meta), "optional": True},
    }
    return [
        {"name": "config", "configMap": {"name": names.child(meta, revision)}},
        {"name": "keys", "secret": {"secretName": names.keys_secret(meta)}},
        *(_adapters(meta) if spec.adapters is not None else []),
        *([registry] if spec.model.mlflow else source.volume(spec.model.uri)),
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
