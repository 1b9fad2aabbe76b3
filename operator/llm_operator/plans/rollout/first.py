"""The first revision: nothing serves that it could replace, so it has all pods at once."""

from llm_operator.plans.rollout.move import Allocation, Move
from llm_operator.plans.rollout.strategy import Strategy


class First(Strategy):
    """The strategy of a first revision. It is not chosen and not written down. Where the revision
    fails, it goes on trying."""

    def allocate(self, move: Move) -> Allocation:
        # One good pod is better than none: the others join as they get ready, and are asked then.
        serving = (move.new,) if move.smoke_begun and move.evaluated else ()
        return Allocation({move.new: move.situation.replicas}, serving, move.candidate)

    def retreat(self, move: Move) -> Allocation:
        return self.allocate(move)
