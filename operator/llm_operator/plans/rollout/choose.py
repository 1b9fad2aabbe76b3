"""Which revision is to be rolled out, if any: the candidate is kept, begun anew, or replaced by a newer wish."""

from dataclasses import replace

from llm_operator.plans.reasons import Reason
from llm_operator.plans.rollout.decision import Decision
from llm_operator.plans.rollout.move import Candidate


def choose(decision: Decision) -> Decision:
    """The decision with the candidate that is wanted now, or without one."""
    wanted = decision.situation.wanted
    candidate = decision.candidate
    if wanted is None:
        return decision
    if candidate is not None and candidate.revision == wanted.revision:
        return _resume(decision, candidate)
    if candidate is not None:
        decision = _give_way(decision, candidate)
    # Without pods a candidate can't prove itself: it waits until there are some.
    asleep = decision.situation.replicas == 0
    if decision.stable is not None and (asleep or decision.stable.revision == wanted.revision):
        return replace(decision, candidate=None)
    fresh = Candidate(wanted.revision, wanted.version, wanted.image)
    return _begin(decision, fresh, f"revision {wanted.revision} with model version {wanted.version}")


def _begin(decision: Decision, fresh: Candidate, message: str) -> Decision:
    fresh = replace(fresh, started_at=decision.situation.moment)
    return replace(decision, candidate=fresh).tell("Normal", "RolloutStarted", message)


def _resume(decision: Decision, candidate: Candidate) -> Decision:
    """A failed candidate whose Deployment was deleted by hand is tried again."""
    if candidate.outcome is None or decision.situation.children(candidate.revision).deployment is not None:
        return decision
    fresh = Candidate(candidate.revision, candidate.version, candidate.image or "")
    return _begin(decision, fresh, f"revision {candidate.revision} again, its failed Deployment was deleted")


def _give_way(decision: Decision, candidate: Candidate) -> Decision:
    """The wanted revision is another one now. Where nothing else serves, ready pods are kept until it can."""
    ready = decision.situation.children(candidate.revision).ready
    if decision.stable is None and ready and candidate.reason != Reason.GateFailed:
        return replace(decision, stable=candidate.served(candidate.started_at), candidate=None)
    if candidate.outcome is None:
        decision = decision.ended(candidate.status(), "Replaced", "the specification or the registry moved on")
    return replace(decision, candidate=None)
