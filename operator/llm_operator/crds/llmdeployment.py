"""LLMDeployment: one endpoint that serves one registered model and follows its alias, stage or version."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from llm_operator.crds.access import AccessSpec
from llm_operator.crds.common import ImageReference, NamedAnnotations, NamedLabels, ObjectName, Quantity, Size
from llm_operator.crds.model import DEFAULT_ADAPTER_EXISTS, MAX_ADAPTERS, AdapterName, AdapterSpec, ModelSpec
from llm_operator.crds.pod import PodSpec, Resources
from llm_operator.crds.rollout import RolloutSpec
from llm_operator.crds.schema import Section, rules
from llm_operator.crds.server import DatabaseSpec, ServerSpec


class EngineSpec(Section):
    """How to run the model. Lengths are in tokens."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU where the pod has one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The weights' number format; auto keeps the model's own where the device is good at it."""
    max_model_length: Annotated[int, Field(ge=16, le=1_048_576)] = 4096
    """Prompt and answer together, at most."""
    max_batch_size: Annotated[int, Field(ge=1, le=4096)] = 64
    """Sequences that run together, at most."""
    max_batch_tokens: Annotated[int, Field(ge=16, le=1_048_576)] = 2048
    """Tokens of one forward pass, at most."""
    kv_cache_memory: Size | None = None
    """Memory for keys and values, as a quantity; absent: what the model leaves, but for a reserve."""
    prefix_caching: bool = True
    """Keep keys and values of prompt beginnings, so that the next prompt that begins alike need not compute them."""
    quantization: Literal["none", "int8"] = "none"
    """int8 keeps linear weights as 8-bit integers: less memory, a small loss of quality."""


class AutoscalingMetric(Section):
    """One figure that decides how many pods run."""

    type: Literal["CPU", "QueueDepth", "RunningRequests", "TokensPerSecond"]
    """CPU: average use in percent of the request. The others are the pods' own metrics, served by a metrics adapter."""
    target: Annotated[int, Field(ge=1, le=1_000_000)]
    """The average per pod to keep."""


class ScalingPolicy(Section):
    """How far one step may go."""

    type: Literal["Pods", "Percent"]
    """What `value` counts."""
    value: Annotated[int, Field(ge=1, le=1000)]
    """Pods or percent."""
    period_seconds: Annotated[int, Field(ge=1, le=1800)]
    """In how long."""


class ScalingRules(Section):
    """How to scale in one direction."""

    stabilization_window_seconds: Annotated[int, Field(ge=0, le=3600)] | None = None
    """Act on the most cautious recommendation of this window."""
    select_policy: Literal["Max", "Min", "Disabled"] | None = None
    """Which policy counts."""
    policies: Annotated[tuple[ScalingPolicy, ...], Field(max_length=8)] | None = None
    """The policies."""


class ScalingBehavior(Section):
    """The HorizontalPodAutoscaler's behavior."""

    scale_up: ScalingRules | None = None
    """Towards more pods."""
    scale_down: ScalingRules | None = None
    """Towards fewer pods."""


class AutoscalingSpec(Section):
    """A HorizontalPodAutoscaler on this LLMDeployment's scale subresource."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("self.minReplicas <= self.maxReplicas", "minReplicas must not be greater than maxReplicas")
        )
    )
    min_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Pods at least."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    """Pods at most."""
    metrics: Annotated[tuple[AutoscalingMetric, ...], Field(min_length=1, max_length=8)]
    """The figures to follow; the one that asks for most pods wins."""
    behavior: ScalingBehavior | None = None
    """How fast to go."""


class ClaimSource(Section):
    """A PersistentVolumeClaim of this namespace."""

    claim_name: ObjectName
    """Its name. With several replicas it must be ReadWriteMany."""


class EmptyDirSource(Section):
    """A folder that lives as long as its pod."""

    size_limit: Quantity | None = None
    """The pod is evicted when it writes more."""


class ModelCacheSpec(Section):
    """Where the weights are kept."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.persistentVolumeClaim) != has(self.emptyDir)",
                "write exactly one of persistentVolumeClaim, emptyDir",
            )
        )
    )
    persistent_volume_claim: ClaimSource | None = None
    """A shared volume: each version is downloaded once."""
    empty_dir: EmptyDirSource | None = None
    """Each pod downloads for itself (the default)."""
    max_size: Size | None = None
    """What all versions on the volume may take together: for a new one, those not used for longest are removed, never
    one in use. Absent: all stay."""


class ServiceMonitorSpec(Section):
    """A ServiceMonitor for the Prometheus operator."""

    enabled: Literal["Auto", "Enabled", "Disabled"] = "Auto"
    """Auto: when the cluster has the ServiceMonitor CRD. Enabled: say so in a condition when it has not."""
    interval: Annotated[str, Field(max_length=16, pattern=r"^[0-9]+(ms|s|m|h)$")] = "15s"
    """How often Prometheus scrapes."""
    labels: NamedLabels | None = None
    """Labels by which your Prometheus selects ServiceMonitors, like `release: prometheus`."""


class MonitoringSpec(Section):
    """How the endpoint is watched."""

    service_monitor: ServiceMonitorSpec = ServiceMonitorSpec()
    """Scraping by the Prometheus operator."""


class ServiceSpec(Section):
    """The Service in front of the pods."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """How the Service is published."""
    port: Annotated[int, Field(ge=1, le=65_535)] = 80
    """Its port."""
    annotations: NamedAnnotations | None = None
    """Annotations of the Service, for load balancers."""


class LLMDeploymentSpec(Section):
    """What to serve and how."""

    model_config = ConfigDict(json_schema_extra=rules(DEFAULT_ADAPTER_EXISTS))
    model: ModelSpec
    """What to serve."""
    adapters: (
        Annotated[
            tuple[AdapterSpec, ...],
            Field(
                max_length=MAX_ADAPTERS,
                json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
            ),
        ]
        | None
    ) = None
    """LoRA adapters of the model. Added, moved or removed, they reach the running pods without new ones.

    Written at all, be it empty, it gives the pods a container that fetches adapters: that makes a new revision.
    """
    default_adapter: AdapterName | None = None
    """The adapter that answers for the bare name; `<name>:base` then is the model alone. Changed without new pods."""
    engine: EngineSpec = EngineSpec()
    """How to run the model."""
    server: ServerSpec = ServerSpec()
    """How to answer HTTP."""
    access: AccessSpec = AccessSpec()
    """Who may call the endpoint, and how much."""
    replicas: Annotated[int, Field(ge=0, le=1000, json_schema_extra={"format": "int32"})] = 1
    """How many pods serve. Written by the autoscaler when there is one."""
    autoscaling: AutoscalingSpec | None = None
    """Let a HorizontalPodAutoscaler choose `replicas`."""
    image: ImageReference | None = None
    """The runtime's image for these pods, like `registry.example.com/llm-runtime:1.4-cpu`; absent: the one in the
    operator's configuration when the revision is made. A changed image is a new revision."""
    resources: Resources | None = None
    """Compute resources of each pod's serving container."""
    rollout: RolloutSpec = RolloutSpec()
    """How a new version reaches the clients."""
    model_cache: ModelCacheSpec | None = None
    """Where the weights are kept; absent: an emptyDir per pod."""
    database: DatabaseSpec = DatabaseSpec()
    """Where usage, budgets and conversations are kept."""
    monitoring: MonitoringSpec = MonitoringSpec()
    """How the endpoint is watched."""
    service: ServiceSpec = ServiceSpec()
    """The Service in front of the pods."""
    pod: PodSpec = PodSpec()
    """What the pods look like beyond the model."""
    suspend: bool = False
    """Stop all pods and start no roll-out; the Service and the keys stay."""


class LLMDeploymentRoot(Section):
    """One endpoint that serves a model from your MLflow registry and follows its promotions."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.metadata.name.size() <= 40",
                "metadata.name must have at most 40 characters: the children's names add to it",
            ),
            (
                "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
                "metadata.name becomes a Service name: start with a letter, then letters, digits and -, no dots",
            ),
        )
    )
    spec: LLMDeploymentSpec
    """What to serve and how."""
