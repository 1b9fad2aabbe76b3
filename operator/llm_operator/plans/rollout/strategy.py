"""What a strategy is asked, and what all strategies share."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal

from llm_operator.crds import GateVerdict
from llm_operator.plans.rollout.candidate import Candidate
from llm_operator.plans.rollout.move import PATIENCE_SECONDS, Allocation, Lack, Move
from llm_operator.plans.rollout.states import State

Next = Candidate | Literal[State.STABLE]
"""The candidate as it is now, or STABLE once it has arrived."""


@dataclass(frozen=True)
class Progress:
    """How far a candidate is: a strategy's answers, each by the method of its name."""

    size: int
    undecided: tuple[GateVerdict, ...]
    hold_left: float
    undecided_left: float | None
    deadline_left: float | None
    advice: str
    where: str
    """Where it is on its way (`describe`)."""
    stopped_in_vain: Lack | None
    """The room that is missing although old pods were stopped for it."""


@dataclass(frozen=True)
class Look:
    """What becomes of a candidate at one look."""

    seen: Candidate
    """As it was found, with the copies noted that it is sent."""
    candidate: Candidate
    """As it is now, a step further where that is earned."""
    progress: Progress | None = None
    """None once it has arrived."""
    begins_undecided: bool = False
    """From now on only undecided gates hold it up."""


class Strategy(ABC):
    """A way from one revision to the next. It remembers nothing: the move says all."""

    mixes = False
    """Both revisions are behind the Service at the same time."""
    switches = False
    """All traffic turns to the candidate at once. So its gates compare it with what stable did
    before the switch, not with what stable does meanwhile."""
    waits_for_proof = True
    """The candidate can wait before it gets traffic, while stable serves."""
    takes_copies = False
    """The candidate has pods and no traffic for a while, in which stable's pods can send it copies
    of requests."""
    interrupts = False
    """Nobody serves for a while, because the old pods go before the new ones come."""
    saves_room = False
    """The strategy stops old pods where the new ones find no room."""

    def prepare(self, move: Move, before: Candidate) -> Candidate:
        """The candidate with what this strategy notes of it.
        `before`: perhaps of another strategy."""
        return move.candidate

    def next(self, move: Move) -> Next:
        """The candidate a step further where that is earned."""
        return State.STABLE if self.arrived(move) else move.candidate

    @abstractmethod
    def allocate(self, move: Move) -> Allocation:
        """Pods of both revisions, and who is behind the Service with what weight."""

    def retreat(self, move: Move) -> Allocation:
        """Pods and traffic once the candidate has failed. By default it loses all its pods at
        once."""
        return Allocation(
            {move.old: move.situation.replicas, move.new: 0}, (move.old,), move.candidate
        )

    def look(self, move: Move) -> Look:
        """What becomes of a candidate on trial."""
        move = move.shadowed(self.size(move))
        seen = move.candidate
        further = self.next(move)
        if further is State.STABLE:
            return Look(seen, seen)
        move = self._noting_undecided(replace(move, candidate=further))
        begins = further.undecided_since is None and move.candidate.undecided_since is not None
        return Look(seen, move.candidate, self.progress(move), begins)

    def progress(self, move: Move) -> Progress:
        """How far the candidate is."""
        stops = self.stops_old_pods(move) and not move.candidate.paused
        return Progress(
            size=self.size(move),
            undecided=self.undecided(move),
            hold_left=self.hold_left(move),
            undecided_left=self.undecided_left(move),
            deadline_left=self.deadline_left(move),
            advice=self.advice(move),
            where=self.describe(move),
            stopped_in_vain=move.lack_in_vain if stops else None,
        )

    def _noting_undecided(self, move: Move) -> Move:
        """The move with the moment noted since which undecided gates hold the candidate up although
        its hold is over."""
        undecided = not move.candidate.paused and bool(self.undecided(move))
        since = move.candidate.undecided_since
        if (
            undecided
            and since is None
            and (self.hold_over(move) or (move.state is State.READY and move.shadow_done))
        ):
            return move.changed(undecided_since=move.situation.moment)
        if not undecided and since is not None and not self.lost_its_evidence(move):
            # The deadline, which stood still, begins anew.
            return move.changed(undecided_since=None, progressed_at=move.situation.moment)
        return move

    def size(self, move: Move) -> int:
        """Pods that the candidate is to have now."""
        return move.situation.replicas

    def hold_seconds(self, move: Move) -> float:
        """How long the present step lasts at least, once its pods are ready."""
        return 0.0

    def describe(self, move: Move) -> str:
        """Where the candidate is on its way, for `kubectl describe`."""
        return ""

    def judged(self, move: Move) -> bool:
        """Whether the candidate has traffic that its gates can judge, and time for that."""
        return move.state is State.TRAFFIC

    def stops_old_pods(self, move: Move) -> bool:
        """Whether old pods are stopped to make room for the new."""
        return False

    def advice(self, move: Move) -> str:
        """Advice about a candidate without room: what it waits for, and how a person can help.
        Empty: no help is needed."""
        lack = move.lack
        if lack is None or move.stable is None:
            return ""
        if lack.coming:
            return f"a node is on its way for it: {lack.coming}"
        if not lack.freed:
            return (
                "stopping an old pod would make no room for it: correct what is named, or add a"
                " node where it fits"
            )
        if self.stops_old_pods(move):
            return ""
        if move.situation.replicas == 1:
            return (
                "the one pod that serves is not stopped for it: free room, add a node, or permit an"
                " interruption by name, rollout.strategy: Recreate"
            )
        if self.saves_room or move.situation.spec.strategy == "Auto":
            patience = f"{PATIENCE_SECONDS:.0f} s"
            return f"if there is still none after {patience}, old pods are stopped one at a time"
        return (
            "free room, add a node, or write rollout.strategy: Auto, which stops one old pod at a"
            " time (rollout.strategy: Recreate interrupts)"
        )

    def hold_left(self, move: Move) -> float:
        """Seconds that the step lasts at least; 0 when it holds nothing up."""
        if not move.shadow_done:
            return move.shadow_left
        if move.candidate.step_started_at is None or move.skips:
            return 0.0
        return max(
            0.0, self.hold_seconds(move) - move.situation.since(move.candidate.step_started_at)
        )

    def undecided(self, move: Move) -> tuple[GateVerdict, ...]:
        """The inconclusive gates that hold the candidate up."""
        if not move.shadow_done:
            return move.shadow_undecided
        if move.state is State.READY and self.waits_for_proof:
            return move.undecided_before_traffic
        return move.undecided_with_traffic if self.judged(move) else ()

    def lost_its_evidence(self, move: Move) -> bool:
        """Whether the candidate has lost the pods or the traffic by which it is judged. Until it has
        them again nothing is decided, and the time for undecided gates goes on."""
        lost = move.state is State.STARTING or (
            move.state is State.TRAFFIC and not self.judged(move)
        )
        return self.waits_for_proof and lost and not (move.candidate.paused or move.let_go)

    def cleared(self, move: Move) -> bool:
        """Whether no gate objects, is awaited or holds the candidate up."""
        return move.unopposed and not self.undecided(move)

    def arrived(self, move: Move) -> bool:
        """Whether all pods are ready and the gates let the candidate go on."""
        return (
            move.complete and not move.candidate.paused and self.cleared(move) and move.shadow_done
        )

    def hold_over(self, move: Move) -> bool:
        """Whether the step's hold has passed, or that of the copies."""
        began = (
            move.candidate.step_started_at if move.shadow_done else move.candidate.shadowed_since
        )
        return began is not None and self.hold_left(move) <= 0

    def step_over(self, move: Move) -> bool:
        """Whether the step's hold has passed and the gates let the candidate go on."""
        return self.hold_over(move) and self.cleared(move)

    def undecided_left(self, move: Move) -> float | None:
        """Seconds that inconclusive gates may still take;
        None where the candidate is not held for them."""
        if move.candidate.undecided_since is None:
            return None
        spec = move.situation.spec
        most = spec.max_hold_seconds if spec.on_inconclusive == "Hold" else 0
        return max(0.0, most - move.situation.since(move.candidate.undecided_since))

    def deadline_left(self, move: Move) -> float | None:
        """Seconds until the candidate must have got further;
        None while it is told to wait, by a person or a hold."""
        if move.candidate.paused or move.candidate.undecided_since or self.hold_left(move) > 0:
            return None
        began = move.candidate.progressed_at or move.candidate.started_at or move.situation.now
        if (step_began := move.candidate.step_started_at) is not None:
            began = max(began, step_began + timedelta(seconds=self.hold_seconds(move)))
        if (copied := move.candidate.shadowed_since) is not None and move.situation.spec.shadow:
            began = max(began, copied + timedelta(seconds=move.situation.spec.shadow.hold_seconds))
        return move.situation.spec.progress_deadline_seconds - move.situation.since(began)
