"""What keeps a pod from getting ready, in words for the person who will put it right."""

import re
from collections.abc import Iterable

from llm_operator.plans import names
from llm_operator.state import Fault, Manifest, pod_ready
from llm_runtime.contract import report_from_termination_message

RETRYABLE_REPORTS = frozenset({"RegistryUnreachable", "DiskFull"})
"""Reports that another attempt of the same pod may get past."""
_IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
_CREATE = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}


def worst(pods: Iterable[Manifest], deployment: Manifest | None, mounts: dict[str, str]) -> Fault | None:
    """The most telling fault among the pods of one revision: the program's own report before anything else.

    `mounts` holds what the kubelet said about volumes, by pod name.
    """
    found = [fault for pod in pods if (fault := of_pod(pod, mounts.get(pod["metadata"]["name"], "")))]
    found.sort(key=lambda fault: (not fault.terminal, _ORDER.get(fault.reason, 0)))
    return found[0] if found else _refused(deployment)


_ORDER = {"CrashLoopBackOff": 1, "PodUnschedulable": 2, "PodEvicted": 3}
"""The later, the less it says: an evicted pod stays in the list long after another has taken its place."""


def of_pod(pod: Manifest, mount: str = "") -> Fault | None:
    """The fault of one pod, or None when it is ready, leaving or simply on its way."""
    status = pod.get("status", {})
    if pod["metadata"].get("deletionTimestamp") or ready(pod):
        return None
    if status.get("phase") == "Failed" and status.get("reason"):
        return _evicted(pod)
    if _lost(pod):
        return _on_a_lost_node(pod)
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        return _unschedulable(pod, scheduled.get("message", ""))
    containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    for container in containers:
        if fault := _of_container(pod, container):
            return fault
    if mount:
        return Fault("MountFailed", f"pod {_name(pod)} can't mount a volume: {mount} ({_describe(pod)})")
    return None


def _of_container(pod: Manifest, container: Manifest) -> Fault | None:
    waiting = container.get("state", {}).get("waiting") or {}
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    what = f"container {container['name']} of pod {_name(pod)}"
    if reason in _IMAGE:
        return Fault(
            "ImagePullFailed",
            f"the image {container.get('image', '')!r} of {what} can't be pulled: {message or reason}; check "
            "spec.image (where it is absent: runtimeImage in the operator's configuration) and "
            "spec.pod.imagePullSecrets",
        )
    if reason in _CREATE:
        return Fault(
            "ContainerConfigError",
            f"{what} can't be created: {message or reason}; make what is missing, or correct spec.pod.env "
            f"({_describe(pod)})",
        )
    ended = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated") or {}
    if ended and ended.get("exitCode"):
        return _of_exit(pod, container, ended, reason)
    return None


def _of_exit(pod: Manifest, container: Manifest, ended: Manifest, waiting: str) -> Fault | None:
    report = report_from_termination_message(ended.get("message") or "")
    if report is not None:
        return Fault(report.reason, report.message, terminal=report.reason not in RETRYABLE_REPORTS)
    logs = f"{_kubectl(pod)} logs {_name(pod)} -c {container['name']} --previous"
    if ended.get("reason") == "OOMKilled":
        field = "spec.pod.fetchResources" if container["name"] == names.FETCH_CONTAINER else "spec.resources"
        return Fault(
            "OutOfMemory",
            f"container {container['name']} of pod {_name(pod)} was killed for its memory: raise "
            f"{field}.limits.memory ({logs})",
            terminal=container.get("restartCount", 0) >= 3,
        )
    if waiting == "CrashLoopBackOff":
        tail = (ended.get("message") or "").strip()[-400:]
        return Fault(
            "CrashLoopBackOff",
            f"container {container['name']} of pod {_name(pod)} ends with exit code {ended['exitCode']} again and again"
            + (f": {tail}" if tail else "")
            + f" ({logs})",
        )
    return None


def _unschedulable(pod: Manifest, message: str) -> Fault:
    scarce = sorted(set(re.findall(r"Insufficient ([\w./-]*\w)", message)))
    what = f"not enough {', '.join(scarce)}: " if scarce else ""
    hint = "; free some or add a node" if scarce else ""
    return Fault("PodUnschedulable", f"pod {_name(pod)} finds no node: {what}{message}{hint} ({_describe(pod)})")


def _evicted(pod: Manifest) -> Fault:
    """The kubelet has ended the pod for the node's sake: memory, disk, a shutdown, no room on arrival."""
    reason, message = pod["status"]["reason"], pod["status"].get("message") or ""
    return Fault(
        "PodEvicted",
        f"pod {_name(pod)} was ended by its node {_node(pod)}: {reason}: {message or 'no further word'}; another is "
        f"made; requests close to what the pod uses keep it (spec.resources.requests; {_describe(pod)})",
    )


def _lost(pod: Manifest) -> bool:
    """Whether the node's kubelet has fallen silent.

    Then the control plane takes Ready from the pod and touches nothing else; a kubelet always changes both.
    """
    status, gated = pod.get("status") or {}, (pod.get("spec") or {}).get("readinessGates")
    containers = _condition(status, "ContainersReady").get("status")
    unready = _condition(status, "Ready").get("status") in ("False", "Unknown")
    return status.get("reason") == "NodeLost" or (unready and containers == "True" and not gated)


def _on_a_lost_node(pod: Manifest) -> Fault:
    return Fault(
        "NodeLost",
        f"node {_node(pod)} of pod {_name(pod)} does not answer; the pod is replaced when the node is given up, 5 "
        f"minutes by default, or at once by kubectl delete node {_node(pod)} (kubectl describe node {_node(pod)})",
    )


def _refused(deployment: Manifest | None) -> Fault | None:
    failure = _condition((deployment or {}).get("status", {}), "ReplicaFailure")
    if failure.get("status") != "True" or deployment is None:
        return None
    name = deployment["metadata"]["name"]
    return Fault(
        "PodsRefused",
        f"pods of {name} are refused: {failure.get('message', '')} ({_kubectl(deployment)} describe replicaset -l "
        f"{names.REVISION_LABEL}={(deployment['metadata'].get('labels') or {}).get(names.REVISION_LABEL, '')})",
    )


def _condition(status: Manifest, kind: str) -> Manifest:
    return next((c for c in status.get("conditions") or [] if c.get("type") == kind), {})


def _name(pod: Manifest) -> str:
    return str(pod["metadata"]["name"])


def _node(pod: Manifest) -> str:
    return str((pod.get("spec") or {}).get("nodeName") or "?")


def _kubectl(manifest: Manifest) -> str:
    namespace = manifest["metadata"].get("namespace")
    return f"kubectl -n {namespace}" if namespace else "kubectl"


def _describe(pod: Manifest) -> str:
    return f"{_kubectl(pod)} describe pod {_name(pod)}"


def waits_for_mounts(pod: Manifest) -> bool:
    """Whether a pod has a node but no container yet: then only the kubelet's Events say why."""
    status = pod.get("status", {})
    if pod["metadata"].get("deletionTimestamp") or _condition(status, "PodScheduled").get("status") != "True":
        return False
    containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    reasons = {(c.get("state", {}).get("waiting") or {}).get("reason") for c in containers}
    return status.get("phase", "Pending") == "Pending" and reasons <= {"ContainerCreating", "PodInitializing"}


def fetching(pod: Manifest) -> bool:
    """Whether the pod is downloading its model."""
    containers = pod.get("status", {}).get("initContainerStatuses") or []
    # Others may run as long as the pod: sidecars that a mesh puts in.
    return any(c["name"] == names.FETCH_CONTAINER and "running" in c.get("state", {}) for c in containers)


ready = pod_ready
