"""spec.pod and spec.resources: what an author may choose of a pod, with Kubernetes' own names and
meanings.

Named fields, no free-form template: whoever may create an LLMDeployment must not gain hostPath
volumes, another ServiceAccount or a privileged container through it.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from llm_operator.crds.common import (
    QUALIFIED,
    AnnotationMap,
    LabelMap,
    Line,
    NamedLabels,
    ObjectName,
    Quantity,
    Text,
)
from llm_operator.crds.scheduling import Affinity, Toleration, TopologySpread
from llm_operator.crds.schema import Section, rules
from llm_runtime.contract import ENV_FREE_SETTINGS, RuntimeConfig

_CONFIGURED = f"({'|'.join(RuntimeConfig.model_fields).upper()})(__.*)?"
_OWN = (
    r"MODEL_NAME|MODEL_PATH|MODEL_VERSION|DATABASE_URL|REDIS_URL|MLFLOW_TRACKING_.*|MLFLOW_WORKSPACE|"
    r"LLM_ARTIFACT_HOSTS|API_KEY|ADMIN_API_KEY|API_HOST|API_PORT"
)
_PROCESS = (
    r"PYTHON.*|LD_.*|DYLD_.*|GLIBC_TUNABLES|GCONV_PATH|LOCPATH|PATH|SHELL|IFS|BASH_ENV|ENV|CC|CXX|CFLAGS|CXXFLAGS|"
    r"CPATH|LIBRARY_PATH|OPENSSL_.*|SSLKEYLOGFILE|GIT_.*|VIRTUAL_ENV|CUDA_INJECTION.*|NCCL_.*_PLUGIN|NCCL_CONF_FILE|"
    r"OMP_TOOL_LIBRARIES|TRITON_.*|TORCHINDUCTOR_CACHE_DIR|TORCH_EXTENSIONS_DIR|TORCH_ADDR2LINE_BINARY|"
    r"INTEL_LIBITTNOTIFY.*|INTEL_JIT_PROFILER.*|NVTX_INJECTION.*|"
    r"(NVIDIA|AMD|HABANA|ASCEND)_VISIBLE_DEVICES|NVIDIA_(MIG_.*_DEVICES|IMEX_CHANNELS|FABRIC_DEVICES|NVSWITCH|GDS|"
    r"MOFED|GDRCOPY)"
)
# The runtime's settings are read without regard to case.
ENV_RULES = (
    (
        f"self.name in {list(ENV_FREE_SETTINGS)} || !self.name.matches('(?i)^({_CONFIGURED}|{_OWN})$')",
        f"(?i)^({_CONFIGURED}|{_OWN})$",
        "this variable is a setting of the runtime that the operator writes: write the field of this LLMDeployment "
        "that says it (docs/reference.md). Those without a field may be written here: docs/operations.md lists them",
    ),
    (
        f"!self.name.matches('^({_PROCESS})$')",
        f"^({_PROCESS})$",
        "this variable changes which code a process runs, or which devices it gets: put what you need into the image "
        "(spec.image), and ask for GPUs by spec.resources",
    ),
)
"""CEL, the pattern that it refuses, what to write instead.
The operator holds stored objects against the pattern."""
_NO_SECRET = (
    "a setting of the runtime takes no value from a Secret, nor $(NAME), which may stand for one: settings are shown. "
    "Write the value itself"
)
_OWN_LABELS = (
    "self.all(k, !k.startsWith('llm-operator.dev/') && !k.startsWith('app.kubernetes.io/'))",
    "keys under llm-operator.dev/ and app.kubernetes.io/ belong to the operator: use a key of your own",
)
_NO_PROFILES = (
    "self.all(k, !k.matches('(^|[.])security[.](alpha|beta)[.]kubernetes[.]io/'))",
    "pods run under their node's default AppArmor and seccomp profiles: write no annotation about them",
)


class KeySelector(Section):
    """A key in a Secret or ConfigMap of this namespace."""

    name: ObjectName
    """Name of the Secret or ConfigMap."""
    key: Line
    """Key in the object's data."""
    optional: bool | None = None
    """Whether the pod starts where the object or the key is missing. Absent: it does not."""


class EnvSource(Section):
    """Where a variable's value comes from. Write exactly one."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.secretKeyRef) != has(self.configMapKeyRef)",
                "write exactly one of secretKeyRef, configMapKeyRef",
            )
        )
    )
    secret_key_ref: KeySelector | None = None
    """Key of a Secret that holds the value."""
    config_map_key_ref: KeySelector | None = None
    """Key of a ConfigMap that holds the value."""


class EnvVar(Section):
    """An environment variable of the serving container; the container that fetches with registry
    credentials never gets it."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!(has(self.value) && has(self.valueFrom))",
                "write either value or valueFrom, not both",
            ),
            (
                "!(self.name in ['HOME', 'DATABASE_URL', 'REDIS_URL', 'MODEL_PATH'])",
                "HOME, DATABASE_URL, REDIS_URL and MODEL_PATH are the operator's: write spec.database for the second "
                "and third, spec.model.uri for the last",
            ),
            *((cel, told) for cel, _, told in ENV_RULES),
            (
                f"!(self.name in {list(ENV_FREE_SETTINGS)}) || !(has(self.valueFrom) && "
                "has(self.valueFrom.secretKeyRef) || has(self.value) && self.value.contains('$('))",
                _NO_SECRET,
            ),
        )
    )
    name: Annotated[
        str, Field(min_length=1, max_length=128, pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")
    ]
    """Name of the environment variable, such as `LOG_LEVEL`."""
    value: Text | None = None
    """Value of the variable as it is."""
    value_from: EnvSource | None = None
    """Source of the value, instead of `value`."""


def env_refusal(variable: EnvVar) -> str | None:
    """Why a stored object's variable is none for a new pod."""
    if variable.name not in ENV_FREE_SETTINGS:
        matching = (told for _, refused, told in ENV_RULES if re.match(refused, variable.name))
        return next(matching, None)
    of_secret = variable.value_from is not None and variable.value_from.secret_key_ref is not None
    return _NO_SECRET if of_secret or "$(" in (variable.value or "") else None


class ImagePullSecret(Section):
    """A Secret with credentials for an image registry."""

    name: ObjectName
    """Name of the Secret with the credentials."""


_EXTENDED = "(k.startsWith('hugepages-') || k.contains('/') && !k.contains('kubernetes.io/'))"
Amounts = Annotated[
    dict[str, Quantity],
    Field(
        max_length=16,
        json_schema_extra=rules(
            (
                "self.all(k, k in ['cpu', 'memory', 'ephemeral-storage'] || k.startsWith('hugepages-') || "
                "k.contains('/'))",
                "write cpu, memory, ephemeral-storage, hugepages-<size> or a name like nvidia.com/gpu",
            ),
            (
                "self.all(k, !isQuantity(string(self[k])) || !quantity(string(self[k])).isLessThan(quantity('0')))",
                "write no negative quantity",
            ),
            (
                f"self.all(k, !{_EXTENDED} || !isQuantity(string(self[k])) || quantity(string(self[k])).isInteger())",
                "write a whole number of GPUs and other extended resources: a shared GPU has a name of its own",
            ),
        ),
    ),
]
_REQUEST = "quantity(string(self.requests[k]))"
_LIMIT = "quantity(string(self.limits[k]))"
_BOTH_READ = "isQuantity(string(self.requests[k])) && isQuantity(string(self.limits[k]))"


class Resources(Section):
    """Compute resources of a container, by the resource's name."""

    # What is no quantity at all is told by the pattern.
    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.requests) || !has(self.limits) || self.requests.all(k, !(k in self.limits) || "
                f"!({_BOTH_READ}) || {_REQUEST}.compareTo({_LIMIT}) <= 0)",
                "a request is greater than its limit: lower it in requests, or raise it in limits",
            ),
            (
                f"!has(self.requests) || self.requests.all(k, !{_EXTENDED} || has(self.limits) && k in self.limits && "
                f"(!({_BOTH_READ}) || {_REQUEST}.compareTo({_LIMIT}) == 0))",
                "GPUs, other extended resources and huge pages are written in limits; a request of them is the same",
            ),
        )
    )
    limits: Amounts | None = None
    """Most that the container may use, such as `{nvidia.com/gpu: 1, memory: 24Gi}`."""
    requests: Amounts | None = None
    """Amount that the container's node keeps for it, such as `{cpu: 2}`."""


def _by(*keys: str) -> dict[str, Any]:
    """A list whose entries the API server tells apart by these fields in a pod:
    two of the same can't be applied."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


class PodSpec(Section):
    """Settings of the pods that have nothing to do with the model."""

    node_selector: NamedLabels | None = None
    """Labels that a node must have, such as `gpu: a100`."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] | None = None
    """Taints that the pods tolerate."""
    affinity: Affinity | None = None
    """Rules on where pods are scheduled."""
    topology_spread_constraints: (
        Annotated[
            tuple[TopologySpread, ...],
            Field(max_length=8, json_schema_extra=_by("topologyKey", "whenUnsatisfiable")),
        ]
        | None
    ) = None
    """How the pods spread over areas such as nodes or zones."""
    priority_class_name: Line | None = None
    """Name of the pods' PriorityClass. Absent: the cluster's default."""
    runtime_class_name: Line | None = None
    """Name of the pods' RuntimeClass, `nvidia` on many GPU clusters. Absent: the node's default."""
    image_pull_secrets: (
        Annotated[tuple[ImagePullSecret, ...], Field(max_length=8, json_schema_extra=_by("name"))]
        | None
    ) = None
    """Secrets with credentials for the registry of the runtime image."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the kubelet pulls the runtime image. Absent: Always for the tag latest and for no tag,
    otherwise IfNotPresent."""
    fetch_resources: Resources | None = None
    """Compute resources of the init container that fetches the model.
    Absent: those in the operator's configuration."""
    env: (
        Annotated[tuple[EnvVar, ...], Field(max_length=64, json_schema_extra=_by("name"))] | None
    ) = None
    """Environment variables of the serving container, such as `LOG_LEVEL`."""
    labels: Annotated[LabelMap, Field(json_schema_extra=rules(QUALIFIED, _OWN_LABELS))] | None = (
        None
    )
    """Further labels of the pods."""
    annotations: (
        Annotated[
            AnnotationMap, Field(json_schema_extra=rules(QUALIFIED, _OWN_LABELS, _NO_PROFILES))
        ]
        | None
    ) = None
    """Further annotations of the pods."""
