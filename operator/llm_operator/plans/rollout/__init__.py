"""Which revisions serve, which one is on its way, how many pods each has. Pure: time is an argument.

choose      the candidate: begun, kept, replaced
directives  what people annotate: pause, skip, abort, rollback-to
strategies  how far it is on its way, and when it has arrived
judge       promoted, given up, or a step further
share       pods per revision, and who is behind the Service
room        whether its pods have a place, and whether stopping an old pod would make one
"""

from dataclasses import replace

from llm_operator.plans.rollout import directives, strategies
from llm_operator.plans.rollout.choose import choose
from llm_operator.plans.rollout.judge import judge
from llm_operator.plans.rollout.share import share
from llm_operator.plans.rollout.situation import Decision, Situation, Wanted, parse, stamp

HISTORY_ENTRIES = 20


def advance(situation: Situation) -> Decision:
    """One step: choose the candidate, judge it, then share out pods and traffic."""
    status = situation.status
    decision = Decision(status.stable, status.candidate, status.history, {})
    situation, decision = directives.roll_back(situation, decision)
    decision = choose(situation, decision)
    decision = directives.read(situation, decision)
    decision = strategies.select(situation, decision)
    decision = judge(situation, decision)
    decision = replace(decision, history=decision.history[:HISTORY_ENTRIES])
    return share(situation, decision)


__all__ = ["Decision", "Situation", "Wanted", "advance", "parse", "stamp"]
