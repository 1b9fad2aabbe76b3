"""The documents of both APIs: discovery, values, and errors as metav1.Status. Pure.

The shapes are those of k8s.io/metrics (custom_metrics/v1beta2, external_metrics/v1beta1) and of
apimachinery's metav1.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from llm_operator.crds import API_VERSION, GROUP
from llm_operator.metricsapi.catalogue import METRICS, ServedMetric
from llm_operator.state import Manifest

CUSTOM = "custom.metrics.k8s.io"
EXTERNAL = "external.metrics.k8s.io"
VERSIONS = {CUSTOM: "v1beta2", EXTERNAL: "v1beta1"}
"""By group: the one version that is served. The HorizontalPodAutoscaler's controller takes the
group's preferred one, and has known these since Kubernetes 1.11."""
PODS = "pods"
DEPLOYMENTS = f"llmdeployments.{GROUP}"
REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    500: "InternalError",
    503: "ServiceUnavailable",
}


class Answered(Exception):
    """The request ends with this status, told to the client as a metav1.Status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    def status(self) -> Manifest:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": REASONS[self.code],
            "code": self.code,
        }


def groups() -> Manifest:
    """The groups that are served."""
    return {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [_group(name) for name in VERSIONS],
    }


def group(name: str) -> Manifest:
    """One of them."""
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(name)}


def _group(name: str) -> Manifest:
    version = {"groupVersion": f"{name}/{VERSIONS[name]}", "version": VERSIONS[name]}
    return {"name": name, "versions": [version], "preferredVersion": version}


def resources(name: str) -> Manifest:
    """What a group serves, as clients discover it."""
    kind = "MetricValueList" if name == CUSTOM else "ExternalMetricValueList"
    named = (
        [f"{resource}/{metric}" for resource in (PODS, DEPLOYMENTS) for metric in METRICS]
        if name == CUSTOM
        else list(METRICS)
    )
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{name}/{VERSIONS[name]}",
        "resources": [
            {"name": each, "singularName": "", "namespaced": True, "kind": kind, "verbs": ["get"]}
            for each in named
        ],
    }


def custom(items: Iterable[Manifest]) -> Manifest:
    """The answer of custom.metrics.k8s.io, with what `described` makes."""
    return _list(CUSTOM, "MetricValueList", items)


def external(items: Iterable[Manifest]) -> Manifest:
    """The answer of external.metrics.k8s.io, with what `outside` makes."""
    return _list(EXTERNAL, "ExternalMetricValueList", items)


def _list(name: str, kind: str, items: Iterable[Manifest]) -> Manifest:
    return {
        "kind": kind,
        "apiVersion": f"{name}/{VERSIONS[name]}",
        "metadata": {},
        "items": list(items),
    }


def described(metric: ServedMetric, of: Manifest, value: float, taken: datetime) -> Manifest:
    """One value of custom.metrics.k8s.io. `of`: the pod or LLMDeployment that it is about."""
    pod = of["kind"] == "Pod"
    about = {
        "kind": of["kind"],
        "namespace": of["metadata"]["namespace"],
        "name": of["metadata"]["name"],
        "apiVersion": "v1" if pod else API_VERSION,
    }
    return {
        "describedObject": about,
        "metric": {"name": metric.name},
        "timestamp": _stamp(taken),
        **({"windowSeconds": metric.window_seconds} if metric.window_seconds else {}),
        "value": quantity(value),
    }


def outside(
    metric: ServedMetric, labels: Mapping[str, str], value: float, taken: datetime
) -> Manifest:
    """One value of external.metrics.k8s.io."""
    return {
        "metricName": metric.name,
        "metricLabels": dict(labels),
        "timestamp": _stamp(taken),
        **({"window": metric.window_seconds} if metric.window_seconds else {}),
        "value": quantity(value),
    }


def quantity(value: float) -> str:
    """As Kubernetes writes it: whole, or in thousandths."""
    return str(int(value)) if value == int(value) else f"{round(value * 1000)}m"


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
