"""Which revision is to be rolled out, if any: the candidate is kept, begun anew, or replaced by a newer wish."""

from dataclasses import replace
from datetime import datetime

from llm_operator.crds import HistoryEntry, RevisionStatus
from llm_operator.plans.reasons import Reason
from llm_operator.plans.rollout.course import Course
from llm_operator.plans.rollout.move import Candidate
from llm_operator.plans.rollout.situation import stamp


def choose(course: Course) -> Course:
    """The course with the candidate that is wanted now, or without one."""
    wanted, candidate = course.situation.wanted, course.candidate
    if wanted is None:
        return course
    if candidate is not None and candidate.revision == wanted.revision:
        return _resume(course, candidate)
    if candidate is not None:
        course = _give_way(course, candidate)
    if course.stable is not None and (course.stable.revision == wanted.revision or course.situation.replicas == 0):
        # Without pods a candidate can't prove itself: it waits until there are some.
        return replace(course, candidate=None)
    fresh = Candidate(wanted.revision, wanted.version, wanted.image)
    return _begin(course, fresh, f"revision {wanted.revision} with model version {wanted.version}")


def _begin(course: Course, fresh: Candidate, message: str) -> Course:
    fresh = replace(fresh, started_at=course.situation.moment)
    return replace(course, candidate=fresh).tell("Normal", "RolloutStarted", message)


def _resume(course: Course, candidate: Candidate) -> Course:
    """A failed candidate whose Deployment was deleted by hand is tried again."""
    if candidate.outcome is None or course.situation.children(candidate.revision).deployment is not None:
        return course
    fresh = Candidate(candidate.revision, candidate.version, candidate.image or "")
    return _begin(course, fresh, f"revision {candidate.revision} again, its failed Deployment was deleted")


def _give_way(course: Course, candidate: Candidate) -> Course:
    """The wanted revision is another one now. Where nothing else serves, ready pods are kept until it can."""
    ready = course.situation.children(candidate.revision).ready
    if course.stable is None and ready and candidate.reason != Reason.GateFailed:
        return replace(course, stable=served(candidate, candidate.started_at), candidate=None)
    if candidate.outcome is not None:
        return replace(course, candidate=None)
    now, message = course.situation.now, "the specification or the registry moved on"
    entry = ended(candidate.status(), "Replaced", now, message)
    return replace(course, candidate=None, history=(entry, *course.history))


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
