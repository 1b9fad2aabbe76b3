"""LLMDeployment: the root of its spec, and the sections engine, autoscaling, modelCache,
monitoring and service."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from llm_operator.crds.access import AccessSpec
from llm_operator.crds.common import (
    ImageReference,
    NamedAnnotations,
    NamedLabels,
    ObjectName,
    Quantity,
    Size,
)
from llm_operator.crds.model import (
    DEFAULT_ADAPTER_EXISTS,
    MAX_ADAPTERS,
    AdapterName,
    AdapterSpec,
    ModelSpec,
)
from llm_operator.crds.pod import PodSpec, Resources
from llm_operator.crds.rollout import RolloutSpec
from llm_operator.crds.schema import Section, described_by, rules
from llm_operator.crds.server import DatabaseSpec, ServerSpec
from llm_runtime.contract import EngineConfig

ENGINE = EngineConfig()


@described_by(EngineConfig)
class EngineSpec(Section):
    """How the engine runs the model. Lengths are in tokens."""

    device: Literal["auto", "cpu", "cuda"] = ENGINE.device
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = ENGINE.dtype
    max_model_length: Annotated[int, Field(ge=16, le=1_048_576)] = ENGINE.max_model_length
    max_batch_size: Annotated[int, Field(ge=1, le=4096)] = ENGINE.max_batch_size
    max_batch_tokens: Annotated[int, Field(ge=16, le=1_048_576)] = ENGINE.max_batch_tokens
    kv_cache_memory: Size | None = None
    """Memory for the KV cache, as a quantity such as `8Gi`. Absent: four fifths of what is free
    after loading; on a CPU without a memory limit, at most 4 GiB."""
    kv_cache_dtype: Literal["auto", "float32", "bfloat16", "float16"] = ENGINE.kv_cache_dtype
    prefix_caching: bool = ENGINE.prefix_caching
    quantization: Literal["none", "int8", "int4"] = ENGINE.quantization
    speculation: Literal["promptLookup", "none"] = ENGINE.speculation


class AutoscalingMetric(Section):
    """A metric that decides how many pods run."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.type != 'CacheUsage' || self.target <= 100",
                "target of CacheUsage is in percent: at most 100",
            )
        )
    )
    type: Literal["CPU", "QueueDepth", "RunningRequests", "TokensPerSecond", "CacheUsage"]
    """Metric to follow. CPU: average utilization in percent of the CPU request. The others are the
    pods' own metrics: requests that wait or run, tokens a second, and percent of the KV cache in
    use. The HorizontalPodAutoscaler gets them from the operator, where metricsApi.enabled is set in
    its chart, or from a metrics adapter in the cluster."""
    target: Annotated[int, Field(ge=1, le=1_000_000)]
    """Average per pod that the autoscaler keeps, in the unit of the metric (percent for CPU and
    CacheUsage)."""


class ScalingPolicy(Section):
    """How much one scaling step may change."""

    type: Literal["Pods", "Percent"]
    """Unit of `value`: a number of pods, or percent of the current pods."""
    value: Annotated[int, Field(ge=1, le=1000)]
    """Largest change within `periodSeconds`, in pods or percent."""
    period_seconds: Annotated[int, Field(ge=1, le=1800)]
    """Length in seconds of the period that `value` is about."""


class ScalingRules(Section):
    """Rules for scaling in one direction."""

    stabilization_window_seconds: Annotated[int, Field(ge=0, le=3600)] | None = None
    """Seconds of past recommendations to consider, of which the most cautious counts. Absent: the
    HorizontalPodAutoscaler's default."""
    select_policy: Literal["Max", "Min", "Disabled"] | None = None
    """Which policy counts when there are several: Max allows the largest change, Min the smallest,
    Disabled none. Absent: Max."""
    policies: Annotated[tuple[ScalingPolicy, ...], Field(max_length=8)] | None = None
    """Policies that bound each scaling step. Absent: the HorizontalPodAutoscaler's defaults."""


class ScalingBehavior(Section):
    """How fast the HorizontalPodAutoscaler scales in each direction."""

    scale_up: ScalingRules | None = None
    """Rules for adding pods. Absent: the HorizontalPodAutoscaler's defaults."""
    scale_down: ScalingRules | None = None
    """Rules for removing pods. Absent: the HorizontalPodAutoscaler's defaults."""


class AutoscalingSpec(Section):
    """An autoscaler that sets `spec.replicas` through the scale subresource."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.minReplicas <= self.maxReplicas",
                "minReplicas must not be greater than maxReplicas",
            )
        )
    )
    min_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Lower bound for the number of pods."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    """Upper bound for the number of pods."""
    metrics: Annotated[tuple[AutoscalingMetric, ...], Field(min_length=1, max_length=8)]
    """Metrics to follow; the one that asks for most pods wins."""
    behavior: ScalingBehavior | None = None
    """How fast to scale in each direction. Absent: the HorizontalPodAutoscaler's defaults."""
    scaler: Literal["HorizontalPodAutoscaler", "KEDA"] = "HorizontalPodAutoscaler"
    """Object that is made for it. KEDA: a ScaledObject, whose triggers read the pods' metrics
    through the Service; it needs KEDA 2.17 in the cluster and no metrics adapter."""


class ClaimSource(Section):
    """A PersistentVolumeClaim in this namespace."""

    claim_name: ObjectName
    """Name of the PersistentVolumeClaim, which must be ReadWriteMany for more than one replica."""


class EmptyDirSource(Section):
    """A folder that exists as long as its pod."""

    size_limit: Quantity | None = None
    """Size above which the pod is evicted, as a quantity such as `40Gi`. Absent: no limit."""


class ModelCacheSpec(Section):
    """Volume that keeps the downloaded weights."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.persistentVolumeClaim) != has(self.emptyDir)",
                "write exactly one of persistentVolumeClaim, emptyDir",
            )
        )
    )
    persistent_volume_claim: ClaimSource | None = None
    """Shared volume on which each version is downloaded once for all pods."""
    empty_dir: EmptyDirSource | None = None
    """Folder of each pod, so that every pod downloads for itself,
    as it does without `modelCache`."""
    max_size: Size | None = None
    """Size of all versions on the volume together, as a quantity such as `200Gi`. A new version
    removes those least recently used, never one in use. Absent: all versions are kept."""


class ServiceMonitorSpec(Section):
    """A ServiceMonitor for the Prometheus Operator."""

    enabled: Literal["Auto", "Enabled", "Disabled"] = "Auto"
    """Auto: made when the cluster has the ServiceMonitor CRD. Enabled: a missing CRD is reported in
    a condition. Disabled: never made."""
    interval: Annotated[str, Field(max_length=16, pattern=r"^[0-9]+(ms|s|m|h)$")] = "15s"
    """How often Prometheus scrapes the pods, such as `30s` or `1m`."""
    labels: NamedLabels | None = None
    """Labels by which your Prometheus selects ServiceMonitors, such as `release: prometheus`."""


class MonitoringSpec(Section):
    """How the endpoint is monitored."""

    service_monitor: ServiceMonitorSpec = ServiceMonitorSpec()
    """ServiceMonitor that has the Prometheus Operator scrape the pods."""


class ServiceSpec(Section):
    """The Service in front of the pods."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Type of the Service, which decides from where it can be reached."""
    port: Annotated[int, Field(ge=1, le=65_535)] = 80
    """Port that the Service listens on."""
    annotations: NamedAnnotations | None = None
    """Annotations of the Service, such as those that a cloud's load balancer reads."""


class LLMDeploymentSpec(Section):
    """The model to serve and how to serve it."""

    model_config = ConfigDict(json_schema_extra=rules(DEFAULT_ADAPTER_EXISTS))
    model: ModelSpec
    """Model to serve, from MLflow or by its address."""
    adapters: (
        Annotated[
            tuple[AdapterSpec, ...],
            Field(
                max_length=MAX_ADAPTERS,
                json_schema_extra={
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["name"],
                },
            ),
        ]
        | None
    ) = None
    """LoRA adapters to load beside the model. Running pods pick up every change without a restart.

    Writing the list for the first time, even empty,
    adds a container that fetches adapters to the pods: a new revision.
    """
    default_adapter: AdapterName | None = None
    """Adapter that answers for the bare name of the model; `<name>:base` then is the model alone. A
    change needs no new pods. Absent: the bare name is the model."""
    task: Literal["auto", "generate", "embed"] = ENGINE.task
    """What the model is for. generate: it continues texts. embed: it makes embeddings of texts, at
    /v1/embeddings. auto: embed for a folder of sentence-transformers and for an encoder without a
    head, otherwise generate."""
    engine: EngineSpec = EngineSpec()
    """How the engine runs the model."""
    server: ServerSpec = ServerSpec()
    """How the pods answer HTTP."""
    access: AccessSpec = AccessSpec()
    """Who may call the endpoint, and how much."""
    replicas: Annotated[int, Field(ge=0, le=1000, json_schema_extra={"format": "int32"})] = 1
    """Number of pods that serve. With `autoscaling` the autoscaler writes it."""
    autoscaling: AutoscalingSpec | None = None
    """Autoscaler that sets `replicas`. Absent: the number of pods is fixed."""
    image: ImageReference | None = None
    """Runtime image of the pods, such as `registry.example.com/llm-runtime:1.4-cpu`. A changed
    image makes a new revision. Absent: the image in the operator's configuration when the revision
    is made."""
    resources: Resources | None = None
    """Compute resources of the serving container, such as `limits: {nvidia.com/gpu: 1}`."""
    rollout: RolloutSpec = RolloutSpec()
    """How a new version or a changed specification replaces what serves."""
    model_cache: ModelCacheSpec | None = None
    """Volume that keeps the downloaded weights. Absent: an emptyDir in each pod."""
    database: DatabaseSpec = DatabaseSpec()
    """Where usage, budgets and conversations are stored."""
    monitoring: MonitoringSpec = MonitoringSpec()
    """How the endpoint is monitored."""
    service: ServiceSpec = ServiceSpec()
    """The Service in front of the pods."""
    pod: PodSpec = PodSpec()
    """Further settings of the pods, such as node selection, labels and environment variables."""
    suspend: bool = False
    """Whether to stop all pods and start no roll-out; the Service and the keys stay."""

    @property
    def evaluates(self) -> bool:
        """Whether some gate is an evaluation."""
        return bool(self.rollout.evaluations) or any(
            each.evaluations for each in self.adapters or ()
        )


class LLMDeploymentRoot(Section):
    """An endpoint that serves a model from your MLflow registry and follows its promotions."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.metadata.name.size() <= 40",
                "metadata.name must have at most 40 characters: the children's names add to it",
            ),
            (
                "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
                (
                    "metadata.name becomes a Service name: start with a letter, then letters,"
                    " digits and -, no dots"
                ),
            ),
        )
    )
    spec: LLMDeploymentSpec
    """The model to serve and how to serve it."""
