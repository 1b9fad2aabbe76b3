"""Writes the status subresource, only when it changed, and Kubernetes Events."""

import hashlib
import logging

from llm_operator.crds import API_VERSION, ApiKeyStatus, LLMDeploymentStatus
from llm_operator.observe import Outside
from llm_operator.plans import names
from llm_operator.plans.rollout import stamp
from llm_operator.ports.cluster import ApiError, Cluster, Conflict
from llm_operator.state import Manifest, Meta, Occurrence

log = logging.getLogger(__name__)


async def report(
    outside: Outside, resource: Manifest, meta: Meta, status: LLMDeploymentStatus | ApiKeyStatus
) -> None:
    """Write the status, unless the resource says the same already,
    and have the metrics say it, too."""
    wanted = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    if wanted != (resource.get("status") or {}):
        await _write(outside.cluster, meta, wanted)
    outside.memory.inventory.note(resource, status)


async def _write(cluster: Cluster, meta: Meta, wanted: Manifest) -> None:
    manifest = {
        "apiVersion": API_VERSION,
        "kind": meta.kind,
        # The uid keeps the status of a deleted resource off a new one of the same name.
        "metadata": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid},
        "status": wanted,
    }
    await cluster.apply_status(manifest)


async def tell(cluster: Cluster, meta: Meta, occurrences: tuple[Occurrence, ...], now: str) -> None:
    """Events for `kubectl describe`.
    One that can't be written is logged: Events never hold up the work."""
    for occurrence in occurrences:
        try:
            new = await _record(cluster, meta, occurrence, now)
        except ApiError as error:
            log.warning("an Event for %s/%s was not written: %s", meta.namespace, meta.name, error)
            new = True
        if new:
            level = logging.INFO if occurrence.type == "Normal" else logging.WARNING
            event = (meta.kind, meta.namespace, meta.name, occurrence.reason, occurrence.message)
            log.log(level, "%s %s/%s: %s: %s", *event)


async def _record(cluster: Cluster, meta: Meta, occurrence: Occurrence, now: str) -> bool:
    """Whether this is news: False for an Event that is written once and was."""
    text = f"{meta.uid}/{occurrence.reason}/{occurrence.message}"
    name = f"{meta.name[:200]}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": meta.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": meta.kind,
            "namespace": meta.namespace,
            "name": meta.name,
            "uid": meta.uid,
        },
        "type": occurrence.type,
        "reason": occurrence.reason,
        "message": occurrence.message[:1024],
        "source": {"component": names.MANAGED_BY},
        "reportingComponent": names.MANAGED_BY,
        "reportingInstance": names.MANAGED_BY,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    try:
        await cluster.create(event)
    except Conflict:
        if occurrence.once:
            return False
        # The same was told before: count it, as client-go's recorder does.
        before = await cluster.get("Event", meta.namespace, name)
        count = int((before or {}).get("count") or 1) + 1
        await cluster.patch("Event", meta.namespace, name, {"count": count, "lastTimestamp": now})
    return True


__all__ = ["report", "stamp", "tell"]
