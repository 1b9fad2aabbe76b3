"""What is wrong with a pod, in words for the person who will put it right: not ready, restarted,
evicted, on a lost node."""

import re
import signal
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from llm_operator.plans import names
from llm_operator.plans.reasons import Reason
from llm_operator.state import Fault, Manifest, pod_ended, pod_ready
from llm_runtime.contract import report_from_termination_message

RETRYABLE_REPORTS = frozenset(
    {Reason.RegistryUnreachable, Reason.DiskFull, Reason.EngineKilled, Reason.EngineDied}
)
"""Reports that another attempt of the same pod may get past."""
_IMAGE = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "RegistryUnavailable",
}
_CREATE = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}


RECENT = timedelta(minutes=10)
"""A container that ended longer ago than this,
and runs again, is not why its pod is not ready now."""
OWN_CONTAINERS = (names.FETCH_CONTAINER, names.ADAPTERS_CONTAINER, names.RUNTIME_CONTAINER)
"""Others were put into the pod by somebody else: a mesh, an agent."""
LASTING = (names.ADAPTERS_CONTAINER, names.RUNTIME_CONTAINER)
"""Containers that run as long as the pod."""
KILLS_FOR_GOOD = 3
"""After so many restarts, running out of memory is not chance."""


def worst(
    pods: Iterable[Manifest],
    deployment: Manifest | None,
    events: Mapping[str, Iterable[Manifest]],
    now: datetime | None = None,
    silent: Container[str] = (),
) -> Fault | None:
    """The most telling fault among the pods of one revision:
    the program's own report before anything else.

    `events` holds what was said about pods that wait for their containers, by pod name; `silent`
    names nodes that do not answer.
    """
    found = [
        fault
        for pod in pods
        if (fault := of_pod(pod, events.get(pod["metadata"]["name"], ()), now, silent))
    ]
    found.sort(key=lambda fault: (not fault.terminal, _ORDER.get(fault.reason, 0)))
    return found[0] if found else _refused(deployment)


_ORDER: dict[str, int] = {
    Reason.ContainerRestarted: 1,
    Reason.CrashLoopBackOff: 1,
    Reason.PodUnschedulable: 2,
    Reason.PodEvicted: 3,
}
"""The later, the less it says: an evicted pod stays in the list long after another has taken its
place."""


def of_pod(
    pod: Manifest,
    events: Iterable[Manifest] = (),
    now: datetime | None = None,
    silent: Container[str] = (),
) -> Fault | None:
    """The fault of one pod, or None when it is ready, leaving or simply on its way."""
    status = pod.get("status", {})
    if pod["metadata"].get("deletionTimestamp") or ready(pod):
        return None
    if (fault := _evicted(pod)) is not None:
        return fault
    if _lost(pod) or _node(pod) in silent:
        return _on_a_lost_node(pod)
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        return _unschedulable(pod, scheduled.get("message", ""))
    # What fetches adapters comes last: the model and the server say more about the pod.
    for container in sorted(
        _containers(pod), key=lambda each: each["name"] == names.ADAPTERS_CONTAINER
    ):
        if fault := _of_container(pod, container, now):
            return fault
    return _of_events(pod, events)


def _of_events(pod: Manifest, events: Iterable[Manifest]) -> Fault | None:
    """The last trouble that was told of a pod, unless it has got further since."""
    failure: tuple[str, str] | None = None
    for event in sorted(events, key=_when):
        reason = event.get("reason") or ""
        if reason in _TROUBLES:
            failure = reason, (event.get("message") or "no details")[-_WORDS:]
        elif reason in _GOT_FURTHER or (
            failure and (failure[0], reason) == ("FailedAttachVolume", "SuccessfulAttachVolume")
        ):
            failure = None
    if failure is None:
        return None
    kind, words, advice = _TROUBLES[failure[0]]
    return Fault(kind, f"pod {_name(pod)} {words}: {failure[1]}{advice} ({_describe(pod)})")


_WORDS = 600
"""Characters of an Event's message; what matters stands at the end of a chain of causes."""
_GOT_FURTHER = {"Pulling", "Pulled", "Created", "Started"}
_MOUNT = (
    Reason.MountFailed,
    "can't mount a volume",
    "; the Secret, ConfigMap or claim that it names must exist and be usable",
)
_SANDBOX = (
    Reason.SandboxFailed,
    "can't get its sandbox",
    (
        "; the node's container runtime or network is at fault, or spec.pod.runtimeClassName:"
        " another node may do"
    ),
)
_TROUBLES = {
    "FailedMount": _MOUNT,
    "FailedMapVolume": _MOUNT,
    "FailedAttachVolume": (
        Reason.AttachFailed,
        "waits for a volume that can't be attached to its node",
        (
            "; a ReadWriteOnce claim serves one node at a time: use a ReadWriteMany claim or"
            " rollout.strategy Recreate, or wait until the other pod has gone"
        ),
    ),
    "FailedCreatePodSandBox": _SANDBOX,
    "NetworkNotReady": _SANDBOX,
}
"""Reason, words and advice by the reason of the Event.
The pod itself says nothing: it stays in ContainerCreating."""


def _when(event: Manifest) -> str:
    series = event.get("series") or {}
    return str(
        series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or ""
    )


def _of_container(pod: Manifest, container: Manifest, now: datetime | None) -> Fault | None:
    waiting = container.get("state", {}).get("waiting") or {}
    reason = waiting.get("reason", "")
    message = waiting.get("message", "")
    what = f"container {container['name']} of pod {_name(pod)}"
    if reason in _IMAGE:
        return Fault(
            Reason.ImagePullFailed,
            f"the image {container.get('image', '')!r} of {what} can't be pulled:"
            f" {message or reason}; check spec.image (where it is absent: runtimeImage in the"
            " operator's configuration) and spec.pod.imagePullSecrets; an image that was only"
            f" loaded onto node {_node(pod)} is removed by its clean-up when the disk is full: load"
            " it again",
        )
    if reason in _CREATE:
        return Fault(
            Reason.ContainerConfigError,
            f"{what} can't be created: {message or reason}; make what is missing, or correct"
            f" spec.pod.env ({_describe(pod)})",
        )
    ended = container.get("state", {}).get("terminated") or _last_end(container, now)
    return _of_exit(pod, container, ended, reason) if _failed(ended) else None


def _failed(ended: Manifest) -> bool:
    """A kill for memory counts whatever the exit code:
    it may have hit another process than the container's first."""
    return bool(ended.get("exitCode")) or ended.get("reason") == "OOMKilled"


def _last_end(container: Manifest, now: datetime | None) -> Manifest:
    """How the attempt before ended, as long as that is news."""
    ended: Manifest = container.get("lastState", {}).get("terminated") or {}
    running = "running" in container.get("state", {})
    finished = _time(ended.get("finishedAt"))
    old = running and now is not None and finished is not None and now - finished > RECENT
    return {} if old else ended


def _of_exit(pod: Manifest, container: Manifest, ended: Manifest, waiting: str) -> Fault | None:
    own = container["name"] in OWN_CONTAINERS
    foreign = "" if own else " (not one of the operator's)"
    what = f"container {container['name']} of pod {_name(pod)}{foreign}"
    logs = f"{_kubectl(pod)} logs {_name(pod)} -c {container['name']} --previous"
    # A container that only fetches adapters must not fail the version.
    often = (
        container.get("restartCount", 0) >= KILLS_FOR_GOOD
        and container["name"] != names.ADAPTERS_CONTAINER
    )
    out_of_memory = ended.get("reason") == "OOMKilled"
    report = report_from_termination_message(ended.get("message") or "") if own else None
    if report is not None:
        # To be killed once does not prove the limit too small: the same pod may have served for days.
        passing = report.reason in RETRYABLE_REPORTS or (out_of_memory and not often)
        return Fault(
            report.reason, f"{_whose(pod, report.reason)}{report.message}", terminal=not passing
        )
    if out_of_memory:
        whose = (
            _memory_field(container["name"])
            if own
            else "its memory limit, where it was put into the pod"
        )
        return Fault(
            Reason.OutOfMemory,
            f"{what} ran out of memory and was killed: raise {whose} ({logs})",
            terminal=own and often,
        )
    tail = (ended.get("message") or "").strip()[-400:]
    words = f": {tail}" if tail else ""
    if waiting == "CrashLoopBackOff":
        return Fault(
            Reason.CrashLoopBackOff,
            f"{what} keeps ending with {_code(ended)}{words} ({logs})",
        )
    return Fault(
        Reason.ContainerRestarted,
        f"{what} ended with {_code(ended)} and is being restarted{words} ({logs})",
    )


def _whose(pod: Manifest, reason: str) -> str:
    """The operator asks the same server, from another place:
    what a pod can't reach may be there for the operator."""
    if reason != Reason.RegistryUnreachable:
        return ""
    return (
        f"pod {_name(pod)} can't reach the registry, whatever the operator can: the"
        " NetworkPolicies, DNS and proxies of its own namespace apply to it; "
    )


def _memory_field(container: str) -> str:
    """Where the limit of one of the operator's containers is written."""
    field = "spec.resources" if container == names.RUNTIME_CONTAINER else "spec.pod.fetchResources"
    return f"{field}.limits.memory"


def _code(ended: Manifest) -> str:
    code = int(ended.get("exitCode") or 0)
    try:
        return (
            f"exit code {code} ({signal.Signals(code - 128).name})"
            if code > 128
            else f"exit code {code}"
        )
    except ValueError:
        return f"exit code {code}"


@dataclass(frozen=True)
class Restart:
    """A container of the operator's that was started again, and why."""

    pod: str
    container: str
    count: int
    """How often it was, the last time included."""
    finished: datetime
    fault: Fault

    @property
    def words(self) -> str:
        """Text of the Event: the same for the same restart, another for any other."""
        return (
            f"pod {self.pod}, restart {self.count} of container {self.container}:"
            f" {self.fault.message}"
        )


@dataclass(frozen=True)
class Mishaps:
    """What has happened to pods, whether there are enough ready ones again or not."""

    restarts: list[Restart]
    evictions: list[tuple[Fault, datetime]]
    hindered: dict[str, datetime]
    """By name of a pod that should be ready and is not: since when."""


def mishaps(pods: Iterable[Manifest]) -> Mishaps:
    """The mishaps of these pods."""
    pods = list(pods)
    unready = {_name(pod): unready_since(pod) for pod in pods if hindered(pod)}
    since = {name: at for name, at in unready.items() if at is not None}
    return Mishaps(restarts(pods), evictions(pods), since)


def restarts(pods: Iterable[Manifest]) -> list[Restart]:
    """The last restart of each container after a failure, newest first; of pods that stay."""
    found = [
        Restart(_name(pod), container["name"], int(container["restartCount"]), finished, fault)
        for pod in pods
        if not pod["metadata"].get("deletionTimestamp")
        for container in _containers(pod)
        if container["name"] in LASTING and container.get("restartCount")
        if _failed(ended := container.get("lastState", {}).get("terminated") or {})
        if (finished := _time(ended.get("finishedAt")))
        and (fault := _of_exit(pod, container, ended, ""))
    ]
    return sorted(found, key=lambda restart: restart.finished, reverse=True)


def hindered(pod: Manifest) -> bool:
    """Whether a pod should be ready and is not: neither leaving nor at its end."""
    return not (pod["metadata"].get("deletionTimestamp") or pod_ended(pod) or ready(pod))


def unready_since(pod: Manifest) -> datetime | None:
    """The moment since which a pod has not been ready."""
    changed = _condition(pod.get("status", {}), "Ready").get("lastTransitionTime")
    return _time(changed or pod["metadata"].get("creationTimestamp"))


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _unschedulable(pod: Manifest, message: str) -> Fault:
    scarce = sorted(set(re.findall(r"Insufficient ([\w./-]*\w)", message)))
    what = f"not enough {', '.join(scarce)}: " if scarce else ""
    hint = "; free some or add a node" if scarce else ""
    return Fault(
        Reason.PodUnschedulable,
        f"pod {_name(pod)} finds no node: {what}{message}{hint} ({_describe(pod)})",
    )


def evictions(pods: Iterable[Manifest]) -> list[tuple[Fault, datetime]]:
    """Pods that their nodes have ended, each with the moment, as exactly as its conditions tell
    it."""
    found = []
    for pod in pods:
        changes = [
            _time(c.get("lastTransitionTime"))
            for c in pod.get("status", {}).get("conditions") or []
        ]
        at = max(
            (time for time in changes if time),
            default=_time(pod["metadata"].get("creationTimestamp")),
        )
        if at is not None and (fault := _evicted(pod)) is not None:
            found.append((fault, at))
    return found


def _evicted(pod: Manifest) -> Fault | None:
    """The kubelet has ended the pod for the node's sake:
    memory, disk, a shutdown, no room on arrival."""
    status = pod.get("status") or {}
    reason = status.get("reason") or ""
    message = status.get("message") or ""
    if status.get("phase") == "Succeeded" and not pod["metadata"].get("deletionTimestamp"):
        # Seen with Kubernetes 1.36: a pod that ends well within its eviction's grace has neither of
        # the two. Containers that are always started again never end otherwise, unless somebody
        # deletes the pod, as each roll-out does.
        reason = reason or "Evicted"
        message = message or "the pod's Events say why"
    elif status.get("phase") != "Failed" or not reason:
        return None
    return Fault(
        Reason.PodEvicted,
        f"pod {_name(pod)} was ended by its node {_node(pod)}: {reason}:"
        f" {message or 'no further word'}; another is made; requests close to what the pod uses"
        f" keep it (spec.resources.requests; {_describe(pod)})",
    )


def _lost(pod: Manifest) -> bool:
    """Whether the node's kubelet has fallen silent.

    Then the control plane takes Ready from the pod and touches nothing else;
    a kubelet always changes both.
    """
    status = pod.get("status") or {}
    gated = (pod.get("spec") or {}).get("readinessGates")
    containers = _condition(status, "ContainersReady").get("status")
    unready = _condition(status, "Ready").get("status") in ("False", "Unknown")
    return status.get("reason") == "NodeLost" or (unready and containers == "True" and not gated)


SILENCE = timedelta(seconds=40)
"""After so long without a word from a node, at the earliest, the control plane calls it silent."""


def doubtful(pod: Manifest, now: datetime) -> bool:
    """Whether to ask for a pod's node.
    A pod that is not ready yet shows nothing itself when its node falls silent."""
    since = unready_since(pod)
    return hindered(pod) and _node(pod) != "?" and since is not None and now - since > SILENCE


def silent(node: Manifest) -> bool:
    """Whether the control plane has not heard from the node for long."""
    return _condition(node.get("status") or {}, "Ready").get("status") == "Unknown"


def _on_a_lost_node(pod: Manifest) -> Fault:
    return Fault(
        Reason.NodeLost,
        f"node {_node(pod)} of pod {_name(pod)} does not answer; the pod is replaced when the node"
        f" is given up, 5 minutes by default, or at once by kubectl delete node {_node(pod)}"
        f" (kubectl describe node {_node(pod)})",
    )


def _refused(deployment: Manifest | None) -> Fault | None:
    failure = _condition((deployment or {}).get("status", {}), "ReplicaFailure")
    if failure.get("status") != "True" or deployment is None:
        return None
    name = deployment["metadata"]["name"]
    return Fault(
        Reason.PodsRefused,
        f"pods of {name} are refused: {failure.get('message', '')} ({_kubectl(deployment)} describe"
        f" replicaset -l {names.REVISION_LABEL}={names.revision_of(deployment)})",
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


def _containers(pod: Manifest) -> list[Manifest]:
    """What is said of each container, init containers first."""
    status = pod.get("status", {})
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def waits_for_containers(pod: Manifest) -> bool:
    """Whether a pod has a node but no container yet: then only Events say why."""
    status = pod.get("status", {})
    if (
        pod["metadata"].get("deletionTimestamp")
        or _condition(status, "PodScheduled").get("status") != "True"
    ):
        return False
    reasons = {(c.get("state", {}).get("waiting") or {}).get("reason") for c in _containers(pod)}
    return status.get("phase", "Pending") == "Pending" and reasons <= {
        "ContainerCreating",
        "PodInitializing",
    }


def fetching(pod: Manifest) -> bool:
    """Whether the pod is downloading its model."""
    containers = pod.get("status", {}).get("initContainerStatuses") or []
    # Others may run as long as the pod: sidecars that a mesh puts in.
    return any(
        c["name"] == names.FETCH_CONTAINER and "running" in c.get("state", {}) for c in containers
    )


ready = pod_ready
