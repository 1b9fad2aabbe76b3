"""AutoscalingActive: whether the autoscaler that the specification asks for can work."""

from collections.abc import Iterable

from llm_operator.plans import names
from llm_operator.plans.objects import autoscale
from llm_operator.plans.reasons import Reason
from llm_operator.plans.status.findings import Finding
from llm_operator.state import Manifest, Observed

OF_PODS = frozenset({"FailedGetPodsMetric", "FailedGetObjectMetric", "FailedGetExternalMetric"})
"""Reasons of a HorizontalPodAutoscaler that gets no metrics but those of CPU and memory."""


def finding(observed: Observed) -> Finding:
    """From what the autoscaler says of itself, or why there is none."""
    spec = observed.spec.autoscaling
    assert spec is not None
    if rival := autoscale.rival(observed):
        return (
            "False",
            Reason.AutoscalersContradict,
            f"ScaledObject {rival} scales this LLMDeployment, too, so spec.autoscaling waits: delete"
            f" it (kubectl -n {observed.meta.namespace} delete scaledobject {rival}), or take"
            " spec.autoscaling away",
        )
    if spec.scaler == "KEDA":
        return _keda(observed)
    found = _reported((observed.autoscaler,), "ScalingActive", "the HorizontalPodAutoscaler")
    status, reason, message = found
    if status == "False" and reason in OF_PODS and observed.metrics_advice:
        return status, reason, f"{message}; {observed.metrics_advice}"
    return found


def _keda(observed: Observed) -> Finding:
    if observed.scaled_objects is None:
        return (
            "False",
            Reason.KedaMissing,
            "spec.autoscaling.scaler is KEDA and the cluster has no ScaledObject CRD: install KEDA,"
            " or write HorizontalPodAutoscaler",
        )
    own = (each for each in observed.scaled_objects if names.ours(each, observed.meta))
    return _reported(own, "Ready", "KEDA")


def _reported(autoscalers: Iterable[Manifest | None], kind: str, who: str) -> Finding:
    found = next(iter(autoscalers), None)
    conditions = ((found or {}).get("status") or {}).get("conditions") or []
    active = next((c for c in conditions if c.get("type") == kind), None)
    if active is None or active["status"] == "Unknown":
        return "Unknown", Reason.AutoscalerPending, f"{who} has not reported yet"
    if active["status"] == "True":
        return "True", Reason.ScalingActive, active.get("message", "")
    return "False", active.get("reason", "Unknown"), active.get("message", "")


def unwatched(observed: Observed) -> bool:
    """Whether what it waits for is something that nobody tells of: KEDA's objects."""
    spec = observed.spec.autoscaling
    return spec is not None and (
        bool(autoscale.rival(observed))
        or (spec.scaler == "KEDA" and finding(observed)[0] != "True")
    )
