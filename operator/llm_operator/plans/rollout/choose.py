"""Which revision is to be rolled out, if any: the candidate is kept, begun anew, or replaced by a newer wish."""

from dataclasses import replace
from datetime import datetime

from llm_operator.crds import HistoryEntry, RevisionStatus
from llm_operator.plans.reasons import Reason
from llm_operator.plans.rollout.decision import Decision
from llm_operator.plans.rollout.move import Candidate
from llm_operator.plans.rollout.situation import stamp


def choose(decision: Decision) -> Decision:
    """The decision with the candidate that is wanted now, or without one."""
    wanted, candidate = decision.situation.wanted, decision.candidate
    if wanted is None:
        return decision
    if candidate is not None and candidate.revision == wanted.revision:
        return _resume(decision, candidate)
    if candidate is not None:
        decision = _give_way(decision, candidate)
    if decision.stable is not None and (
        decision.stable.revision == wanted.revision or decision.situation.replicas == 0
    ):
        # Without pods a candidate can't prove itself: it waits until there are some.
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
        return replace(decision, stable=served(candidate, candidate.started_at), candidate=None)
    if candidate.outcome is not None:
        return replace(decision, candidate=None)
    now, message = decision.situation.now, "the specification or the registry moved on"
    entry = ended(candidate.status(), "Replaced", now, message)
    return replace(decision, candidate=None, history=(entry, *decision.history))


def served(candidate: Candidate, since: datetime | None) -> RevisionStatus:
    """The candidate as the revision that serves."""
    started_at = stamp(since) if since else None
    return RevisionStatus(
        revision=candidate.revision, version=candidate.version, image=candidate.image, started_at=started_at
    )


def ended(revision: RevisionStatus, outcome: str, now: datetime, message: str) -> HistoryEntry:
    """The line that history keeps of a revision."""
    return HistoryEntry.model_validate(
        {
            "revision": revision.revision,
            "version": revision.version,
            "startedAt": revision.started_at,
            "endedAt": stamp(now),
            "outcome": outcome,
            "message": message,
        }
    )
