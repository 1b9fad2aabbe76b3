"""The parts of a pod that the author of an LLMDeployment may choose, with Kubernetes' own names and meanings.

Named fields, no free-form template: whoever may create an LLMDeployment must not gain hostPath volumes, another
ServiceAccount or a privileged container through it.
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
    Short,
    Text,
)
from llm_operator.crds.schema import Section, rules

Key = Annotated[str, Field(max_length=317)]
RUNTIME_SETTINGS = (
    "ENGINE__INTER_TOKEN_GOAL_SECONDS", "ENGINE__MAX_ADAPTERS", "ENGINE__MAX_ADAPTER_RANK", "ENGINE__MAX_QUEUE_LENGTH",
    "ENGINE__STEP_TRACE", "SERVER__LOG_FILE", "SERVER__LOG_FILE_BYTES", "SERVER__LOG_FILE_BACKUPS",
    "SERVER__LAZY_LOAD", "DATABASE__FLUSH_SECONDS", "DATABASE__MAX_PENDING_ROWS", "LOG_LEVEL", "DEBUG",
)  # fmt: skip
"""What the runtime reads and no field of an LLMDeployment says. All else that it reads is the operator's to write."""
_CONFIGURED = (
    r"(MODEL|ADAPTERS|DEFAULT_ADAPTER|ENGINE|SERVER|AUTHENTICATION|TIERS|DEFAULT_TIER|DATABASE|MODEL_CACHE_BYTES)"
    r"(__.*)?"
)
_OWN = (
    r"MODEL_NAME|MODEL_PATH|MODEL_VERSION|DATABASE_URL|REDIS_URL|MLFLOW_TRACKING_.*|MLFLOW_WORKSPACE|"
    r"LLM_ARTIFACT_HOSTS|API_KEY|ADMIN_API_KEY|API_HOST|API_PORT"
)
_PROCESS = (
    r"PYTHON.*|LD_.*|DYLD_.*|GLIBC_TUNABLES|GCONV_PATH|LOCPATH|PATH|SHELL|IFS|BASH_ENV|ENV|CC|CXX|CFLAGS|CXXFLAGS|"
    r"CPATH|LIBRARY_PATH|OPENSSL_.*|SSLKEYLOGFILE|GIT_.*|VIRTUAL_ENV|CUDA_INJECTION.*|NCCL_.*_PLUGIN|OMP_TOOL_LIBRARIES|"
    r"TRITON_.*|TORCHINDUCTOR_CACHE_DIR|TORCH_EXTENSIONS_DIR|NVIDIA_VISIBLE_DEVICES"
)
# The runtime's settings are read without regard to case.
ENV_RULES = (
    (
        f"self.name in {list(RUNTIME_SETTINGS)} || !self.name.matches('(?i)^({_CONFIGURED}|{_OWN})$')",
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
"""CEL, the pattern that it refuses, what to write instead. The operator holds stored objects against the pattern."""
Weight = Annotated[int, Field(ge=1, le=100)]
_OWN_LABELS = (
    "self.all(k, !k.startsWith('llm-operator.dev/') && !k.startsWith('app.kubernetes.io/'))",
    "keys under llm-operator.dev/ and app.kubernetes.io/ belong to the operator: use a key of your own",
)
_NO_PROFILES = (
    "self.all(k, !k.matches('(^|[.])security[.](alpha|beta)[.]kubernetes[.]io/'))",
    "pods run under their node's default AppArmor and seccomp profiles: write no annotation about them",
)


class Toleration(Section):
    """Lets pods run on nodes with a matching taint."""

    key: Key | None = None
    """The taint's key; absent with operator Exists: every taint."""
    operator: Literal["Exists", "Equal"] | None = None
    """Equal (default) compares `value`; Exists does not."""
    value: Line | None = None
    """The taint's value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The taint's effect; absent: all effects."""
    toleration_seconds: Annotated[int, Field(ge=0, le=2**53, json_schema_extra={"format": "int64"})] | None = None
    """How long a NoExecute taint is tolerated."""


class NodeRequirement(Section):
    """One condition on a node's labels."""

    key: Key
    """The label's key."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """How `values` are compared."""
    values: Annotated[tuple[Short, ...], Field(max_length=32)] | None = None
    """The values to compare with."""


Requirements = Annotated[tuple[NodeRequirement, ...], Field(max_length=16)]


class NodeTerm(Section):
    """Conditions that must all hold."""

    match_expressions: Requirements | None = None
    """On the node's labels."""
    match_fields: Requirements | None = None
    """On the node's fields (metadata.name)."""


class PreferredNodeTerm(Section):
    """A wish with a weight."""

    weight: Weight
    """1 to 100."""
    preference: NodeTerm
    """What is preferred."""


class NodeSelector(Section):
    """At least one of the terms must hold."""

    node_selector_terms: Annotated[tuple[NodeTerm, ...], Field(min_length=1, max_length=16)]
    """The terms."""


class NodeAffinity(Section):
    """Rules on nodes."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """Must hold."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[tuple[PreferredNodeTerm, ...], Field(max_length=16)] | None
    ) = None
    """Should hold."""


class LabelRequirement(Section):
    """One condition on an object's labels."""

    key: Key
    """The label's key."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How `values` are compared."""
    values: Annotated[tuple[Short, ...], Field(max_length=32)] | None = None
    """The values to compare with."""


class LabelSelector(Section):
    """Chooses objects by their labels."""

    match_labels: LabelMap | None = None
    """Labels that must have exactly these values."""
    match_expressions: Annotated[tuple[LabelRequirement, ...], Field(max_length=16)] | None = None
    """Further conditions."""


class PodTerm(Section):
    """Near or away from pods with these labels."""

    label_selector: LabelSelector | None = None
    """Which pods."""
    namespaces: Annotated[tuple[Short, ...], Field(max_length=16)] | None = None
    """In which namespaces; absent: this one."""
    topology_key: Key
    """What counts as one place: kubernetes.io/hostname, topology.kubernetes.io/zone, …"""


class PreferredPodTerm(Section):
    """A wish with a weight."""

    weight: Weight
    """1 to 100."""
    pod_affinity_term: PodTerm
    """What is preferred."""


class PodAffinity(Section):
    """Rules on other pods."""

    required_during_scheduling_ignored_during_execution: Annotated[tuple[PodTerm, ...], Field(max_length=16)] | None = (
        None
    )
    """Must hold."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[tuple[PreferredPodTerm, ...], Field(max_length=16)] | None
    ) = None
    """Should hold."""


class Affinity(Section):
    """Where pods may or should run."""

    node_affinity: NodeAffinity | None = None
    """Rules on nodes."""
    pod_affinity: PodAffinity | None = None
    """Near which pods."""
    pod_anti_affinity: PodAffinity | None = None
    """Away from which pods."""


class TopologySpread(Section):
    """Spreads the pods over places."""

    max_skew: Annotated[int, Field(ge=1, le=2**31 - 1, json_schema_extra={"format": "int32"})]
    """The largest difference between two places."""
    topology_key: Key
    """What counts as one place."""
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    """What to do when it can't be kept."""
    label_selector: LabelSelector | None = None
    """Which pods are counted; absent: the pods of this LLMDeployment."""


class KeySelector(Section):
    """One key of a Secret or ConfigMap of this namespace."""

    name: ObjectName
    """The object's name."""
    key: Line
    """The key in its data."""
    optional: bool | None = None
    """Whether the pod starts without it."""


class EnvSource(Section):
    """Where a variable's value comes from."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.secretKeyRef) != has(self.configMapKeyRef)",
                "write exactly one of secretKeyRef, configMapKeyRef",
            )
        )
    )
    secret_key_ref: KeySelector | None = None
    """A key of a Secret."""
    config_map_key_ref: KeySelector | None = None
    """A key of a ConfigMap."""


def env_refusal(name: str) -> str | None:
    """Why a stored object's variable is none for a new pod."""
    if name in RUNTIME_SETTINGS:
        return None
    return next((told for _, refused, told in ENV_RULES if re.match(refused, name)), None)


class EnvVar(Section):
    """An environment variable of the serving container (never of the one that fetches with registry credentials)."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("!(has(self.value) && has(self.valueFrom))", "write either value or valueFrom, not both"),
            (
                "!(self.name in ['HOME', 'DATABASE_URL', 'REDIS_URL', 'MODEL_PATH'])",
                "HOME, DATABASE_URL, REDIS_URL and MODEL_PATH are the operator's: write spec.database for the second "
                "and third, spec.model.uri for the last",
            ),
            *((cel, told) for cel, _, told in ENV_RULES),
            (
                "!has(self.valueFrom) || !has(self.valueFrom.secretKeyRef) || "
                f"!(self.name in {list(RUNTIME_SETTINGS)})",
                "a setting of the runtime takes no value from a Secret: settings are shown. Write `value`",
            ),
        )
    )
    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")]
    """The variable."""
    value: Text | None = None
    """Its value as it is."""
    value_from: EnvSource | None = None
    """Or where to read it."""


class ImagePullSecret(Section):
    """A Secret with credentials for an image registry."""

    name: ObjectName
    """The Secret's name."""


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
        ),
    ),
]
_REQUEST, _LIMIT = "quantity(string(self.requests[k]))", "quantity(string(self.limits[k]))"
_BOTH_READ = "isQuantity(string(self.requests[k])) && isQuantity(string(self.limits[k]))"
_EXTENDED = "(k.startsWith('hugepages-') || k.contains('/') && !k.contains('kubernetes.io/'))"


class Resources(Section):
    """Compute resources of a container."""

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
    """At most: `{nvidia.com/gpu: 1, memory: 24Gi}`."""
    requests: Amounts | None = None
    """At least: `{cpu: 2}`."""


def _by(*keys: str) -> dict[str, Any]:
    """A list whose entries the API server tells apart by these fields in a pod: two of the same can't be applied."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


class PodSpec(Section):
    """What the pods look like beyond the model."""

    node_selector: NamedLabels | None = None
    """Labels that a node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] | None = None
    """Taints that the pods tolerate."""
    affinity: Affinity | None = None
    """Where the pods may or should run."""
    topology_spread_constraints: (
        Annotated[
            tuple[TopologySpread, ...],
            Field(max_length=8, json_schema_extra=_by("topologyKey", "whenUnsatisfiable")),
        ]
        | None
    ) = None
    """How the pods spread over places."""
    priority_class_name: Line | None = None
    """PriorityClass of the pods."""
    runtime_class_name: Line | None = None
    """RuntimeClass of the pods, `nvidia` on many GPU clusters."""
    image_pull_secrets: (
        Annotated[tuple[ImagePullSecret, ...], Field(max_length=8, json_schema_extra=_by("name"))] | None
    ) = None
    """Credentials for the runtime image's registry."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the kubelet pulls the runtime image; absent: Always for the tag latest and for none, else IfNotPresent."""
    fetch_resources: Resources | None = None
    """Compute resources of the init container that fetches the model; absent: the operator's configuration says."""
    env: Annotated[tuple[EnvVar, ...], Field(max_length=64, json_schema_extra=_by("name"))] | None = None
    """Environment variables of the serving container."""
    labels: Annotated[LabelMap, Field(json_schema_extra=rules(QUALIFIED, _OWN_LABELS))] | None = None
    """Further labels of the pods."""
    annotations: (
        Annotated[AnnotationMap, Field(json_schema_extra=rules(QUALIFIED, _OWN_LABELS, _NO_PROFILES))] | None
    ) = None
    """Further annotations of the pods."""
