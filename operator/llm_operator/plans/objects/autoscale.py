"""The autoscaler of an LLMDeployment: a HorizontalPodAutoscaler, or a ScaledObject of KEDA. It scales
the LLMDeployment itself and so survives every change of revision."""

from llm_operator.crds import API_VERSION
from llm_operator.crds.llmdeployment import AutoscalingMetric, AutoscalingSpec
from llm_operator.crds.schema import plain
from llm_operator.plans import names
from llm_operator.state import Manifest, Meta, Observed
from llm_runtime import contract

POD_METRICS = {
    "QueueDepth": contract.METRIC_REQUESTS_WAITING,
    "RunningRequests": contract.METRIC_REQUESTS_RUNNING,
    "TokensPerSecond": contract.METRIC_TOKENS_PER_SECOND,
    "CacheUsage": contract.METRIC_KV_CACHE_USAGE,
}


def objects(observed: Observed) -> list[Manifest]:
    """The one that is asked for, where it can be: two autoscalers would undo each other's work."""
    meta = observed.meta
    spec = observed.spec.autoscaling
    if spec is None or observed.spec.suspend or rival(observed):
        return []
    if spec.scaler == "KEDA":
        return [] if observed.scaled_objects is None else [scaled_object(meta, spec)]
    return [autoscaler(meta, spec)]


def rival(observed: Observed) -> str:
    """The name of somebody else's ScaledObject that scales this LLMDeployment; empty: none does."""
    target = {"kind": observed.meta.kind, "name": observed.meta.name}
    return next(
        (
            each["metadata"]["name"]
            for each in observed.scaled_objects or ()
            if target.items() <= each["spec"].get("scaleTargetRef", {}).items()
            and not names.ours(each, observed.meta)
        ),
        "",
    )


def _target(meta: Meta) -> Manifest:
    return {"apiVersion": API_VERSION, "kind": meta.kind, "name": meta.name}


def autoscaler(meta: Meta, spec: AutoscalingSpec) -> Manifest:
    """An autoscaler/v2 object that reads and writes our own scale subresource."""
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": names.metadata(meta, meta.name),
        "spec": {
            "scaleTargetRef": _target(meta),
            "minReplicas": spec.min_replicas,
            "maxReplicas": spec.max_replicas,
            "metrics": [_metric(metric) for metric in spec.metrics],
            **({"behavior": plain(spec.behavior)} if spec.behavior else {}),
        },
    }


def _metric(metric: AutoscalingMetric) -> Manifest:
    if metric.type == "CPU":
        target: Manifest = {"type": "Utilization", "averageUtilization": metric.target}
        return {"type": "Resource", "resource": {"name": "cpu", "target": target}}
    # The API server rewrites a quantity in its shortest form: what is written is to be that one.
    percent = f"{metric.target * 10}m" if metric.target < 100 else "1"
    average = percent if metric.type == "CacheUsage" else str(metric.target)
    return {
        "type": "Pods",
        "pods": {
            "metric": {"name": POD_METRICS[metric.type]},
            "target": {"type": "AverageValue", "averageValue": average},
        },
    }


def scaled_object(meta: Meta, spec: AutoscalingSpec) -> Manifest:
    """A keda.sh/v1alpha1 object. KEDA makes a HorizontalPodAutoscaler of it, and asks the pods."""
    behavior = {"behavior": plain(spec.behavior)} if spec.behavior else None
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": names.metadata(meta, meta.name),
        "spec": {
            "scaleTargetRef": _target(meta),
            "minReplicaCount": spec.min_replicas,
            "maxReplicaCount": spec.max_replicas,
            "triggers": [_trigger(meta, metric) for metric in spec.metrics],
            **({"advanced": {"horizontalPodAutoscalerConfig": behavior}} if behavior else {}),
        },
    }


def _trigger(meta: Meta, metric: AutoscalingMetric) -> Manifest:
    """A trigger that asks all pods behind the Service, or one of KEDA's cpu.

    The sum over the pods has the same target as the average of each: KEDA divides it by their
    number. Its address has the pods' port, as KEDA's metrics-api trigger wants it.
    """
    if metric.type == "CPU":
        return {
            "type": "cpu",
            "metricType": "Utilization",
            "metadata": {"value": str(metric.target)},
        }
    percent = metric.type == "CacheUsage"
    return {
        "type": "metrics-api",
        "metricType": "AverageValue",
        "metadata": {
            "url": f"http://{meta.name}.{meta.namespace}:{contract.PORT}{contract.METRICS_PATH}",
            "format": "prometheus",
            "valueLocation": POD_METRICS[metric.type],
            "targetValue": f"{metric.target / 100:g}" if percent else str(metric.target),
            "aggregateFromKubeServiceEndpoints": "true",
            "aggregationType": "sum",
        },
    }
