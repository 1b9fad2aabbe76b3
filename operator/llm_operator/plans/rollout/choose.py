"""Which revision is to be rolled out, if any."""

from dataclasses import replace
from datetime import datetime

from llm_operator.crds import CandidateStatus, HistoryEntry, RevisionStatus
from llm_operator.plans.reasons import Reason
from llm_operator.plans.rollout.situation import Decision, Situation, Wanted, stamp
from llm_operator.state import Occurrence


def choose(situation: Situation, decision: Decision) -> Decision:
    """The candidate: kept, begun anew, replaced by a newer wish, or none."""
    wanted, candidate = situation.wanted, decision.candidate
    if wanted is None:
        return decision
    if candidate is not None and candidate.revision == wanted.revision:
        return _resume(situation, decision, candidate)
    if candidate is not None:
        decision = _give_way(situation, decision, candidate)
    if decision.stable is not None and decision.stable.revision == wanted.revision:
        return replace(decision, candidate=None)
    if situation.replicas == 0 and decision.stable is not None:
        # Without pods a candidate can't prove itself: it waits until there are some.
        return replace(decision, candidate=None)
    return _begin(situation, decision, wanted, f"revision {wanted.revision} with model version {wanted.version}")


def _begin(situation: Situation, decision: Decision, wanted: Wanted, message: str) -> Decision:
    fresh = CandidateStatus(
        revision=wanted.revision, version=wanted.version, image=wanted.image, started_at=stamp(situation.now)
    )
    told = Occurrence("Normal", "RolloutStarted", message)
    return replace(decision, candidate=fresh, occurrences=(*decision.occurrences, told))


def _resume(situation: Situation, decision: Decision, candidate: CandidateStatus) -> Decision:
    """A failed candidate whose Deployment was deleted by hand is tried again."""
    if candidate.outcome is None or situation.children(candidate.revision).deployment is not None:
        return decision
    again = Wanted(candidate.revision, candidate.version, candidate.image or "")
    return _begin(situation, decision, again, f"revision {candidate.revision} again, its failed Deployment was deleted")


def _give_way(situation: Situation, decision: Decision, candidate: CandidateStatus) -> Decision:
    """The wanted revision is another one now. Where nothing else serves, ready pods are kept until it can."""
    if decision.stable is None and situation.ready(candidate.revision) and candidate.reason != Reason.GateFailed:
        kept = RevisionStatus(**candidate.model_dump(include=set(RevisionStatus.model_fields)))
        return replace(decision, stable=kept, candidate=None)
    if candidate.outcome is not None:
        return replace(decision, candidate=None)
    entry = ended(candidate, "Replaced", situation.now, "the specification or the registry moved on")
    return replace(decision, candidate=None, history=(entry, *decision.history))


def ended(revision: RevisionStatus, outcome: str, now: datetime, message: str) -> HistoryEntry:
    """The line that history keeps of a revision."""
    return HistoryEntry.model_validate(
        {
            "revision": revision.revision,
            "version": revision.version,
            "startedAt": revision.started_at,
            "endedAt": stamp(now),
            "outcome": outcome,
            "message": message[:1024],
        }
    )
