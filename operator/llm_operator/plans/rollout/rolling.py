"""Rolling: pod by pod, both revisions behind the Service by their numbers of pods."""

from dataclasses import replace

from llm_operator.crds.rollout import JUDGED_SECONDS
from llm_operator.plans.rollout.candidate import Candidate
from llm_operator.plans.rollout.move import Allocation, Move
from llm_operator.plans.rollout.states import State
from llm_operator.plans.rollout.strategy import Next, Strategy


class Rolling(Strategy):
    """Pods are replaced with one more at a time (surge 1) or, where there is no room for one more,
    with one less (surge 0)."""

    mixes = True
    saves_room = True

    def prepare(self, move: Move, before: Candidate) -> Candidate:
        situation = move.situation
        candidate = replace(
            move.candidate, replicas=max(1, before.replicas or situation.answering(move.new))
        )
        if situation.replicas == 1:
            # The only pod that serves is never stopped for a new one.
            return replace(candidate, surge=1)
        if before.surge == 0:
            return replace(candidate, surge=0, strategy_reason=before.strategy_reason)
        if situation.spec.strategy == "Auto" and before.strategy != "Rolling":
            # Chosen for a lack of room; but a pod that has a place needs no old pod to make it.
            return replace(candidate, surge=1 if situation.placed(move.new) else 0)
        lack = move.lasting_lack
        if lack is None or not lack.freed:
            return replace(candidate, surge=1)
        why = f"one pod less at a time, no room for one more: {lack.message}"
        return replace(candidate, surge=0, strategy_reason=why, progressed_at=situation.moment)

    def size(self, move: Move) -> int:
        return min(move.situation.replicas, move.candidate.replicas or 1)

    def hold_seconds(self, move: Move) -> float:
        return (
            0.0
            if all(each.state == "Passed" for each in move.candidate.gates)
            else float(JUDGED_SECONDS)
        )

    def next(self, move: Move) -> Next:
        given = self.size(move)
        replicas = move.situation.replicas
        judged = move.state is State.TRAFFIC
        move = move.changed(replicas=given).with_hold(given, self.hold_seconds(move), judged=judged)
        if not self.step_over(move):
            return move.candidate
        if given >= replicas:
            return super().next(move)
        # The next pod is made only when the last old one has left. Otherwise it would find no
        # room, which would be taken for a lack of it.
        present = move.situation.pods(move.old) + move.situation.pods(move.new)
        if present > replicas - 1 + (move.candidate.surge or 0):
            return move.candidate
        return move.further(replicas=given + 1)

    def allocate(self, move: Move) -> Allocation:
        given = self.size(move)
        enters = move.enters
        replicas = move.situation.replicas
        taken = min(move.situation.answering(move.new), given) if enters else 0
        missing = 1 if move.candidate.surge == 0 else 0
        pods = {move.old: max(0, replicas - missing - taken), move.new: given}
        return Allocation(pods, (move.old, move.new) if enters else (move.old,), move.candidate)

    def retreat(self, move: Move) -> Allocation:
        # One pod's room for the first stable pod; the rest answers until that is ready.
        left = min(move.candidate.replicas or 0, move.situation.replicas - 1) if move.needed else 0
        both = left and not move.third
        pods = {move.old: move.situation.replicas, move.new: left}
        return Allocation(pods, (move.old, move.new) if both else (move.old,), move.candidate)

    def describe(self, move: Move) -> str:
        return (
            f"Rolling with {'one pod less' if self.stops_old_pods(move) else 'one pod more'} at a"
            " time"
        )

    def stops_old_pods(self, move: Move) -> bool:
        return move.candidate.surge == 0
