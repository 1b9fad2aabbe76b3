"""The columns that `kubectl get` shows of an LLMDeployment and of an ApiKey."""

from typing import Any

Json = dict[str, Any]


def _column(name: str, path: str, kind: str = "string", priority: int = 0) -> Json:
    return {
        "name": name,
        "type": kind,
        "jsonPath": path,
        **({"priority": priority} if priority else {}),
    }


def _condition(kind: str, field: str) -> str:
    return f".status.conditions[?(@.type=='{kind}')].{field}"


_AGE = _column("Age", ".metadata.creationTimestamp", "date")

LLM_DEPLOYMENT = [
    # A row has about 90 characters: what is more is for `-o wide`.
    _column("Ready", _condition("Ready", "status")),
    _column("Available", _condition("Available", "status")),
    _column("Reason", _condition("Ready", "reason")),
    _column("Version", ".status.stable.version"),
    _column("Target", ".status.candidate.version"),
    _column("Pods", ".status.readyReplicas", "integer"),
    _column("Desired", ".spec.replicas", "integer"),
    _column("Model", ".status.model.name", priority=1),
    _column("Revision", ".status.stable.revision", priority=1),
    _column("Waiting", ".status.model.available.version", priority=1),
    _column("Adapters", _condition("AdaptersReady", "status"), priority=1),
    _column("URL", ".status.url", priority=1),
    _column("Image", ".status.stable.image", priority=1),
    _column("Message", _condition("Ready", "message"), priority=1),
    _AGE,
]
API_KEY = [
    _column("Ready", _condition("Ready", "status")),
    _column("Reason", _condition("Ready", "reason")),
    _column("Owner", ".spec.owner"),
    _column("Tier", ".spec.tier"),
    _column("Key", ".status.prefix"),
    _column("Secret", ".status.secretName"),
    # No date: kubectl shows one as an age, and one to come as <invalid>.
    _column("Expires", ".spec.expiresAt"),
    _column("Message", _condition("Ready", "message"), priority=1),
    _AGE,
]
