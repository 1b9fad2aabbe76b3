"""The input of a roll-out's decision: what is wanted, and what exists of each revision."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from llm_operator.crds import LLMDeploymentStatus
from llm_operator.crds.rollout import RolloutSpec
from llm_operator.plans import names
from llm_operator.state import Evidence, Fault, Manifest, RevisionChildren, pod_ended

_NOTHING = RevisionChildren("", None, None)


@dataclass(frozen=True)
class Wanted:
    """The revision that the specification, as resolved, asks for."""

    revision: str
    version: str
    image: str


@dataclass(frozen=True)
class Situation:
    """What a decision is made from."""

    status: LLMDeploymentStatus
    wanted: Wanted | None
    """None while the model reference resolves to nothing. Then everything stays as it is."""
    revisions: dict[str, RevisionChildren]
    faults: dict[str, Fault]
    spec: RolloutSpec
    replicas: int
    """Pods wanted; 0 while suspended."""
    settle_seconds: float
    now: datetime
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Annotations of the custom resource."""
    kept: Mapping[str, Wanted] = field(default_factory=dict)
    """Revisions that can be gone back to."""
    evidence: Evidence = field(default_factory=Evidence)
    """What the gates are judged by."""
    routed: bool = False
    """An HTTPRoute shares out the traffic."""
    coming: Mapping[str, str] = field(default_factory=dict)
    """What a cluster autoscaler says about the node that it adds, by the name of the pod that has
    no node."""

    @property
    def moment(self) -> datetime:
        """Now, as a status can say it: in whole seconds."""
        return self.now.replace(microsecond=0)

    def since(self, moment: datetime | None) -> float:
        """Seconds from a moment until now; infinity without a moment."""
        return (self.now - moment).total_seconds() if moment else float("inf")

    def children(self, revision: str) -> RevisionChildren:
        return self.revisions.get(revision, _NOTHING)

    def pods(self, revision: str) -> int:
        """Pods that exist, those that are leaving included."""
        return sum(not pod_ended(pod) for pod in self.children(revision).pods)

    def staying_pods(self, revision: str) -> int:
        """Pods that exist and are not leaving."""
        return sum(exists(pod) for pod in self.children(revision).pods)

    def placed(self, revision: str) -> int:
        """Pods that have a node and stay."""
        pods = self.children(revision).pods
        return sum(exists(pod) and bool((pod.get("spec") or {}).get("nodeName")) for pod in pods)

    def staying(self, revision: str) -> int:
        """Pods that a Service may find: those that exist and are not leaving,
        or that are on order."""
        return max(self.children(revision).wanted, self.staying_pods(revision))

    def answering(self, revision: str) -> int:
        """Pods that were ready when last counted, and stay."""
        return self.children(revision).answering

    def restarts(self, revision: str) -> int:
        """How often the serving containers of its pods have ended."""
        return sum(_endings(pod) for pod in self.children(revision).pods)


def exists(pod: Manifest) -> bool:
    """Whether the pod is one that runs or will: it neither leaves nor is it at its end."""
    return not pod.get("metadata", {}).get("deletionTimestamp") and not pod_ended(pod)


def _endings(pod: Manifest) -> int:
    if not exists(pod):
        return 0  # Its node has ended it, or it was told to stop: no crash.
    found = 0
    for container in pod.get("status", {}).get("containerStatuses") or []:
        if container.get("name", names.RUNTIME_CONTAINER) != names.RUNTIME_CONTAINER:
            # Put into the pod by somebody else, a mesh or an agent:
            # its end says nothing of the version.
            continue
        state = container.get("state") or {}
        waiting = (state.get("waiting") or {}).get("reason") == "CrashLoopBackOff"
        # The count moves when the container starts again: until then its end is told by the state.
        found += int(container.get("restartCount") or 0) + (
            1 if "terminated" in state or waiting else 0
        )
    return found


def stamp(moment: datetime) -> str:
    """A moment as Kubernetes writes it (RFC 3339, UTC, whole seconds)."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse(moment: str | None) -> datetime | None:
    """The moment that `stamp` wrote."""
    return datetime.fromisoformat(moment) if moment else None
