"""Which revisions serve, which one is on its way, how many pods each has.
Pure: time is an argument.

Steps, in order                                     Nouns
pin      annotation: back to a kept revision        situation  what is wanted, and what there is
choose   the candidate: begun, kept, replaced       move       a candidate on its way: what strategies are asked about
steer    annotation: pause, skip, abort             states     the life of a candidate
survey   has each of its pods a node (room)         decision   what the steps have decided
select   by which strategy                          candidate  the revision on its way, as its status has it
judge    what its gates say: promoted, given up, or a step further
allocate pods and traffic, when to look again

A strategy is one file (rolling, blue_green, canary, recreate; first: nothing serves yet) that
answers what strategy.py asks, and one line in select.STRATEGIES.
"""

from llm_operator.plans.rollout.allocate import allocate
from llm_operator.plans.rollout.candidate import Candidate, tries_on
from llm_operator.plans.rollout.choose import choose
from llm_operator.plans.rollout.decision import Decision
from llm_operator.plans.rollout.judge import judge
from llm_operator.plans.rollout.pin import pin
from llm_operator.plans.rollout.room import survey
from llm_operator.plans.rollout.select import named as strategy_named
from llm_operator.plans.rollout.select import select
from llm_operator.plans.rollout.situation import Situation, Wanted, parse, stamp
from llm_operator.plans.rollout.states import State
from llm_operator.plans.rollout.steer import steer


def advance(situation: Situation) -> Decision:
    """One step: choose the candidate, judge it, then allocate pods and traffic."""
    status = situation.status
    candidate = Candidate.read(status.candidate) if status.candidate else None
    decision = Decision(situation, status.stable, candidate, status.history)
    for step in (pin, choose, steer, survey, select, judge, allocate):
        decision = step(decision)
    return decision


def replaced(situation: Situation) -> bool:
    """Whether another revision is wanted than the candidate.

    It may go on answering for a while; what it is asked for its gates' sake is for nothing.
    """
    candidate = Candidate.read(situation.status.candidate) if situation.status.candidate else None
    known = situation.status
    move = pin(Decision(situation, known.stable, candidate, known.history)).move
    return move is not None and move.state is State.REPLACED


__all__ = [
    "Decision",
    "Situation",
    "Wanted",
    "advance",
    "parse",
    "replaced",
    "stamp",
    "strategy_named",
    "tries_on",
]
