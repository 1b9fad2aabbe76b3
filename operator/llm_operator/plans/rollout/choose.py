"""Which revision is rolled out, if any: the candidate is kept, begun again, or replaced by a
newer one."""

from dataclasses import replace

from llm_operator.crds import HistoryEntry
from llm_operator.plans.reasons import Reason
from llm_operator.plans.rollout.candidate import Candidate
from llm_operator.plans.rollout.decision import Decision
from llm_operator.plans.rollout.situation import parse

MOVED_ON = "the specification or the registry moved on"


def choose(decision: Decision) -> Decision:
    """The decision with the candidate that is wanted now, or without one."""
    wanted = decision.situation.wanted
    candidate = decision.candidate
    if wanted is None:
        return decision
    if candidate is not None and candidate.revision == wanted.revision:
        return _resume(decision, candidate)
    if candidate is not None:
        if _stays(decision, candidate):
            return _replaced(decision, candidate)
        decision = _give_way(decision, candidate)
    # Without pods a candidate can't prove itself: it waits until there are some.
    asleep = decision.situation.replicas == 0
    if decision.stable is not None and (asleep or decision.stable.revision == wanted.revision):
        return replace(decision, candidate=None)
    fresh = Candidate(wanted.revision, wanted.version, wanted.image)
    return _begin(
        decision, fresh, f"revision {wanted.revision} with model version {wanted.version}"
    )


def _begin(decision: Decision, fresh: Candidate, message: str) -> Decision:
    fresh = replace(fresh, started_at=decision.situation.moment)
    return replace(decision, candidate=fresh).tell("Normal", "RolloutStarted", message)


def _resume(decision: Decision, candidate: Candidate) -> Decision:
    """A failed candidate whose Deployment was deleted by hand is tried again;
    a replaced one goes on."""
    if _replacement(decision, candidate):
        decision = replace(decision, history=decision.history[1:])
    if (
        candidate.outcome is None
        or decision.situation.children(candidate.revision).deployment is not None
    ):
        return decision
    fresh = Candidate(candidate.revision, candidate.version, candidate.image or "")
    return _begin(
        decision, fresh, f"revision {candidate.revision} again, its failed Deployment was deleted"
    )


def _stays(decision: Decision, candidate: Candidate) -> bool:
    """Whether the candidate keeps answering although another revision is wanted, until the stable
    one can answer again.

    Rolling stops the old pods before its last gate has judged. Pods of the stable revision that
    have not come back by the deadline are waited for no longer.
    """
    move = decision.move
    if (
        move is None
        or decision.stable is None
        or candidate.traffic_since is None
        or not move.needed
    ):
        return False
    replaced = _replacement(decision, candidate)
    waited = decision.situation.since(parse(replaced.ended_at)) if replaced else 0.0
    return waited < decision.situation.spec.progress_deadline_seconds


def _replacement(decision: Decision, candidate: Candidate) -> HistoryEntry | None:
    """The entry of history by which the candidate was replaced;
    None while it is not, or if it was begun since."""
    last = next(iter(decision.history), None)
    sought = (candidate.revision, candidate.status().started_at, "Replaced")
    return last if last and (last.revision, last.started_at, last.outcome) == sought else None


def _replaced(decision: Decision, candidate: Candidate) -> Decision:
    if candidate.outcome is not None or _replacement(decision, candidate):
        return decision
    return decision.ended(candidate.status(), "Replaced", MOVED_ON)


def _give_way(decision: Decision, candidate: Candidate) -> Decision:
    """The wanted revision is another one now.
    Where nothing else serves, ready pods are kept until it can."""
    ready = decision.situation.children(candidate.revision).ready
    if decision.stable is None and ready and candidate.reason != Reason.GateFailed:
        return replace(decision, stable=candidate.served(candidate.started_at), candidate=None)
    move = decision.move
    if (
        candidate.outcome is None
        and candidate.traffic_since is not None
        and move is not None
        and move.needed
    ):
        # The stable revision did not come back in time, so the wanted one is compared with the
        # one that answers.
        return replace(decision, stable=candidate.served(candidate.started_at), candidate=None)
    return replace(_replaced(decision, candidate), candidate=None)
