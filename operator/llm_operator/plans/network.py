"""What the pods are reached and protected by: Service, ServiceAccount, PodDisruptionBudget."""

from llm_operator.crds import LLMDeploymentSpec
from llm_operator.plans import names
from llm_operator.state import Manifest, Meta
from llm_runtime import contract


def service(meta: Meta, spec: LLMDeploymentSpec, revision: str) -> Manifest:
    """The endpoint: its selector names the one revision that serves, so a switch is one write."""
    metadata = names.metadata(meta, meta.name)
    if spec.service.annotations:
        metadata["annotations"] = spec.service.annotations
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": spec.service.type,
            "selector": names.selector(meta, revision),
            "ports": [{"name": "http", "port": spec.service.port, "targetPort": contract.PORT, "protocol": "TCP"}],
        },
    }


def service_account(meta: Meta) -> Manifest:
    """An identity without a token: the runtime never talks to the API server."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": names.metadata(meta, meta.name),
        "automountServiceAccountToken": False,
    }


def disruption_budget(meta: Meta, revision: str) -> Manifest:
    """One pod at a time may be evicted; with a single replica a node can still be drained."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": names.metadata(meta, meta.name),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": names.selector(meta, revision)},
            # A pod that is not ready protects nobody by staying.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def url(meta: Meta, spec: LLMDeploymentSpec) -> str:
    """Where clients inside the cluster reach the endpoint."""
    port = "" if spec.service.port == 80 else f":{spec.service.port}"
    return f"http://{meta.name}.{meta.namespace}.svc{port}"
