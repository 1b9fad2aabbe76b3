"""What the steps of a roll-out have decided so far, and what they have decided at their end."""

from dataclasses import dataclass, replace

from llm_operator.crds import CandidateStatus, DirectiveStatus, HistoryEntry, RevisionStatus
from llm_operator.plans.rollout.move import Candidate, Move
from llm_operator.plans.rollout.situation import Situation
from llm_operator.plans.rollout.strategy import Strategy
from llm_operator.state import Occurrence


@dataclass(frozen=True)
class Course:
    """What is decided so far."""

    situation: Situation
    stable: RevisionStatus | None
    candidate: Candidate | None
    history: tuple[HistoryEntry, ...]
    directive: DirectiveStatus | None = None
    rollback: DirectiveStatus | None = None
    remarks: tuple[str, ...] = ()
    occurrences: tuple[Occurrence, ...] = ()
    strategy: Strategy | None = None
    """Of the candidate, once it is selected."""

    def tell(self, kind: str, reason: str, message: str) -> "Course":
        """With an Event."""
        return replace(self, occurrences=(*self.occurrences, Occurrence(kind, reason, message)))

    def remark(self, message: str) -> "Course":
        return replace(self, remarks=(*self.remarks, message))

    @property
    def paused(self) -> bool:
        """Roll-outs are to stay where they are."""
        return self.directive is not None and self.directive.value == "pause"

    def ordered(self, word: str) -> bool:
        """Whether `skip` or `abort` was said of this candidate."""
        directive, candidate = self.directive, self.candidate
        about = directive is not None and candidate is not None and directive.revision == candidate.revision
        return about and directive is not None and directive.value.partition(":")[0] == word

    @property
    def move(self) -> Move | None:
        if self.candidate is None:
            return None
        return Move(self.situation, self.stable, self.candidate, skips=self.ordered("skip"))


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
    stage: str = ""
    """Where the candidate is on its way, in words for `kubectl describe`."""
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
