"""The ServiceMonitor by which the Prometheus operator finds the pods' metrics."""

from llm_operator.crds import LLMDeploymentSpec
from llm_operator.plans import names
from llm_operator.state import Manifest, Meta
from llm_runtime import contract


def service_monitor(meta: Meta, spec: LLMDeploymentSpec) -> Manifest:
    """One endpoint: the Service's http port."""
    settings = spec.monitoring.service_monitor
    metadata = names.metadata(meta, meta.name)
    metadata["labels"] = {**(settings.labels or {}), **metadata["labels"]}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": metadata,
        "spec": {
            # All runtimes are one job: the alerts and dashboards of the chart and of compose know
            # it by this name.
            "jobLabel": "app.kubernetes.io/name",
            "selector": {
                "matchLabels": names.selector(meta),
                "matchExpressions": [{"key": names.PREVIEW_LABEL, "operator": "DoesNotExist"}],
            },
            "targetLabels": [names.DEPLOYMENT_LABEL],
            "podTargetLabels": [names.REVISION_LABEL],
            "endpoints": [
                {"port": "http", "path": contract.METRICS_PATH, "interval": settings.interval}
            ],
        },
    }
