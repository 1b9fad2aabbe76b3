"""What the metrics say of each LLMDeployment and ApiKey: its status as it was last written.

One collector over a dictionary stands in for gauges with labels. So a state that has passed has no
series, and an object's series go with it. Only the process that holds the lease reconciles, so only
it has any.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from llm_operator.crds import ApiKeyStatus, Condition, LLMDeploymentStatus
from llm_operator.plans.reasons import Reason
from llm_operator.state import Key, Manifest

STATUSES = ("True", "False", "Unknown")
REASONS = frozenset(Reason)
OTHER = "Other"
"""Label for a reason that is not in the documented list, because labels have few values."""

_OBJECT = ("kind", "namespace", "name")
_NAMED = ("namespace", "name")
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "llm_operator_condition": (
        "1 for the status that the condition has, 0 for the others.",
        (*_OBJECT, "type", "status"),
    ),
    "llm_operator_condition_reason": (
        "1 for the reason that the condition has.",
        (*_OBJECT, "type", "reason"),
    ),
    "llm_operator_condition_changed_timestamp_seconds": (
        "When the condition's status last changed.",
        (*_OBJECT, "type"),
    ),
    "llm_operator_deployment_info": ("What serves.", (*_NAMED, "model", "version", "revision")),
    "llm_operator_deployment_replicas_wanted": ("Pods that are asked for.", _NAMED),
    "llm_operator_deployment_replicas_ready": ("Ready pods of what serves.", _NAMED),
    "llm_operator_deployment_rollout_in_progress": (
        "1 while a candidate is being rolled out.",
        _NAMED,
    ),
    "llm_operator_deployment_rollout_info": (
        "The candidate; its outcome is empty while it is under way.",
        (*_NAMED, "version", "revision", "strategy", "outcome"),
    ),
    "llm_operator_deployment_rollout_started_timestamp_seconds": (
        "When the roll-out under way began.",
        _NAMED,
    ),
    "llm_operator_apikey_info": ("1 for the phase that the key is in.", (*_NAMED, "phase")),
    "llm_operator_apikey_expiry_timestamp_seconds": (
        "When the key stops working; absent: never.",
        _NAMED,
    ),
}
"""Every metric: its help and its labels."""

Sample = tuple[str, tuple[str, ...], float]
"""A metric's name, its labels' values, its value."""


class Inventory(Collector):
    """The objects that this process looks after."""

    def __init__(self) -> None:
        self._samples: dict[Key, tuple[Sample, ...]] = {}

    def note(self, resource: Manifest, status: LLMDeploymentStatus | ApiKeyStatus) -> None:
        """Note what the object's status is now."""
        meta = resource["metadata"]
        key = Key(resource["kind"], meta["namespace"], meta["name"])
        spec = resource.get("spec") or {}
        own = (
            _deployment(key, spec, status)
            if isinstance(status, LLMDeploymentStatus)
            else _api_key(key, spec, status)
        )
        self._samples[key] = (*_conditions(key, status.conditions), *own)

    def forget(self, key: Key) -> None:
        """The object is no more."""
        self._samples.pop(key, None)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        found = {
            name: GaugeMetricFamily(name, help_, labels=labels)
            for name, (help_, labels) in FAMILIES.items()
        }
        # A list, made at once: the scrape is another thread.
        for samples in list(self._samples.values()):
            for name, labels, value in samples:
                found[name].add_metric(labels, value)
        return found.values()


def _conditions(key: Key, conditions: Iterable[Condition]) -> Iterator[Sample]:
    for condition in conditions:
        labels = (key.kind, key.namespace, key.name, condition.type)
        for status in STATUSES:
            yield (
                "llm_operator_condition",
                (*labels, status.lower()),
                float(condition.status == status),
            )
        reason = condition.reason if condition.reason in REASONS else OTHER
        yield "llm_operator_condition_reason", (*labels, reason), 1.0
        changed = _seconds(condition.last_transition_time)
        if changed is not None:
            yield "llm_operator_condition_changed_timestamp_seconds", labels, changed


def _deployment(key: Key, spec: Manifest, status: LLMDeploymentStatus) -> Iterator[Sample]:
    labels = (key.namespace, key.name)
    stable = status.stable
    candidate = status.candidate
    under_way = candidate is not None and candidate.outcome is None
    if stable is not None:
        model = status.model.name if status.model else ""
        yield "llm_operator_deployment_info", (*labels, model, stable.version, stable.revision), 1.0
    wanted = 0 if spec.get("suspend") else spec.get("replicas", 1)
    if isinstance(wanted, int):  # Not so in a specification that can't be read.
        yield "llm_operator_deployment_replicas_wanted", labels, float(wanted)
    yield "llm_operator_deployment_replicas_ready", labels, float(status.ready_replicas or 0)
    yield "llm_operator_deployment_rollout_in_progress", labels, float(under_way)
    if candidate is not None:
        values = (
            candidate.version,
            candidate.revision,
            candidate.strategy or "",
            candidate.outcome or "",
        )
        yield "llm_operator_deployment_rollout_info", (*labels, *values), 1.0
        started = _seconds(candidate.started_at)
        if under_way and started is not None:
            yield "llm_operator_deployment_rollout_started_timestamp_seconds", labels, started


def _api_key(key: Key, spec: Manifest, status: ApiKeyStatus) -> Iterator[Sample]:
    labels = (key.namespace, key.name)
    yield "llm_operator_apikey_info", (*labels, _phase(status)), 1.0
    expires = _seconds(spec.get("expiresAt"))
    if expires is not None:
        yield "llm_operator_apikey_expiry_timestamp_seconds", labels, expires


def _phase(status: ApiKeyStatus) -> str:
    reason = next((each.reason for each in status.conditions if each.type == "Ready"), "")
    if reason in (Reason.Suspended, Reason.Expired):
        return str(reason)
    return "Active" if status.prefix else "NotIssued"


def _seconds(stamp: object) -> float | None:
    """RFC 3339 as Unix time; None for what is not a time."""
    try:
        found = datetime.fromisoformat(str(stamp))
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
