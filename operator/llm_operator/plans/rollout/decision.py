"""What is decided about a roll-out: each step adds to it."""

from dataclasses import dataclass, field, replace

from llm_operator.crds import DirectiveStatus, HistoryEntry, RevisionStatus, StableStatus
from llm_operator.plans.rollout.candidate import Candidate
from llm_operator.plans.rollout.move import Lack, Move
from llm_operator.plans.rollout.situation import Situation, stamp
from llm_operator.plans.rollout.strategy import Strategy
from llm_operator.state import Occurrence


@dataclass(frozen=True)
class Decision:
    """What should be the case now."""

    situation: Situation
    stable: StableStatus | None
    candidate: Candidate | None
    history: tuple[HistoryEntry, ...]
    strategy: Strategy | None = None
    """The strategy of the candidate."""
    interrupts: bool = False
    """The strategy that is asked for stops the old pods first (Strategy.interrupts)."""
    lack: Lack | None = None
    """The lack of room for the candidate's pods."""
    replicas: dict[str, int] = field(default_factory=dict)
    """Pods per kept revision; a revision that is not here is deleted."""
    serving: tuple[str, ...] = ()
    """The one or two revisions that the Service selects. Empty while a first revision has not
    passed its gates."""
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
    """Advice where the candidate's pods have no room: what it waits for, and the ways out."""

    def tell(self, kind: str, reason: str, message: str) -> "Decision":
        """The decision with one more Event."""
        return replace(self, occurrences=(*self.occurrences, Occurrence(kind, reason, message)))

    def remark(self, message: str) -> "Decision":
        return replace(self, remarks=(*self.remarks, message))

    def ended(self, revision: RevisionStatus, outcome: str, message: str) -> "Decision":
        """The decision with a line of history about how a revision ended."""
        beginning = {
            "revision": revision.revision,
            "version": revision.version,
            "started_at": revision.started_at,
        }
        judged = revision.judged if isinstance(revision, StableStatus) else None
        end = {
            "ended_at": stamp(self.situation.now),
            "outcome": outcome,
            "message": message,
            "judged": judged,
        }
        return replace(self, history=(HistoryEntry.model_validate(beginning | end), *self.history))

    @property
    def rolling_out(self) -> bool:
        return self.candidate is not None and self.candidate.outcome is None

    @property
    def weight(self) -> int:
        """Percent of the traffic that an HTTPRoute sends to the candidate."""
        return self.candidate.weight or 0 if self.candidate is not None and self.rolling_out else 0

    @property
    def move(self) -> Move | None:
        """The candidate on its way, for questions to strategies; None without a candidate."""
        if self.candidate is None:
            return None
        return Move(
            self.situation,
            self.stable,
            self.candidate,
            skips=self.ordered("skip"),
            takes_copies=self.strategy is not None and self.strategy.takes_copies,
            lack=self.lack,
        )

    @property
    def copies(self) -> bool:
        """Whether stable's pods are to send the candidate copies of requests."""
        move = self.move
        return (
            move is not None
            and self.rolling_out
            and move.shadows
            and move.candidate.shadowed_since is not None
        )

    @property
    def paused(self) -> bool:
        """Roll-outs are to stay where they are."""
        return self.directive is not None and self.directive.value == "pause"

    def ordered(self, word: str) -> bool:
        """Whether `skip` or `abort` was said of this candidate."""
        order, about = (
            (self.directive.value, self.directive.revision) if self.directive else ("", None)
        )
        return (
            self.candidate is not None
            and about == self.candidate.revision
            and order.partition(":")[0] == word
        )
