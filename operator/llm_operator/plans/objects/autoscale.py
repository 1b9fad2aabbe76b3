"""The HorizontalPodAutoscaler, which scales the LLMDeployment itself and so survives every change
of revision."""

from llm_operator.crds import API_VERSION
from llm_operator.crds.llmdeployment import AutoscalingMetric, AutoscalingSpec
from llm_operator.crds.schema import plain
from llm_operator.plans import names
from llm_operator.state import Manifest, Meta
from llm_runtime import contract

POD_METRICS = {
    "QueueDepth": contract.METRIC_REQUESTS_WAITING,
    "RunningRequests": contract.METRIC_REQUESTS_RUNNING,
    "TokensPerSecond": contract.METRIC_TOKENS_PER_SECOND,
}


def autoscaler(meta: Meta, spec: AutoscalingSpec) -> Manifest:
    """An autoscaler/v2 object that reads and writes our own scale subresource."""
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": names.metadata(meta, meta.name),
        "spec": {
            "scaleTargetRef": {"apiVersion": API_VERSION, "kind": meta.kind, "name": meta.name},
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
    target = {"type": "AverageValue", "averageValue": str(metric.target)}
    return {
        "type": "Pods",
        "pods": {"metric": {"name": POD_METRICS[metric.type]}, "target": target},
    }
