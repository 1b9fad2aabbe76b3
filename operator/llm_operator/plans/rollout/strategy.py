"""What a strategy is asked, and what all strategies share."""

from abc import ABC, abstractmethod
from datetime import timedelta
from typing import Literal

from llm_operator.crds import GateVerdict
from llm_operator.plans.evidence import gates
from llm_operator.plans.rollout import room
from llm_operator.plans.rollout.candidate import Candidate
from llm_operator.plans.rollout.move import Allocation, Move
from llm_operator.plans.rollout.states import State

Next = Candidate | Literal[State.STABLE]
"""The candidate as it is now, or STABLE once it has arrived."""


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
    routes = False
    """An HTTPRoute can divide the traffic between the two revisions."""
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
        later = self.saves_room or move.situation.spec.strategy == "Auto"
        return room.advice(move, makes_room=self.stops_old_pods(move), will_make_room=later)

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
        if not self.judged(move) or move.skips or move.situation.spec.on_inconclusive == "Promote":
            return ()
        # A load probe has decided before there was traffic, or was let pass.
        return tuple(
            each for each in gates.undecided(move.candidate.gates) if each.name != gates.LOAD_PROBE
        )

    def lost_its_evidence(self, move: Move) -> bool:
        """Whether the candidate has lost the pods or the traffic by which it is judged. Then no gate
        has decided, and the time for undecided gates goes on."""
        let_go = (
            move.candidate.paused or move.skips or move.situation.spec.on_inconclusive == "Promote"
        )
        lost = move.state is State.STARTING or (
            move.state is State.TRAFFIC and not self.judged(move)
        )
        return self.waits_for_proof and lost and not let_go

    def cleared(self, move: Move) -> bool:
        """Whether no gate objects, is awaited or holds the candidate up."""
        return gates.none_objects(move.candidate.gates) and not self.undecided(move)

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
