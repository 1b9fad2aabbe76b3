"""The containers of a pod: commands, environment, mounts, resources and probes."""

from llm_operator.crds import LLMDeploymentSpec
from llm_operator.crds.pod import PodSpec
from llm_operator.crds.schema import plain
from llm_operator.crds.server import DatabaseSpec, SecretKey
from llm_operator.plans import names
from llm_operator.plans.objects.keys import REGISTRY_MOUNT
from llm_operator.plans.objects.source import Claimed
from llm_operator.state import Manifest, Meta
from llm_runtime import contract

PRE_STOP_SECONDS = 5
"""Endpoints leave load balancers first; the runtime hears SIGTERM after that."""
POD_DATABASE = f"sqlite:///{contract.SCRATCH_MOUNT}/llm-runtime.db"
"""Nothing else of a pod's file system may be written; it lives as long as the pod."""
CONFIG_PATH = f"{contract.CONFIG_MOUNT}/{contract.CONFIG_FILE}"
KEYS_PATH = f"{contract.KEYS_MOUNT}/{contract.KEYS_FILE}"


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


def fetch(
    image: str, meta: Meta, spec: LLMDeploymentSpec, resources: Manifest, claimed: Claimed
) -> Manifest:
    """The init container that brings the model."""
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
            *claimed.variables,
        ],
        "resources": plain(pod.fetch_resources) if pod.fetch_resources else resources,
        "volumeMounts": [
            {"name": "config", "mountPath": contract.CONFIG_MOUNT, "readOnly": True},
            *(
                [{"name": "registry", "mountPath": REGISTRY_MOUNT, "readOnly": True}]
                if registry
                else []
            ),
            *claimed.mounts,
            {"name": "models", "mountPath": contract.MODELS_MOUNT},
            _scratch("fetch-tmp"),
        ],
    }


def fetch_adapters(image: str, spec: LLMDeploymentSpec, resources: Manifest) -> Manifest:
    """The container that fetches adapters. It runs as long as the pod, and it alone has the
    registries' credentials."""
    listed, registries = (
        f"{contract.ADAPTERS_MOUNT}/{f}" for f in (contract.ADAPTERS_FILE, contract.REGISTRIES_FILE)
    )
    args = [contract.ADAPTERS_FLAG, listed, contract.REGISTRIES_FLAG, registries]
    args += [contract.FETCHED_FLAG, contract.FETCHED_MOUNT]
    given = plain(spec.pod.fetch_resources) if spec.pod.fetch_resources else resources
    # It is idle nearly always. So its limits are those of the init container that fetches the
    # model, and its requests cover idling only.
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
"""Requests of the container that fetches adapters. It takes 38 MiB while it fetches none."""
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
"""Variables that spec.model.credentialsSecretRef may hold for a model in MLflow: those of the
artifact store behind it."""


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


def serve(image: str, spec: LLMDeploymentSpec, claimed: Claimed) -> Manifest:
    """The container that answers clients."""
    args = [contract.CONFIG_FLAG, CONFIG_PATH, contract.KEYS_FLAG, KEYS_PATH]
    adapters = spec.adapters is not None
    if adapters:
        args += [contract.ADAPTERS_FLAG, f"{contract.ADAPTERS_MOUNT}/{contract.ADAPTERS_FILE}"]
        args += [contract.FETCHED_FLAG, contract.FETCHED_MOUNT]
    mounts = (("adapters", contract.ADAPTERS_MOUNT), ("fetched", contract.FETCHED_MOUNT))
    return _container(names.RUNTIME_CONTAINER, image, spec.pod, contract.SERVE_COMMAND, args) | {
        "env": [
            _home(),
            *claimed.variables,
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
            *claimed.mounts,
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
