"""The nouns of a roll-out: what a decision is made from, and what it says."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from llm_operator.crds import CandidateStatus, DirectiveStatus, HistoryEntry, LLMDeploymentStatus, RevisionStatus
from llm_operator.crds.rollout import RolloutSpec
from llm_operator.state import Evidence, Fault, Manifest, Occurrence, RevisionChildren, pod_ended

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
    """None while the model reference stands for nothing: hold the course."""
    revisions: dict[str, RevisionChildren]
    faults: dict[str, Fault]
    spec: RolloutSpec
    replicas: int
    """Pods wanted; 0 while suspended."""
    settle_seconds: float
    now: datetime
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Of the custom resource."""
    kept: Mapping[str, Wanted] = field(default_factory=dict)
    """Revisions that can be gone back to."""
    evidence: Evidence = field(default_factory=Evidence)
    """What the gates are judged by."""
    routed: bool = False
    """An HTTPRoute shares out the traffic."""
    coming: Mapping[str, str] = field(default_factory=dict)
    """By name of a pod that finds no node: the word of a cluster autoscaler that adds one."""

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
        """Pods that a Service may find: those that exist and are not leaving, or that are on order."""
        return max(self.children(revision).wanted, self.staying_pods(revision))

    def ready(self, revision: str) -> int:
        return self.children(revision).ready

    def answering(self, revision: str) -> int:
        """Pods that were ready when last counted, and stay."""
        return self.children(revision).answering


@dataclass(frozen=True)
class Decision:
    """What should be the case now."""

    stable: RevisionStatus | None
    candidate: CandidateStatus | None
    history: tuple[HistoryEntry, ...]
    replicas: dict[str, int]
    """Pods per kept revision; a revision that is not here is deleted."""
    serving: tuple[str, ...] = ()
    """The one or two revisions that the Service selects; none yet: a first one that must pass its gates."""
    occurrences: tuple[Occurrence, ...] = ()
    requeue_seconds: float | None = None
    directive: DirectiveStatus | None = None
    """The annotation that steers, as it was understood."""
    rollback: DirectiveStatus | None = None
    """The annotation that pins a revision, as it was understood."""
    remarks: tuple[str, ...] = ()
    """What a person who steers should read in the condition Progressing."""
    advice: str = ""
    """Where the candidate's pods have no room: what it waits for, and the ways out."""

    @property
    def rolling_out(self) -> bool:
        return self.candidate is not None and self.candidate.outcome is None

    @property
    def weight(self) -> int:
        """Percent of the traffic that an HTTPRoute sends to the candidate."""
        candidate = self.candidate
        return candidate.weight or 0 if candidate is not None and candidate.outcome is None else 0


def leaving(pod: Manifest) -> bool:
    """Whether the pod was told to stop."""
    return bool(pod.get("metadata", {}).get("deletionTimestamp"))


def exists(pod: Manifest) -> bool:
    """Whether the pod is one that runs or will: it neither leaves nor is it at its end."""
    return not leaving(pod) and not pod_ended(pod)


def stamp(moment: datetime) -> str:
    """A moment as Kubernetes writes it (RFC 3339, UTC, whole seconds)."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def parse(moment: str | None) -> datetime | None:
    """The moment that `stamp` wrote."""
    return datetime.fromisoformat(moment) if moment else None


def since(now: datetime, moment: str | None) -> float:
    """Seconds from a moment until now; for none, infinitely many."""
    at = parse(moment)
    return (now - at).total_seconds() if at else float("inf")
