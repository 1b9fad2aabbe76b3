"""A fifth strategy, as one would add it: all new pods beside the old, without clients, for a while;
then the switch."""

from llm_operator.plans.rollout.move import Allocation, Move
from llm_operator.plans.rollout.strategy import Next, Strategy


class Soak(Strategy):
    """The new pods run for a while before anybody reaches them."""

    switches = True
    takes_copies = True

    def hold_seconds(self, move: Move) -> float:
        return 40.0

    def next(self, move: Move) -> Next:
        move = move.with_hold(self.size(move), self.hold_seconds(move), judged=True)
        return super().next(move) if self.step_over(move) else move.candidate

    def allocate(self, move: Move) -> Allocation:
        pods = dict.fromkeys((move.old, move.new), move.situation.replicas)
        return Allocation(pods, (move.old,), move.candidate)

    def describe(self, move: Move) -> str:
        return "soaking"
