"""Recreate: the old pods go, then the new ones come. Nobody serves in between."""

from llm_operator.plans.rollout.move import Allocation, Move
from llm_operator.plans.rollout.states import State
from llm_operator.plans.rollout.strategy import Strategy


class Recreate(Strategy):
    """Whoever is to serve waits until no pod of the other is left."""

    waits_for_proof = False
    interrupts = True

    def allocate(self, move: Move) -> Allocation:
        gone = _gone(move, move.old)
        answers = gone and (move.state is State.TRAFFIC or (move.smoke_passed and move.evaluated))
        pods = {move.old: 0, move.new: move.situation.replicas if gone else 0}
        return Allocation(pods, (move.new,) if answers else (move.old,), move.candidate)

    def retreat(self, move: Move) -> Allocation:
        pods = {move.old: move.situation.replicas if _gone(move, move.new) else 0, move.new: 0}
        return Allocation(pods, (move.old,), move.candidate)

    def judged(self, move: Move) -> bool:
        return False  # It has all of the traffic or none, and nothing holds it between.

    def stops_old_pods(self, move: Move) -> bool:
        return True

    def advice(self, move: Move) -> str:
        return ""


def _gone(move: Move, revision: str) -> bool:
    return move.situation.pods(revision) == 0 and move.situation.children(revision).wanted == 0
