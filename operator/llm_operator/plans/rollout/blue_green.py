"""BlueGreen: all new pods beside the old, then the Service turns in one write;
the old ones stay to turn back to."""

from llm_operator.plans.rollout.candidate import Candidate
from llm_operator.plans.rollout.move import Allocation, Move
from llm_operator.plans.rollout.states import State
from llm_operator.plans.rollout.strategy import Next, Strategy

ALL = 100
"""Percent."""


class BlueGreen(Strategy):
    """The candidate's weight is ALL while clients reach it and the old pods are held."""

    switches = True
    takes_copies = True

    def hold_seconds(self, move: Move) -> float:
        return float(move.situation.spec.switch_hold_seconds) if _switched(move.candidate) else 0.0

    def judged(self, move: Move) -> bool:
        # Once it has switched back for want of pods, it must get the traffic again to be judged.
        return _switched(move.candidate)

    def next(self, move: Move) -> Next:
        switched = _switched(move.candidate)
        move = move.with_hold(move.situation.replicas, self.hold_seconds(move), judged=switched)
        done = self.step_over(move) if switched else not move.situation.spec.switch_hold_seconds
        return State.STABLE if done and self.arrived(move) else move.candidate

    def allocate(self, move: Move) -> Allocation:
        switched = _switched(move.candidate)
        if switched:
            turned = move.situation.answering(move.new) > 0
        else:
            turned = bool(move.situation.spec.switch_hold_seconds) and self.arrived(move)
        candidate = move.candidate
        if turned != switched:
            began = move.situation.moment if turned else None
            change = {"weight": ALL if turned else 0, "step_started_at": began}
            # To switch back, and once more, is no progress.
            again = move.state is State.TRAFFIC
            candidate = move.changed(**change).candidate if again else move.further(**change)
        return self._beside(move, candidate, turned=turned)

    def retreat(self, move: Move) -> Allocation:
        if _switched(move.candidate) and move.needed:
            return self._beside(move, move.candidate, turned=True)
        return super().retreat(move)

    def _beside(self, move: Move, candidate: Candidate, *, turned: bool) -> Allocation:
        pods = dict.fromkeys((move.old, move.new), move.situation.replicas)
        return Allocation(pods, (move.new,) if turned else (move.old,), candidate)

    def describe(self, move: Move) -> str:
        if not _switched(move.candidate):
            return ""
        return (
            "it has the traffic; the old pods stay until it has had it for"
            f" {self.hold_seconds(move):.0f} s"
        )


def _switched(candidate: Candidate) -> bool:
    return candidate.weight == ALL
