"""The annotation rollback-to: a kept revision instead of what the specification and the registry say.

It is read and never written. The status remembers what was wanted when it was first seen: a newer wish ends it.
"""

from dataclasses import replace

from llm_operator.crds import GROUP, DirectiveStatus
from llm_operator.plans.reasons import Reason
from llm_operator.plans.rollout.course import Course
from llm_operator.plans.rollout.situation import Situation

ROLLBACK = f"{GROUP}/rollback-to"
LONGEST = 63
"""No revision has a longer name."""


def pin(course: Course) -> Course:
    """The course with the revision that a person wants, if any, as the wanted one."""
    asked = course.situation.annotations.get(ROLLBACK, "")[:LONGEST]
    before, wanted = course.situation.status.rollback, course.situation.wanted
    if not asked:
        return course
    if before is None or before.value != asked:
        return _first_seen(course, asked)
    if before.revision is None:
        message = f"the annotation {ROLLBACK} {asked} has no effect: {_choices(course.situation)}"
        return replace(course, rollback=before).remark(message)
    instead_of = before.instead_of or (wanted.revision if wanted else None)
    if wanted is not None and wanted.revision != instead_of:
        return replace(course, rollback=DirectiveStatus(value=asked, instead_of=instead_of))
    return _pinned(course, DirectiveStatus(value=asked, revision=before.revision, instead_of=instead_of))


def _first_seen(course: Course, asked: str) -> Course:
    wanted, target = course.situation.wanted, course.situation.kept.get(asked)
    if target is None:
        message = f"the annotation {ROLLBACK} names revision {asked}, which is not kept: {_choices(course.situation)}"
        course = replace(course, rollback=DirectiveStatus(value=asked))
        return course.tell("Warning", Reason.AnnotationIgnored, message).remark(message)
    message = f"to revision {asked} with model version {target.version}, as annotated"
    course = course.tell("Normal", "RollingBack", message)
    instead_of = wanted.revision if wanted else None
    return _pinned(course, DirectiveStatus(value=asked, revision=asked, instead_of=instead_of))


def _pinned(course: Course, rollback: DirectiveStatus) -> Course:
    course = replace(course, rollback=rollback)
    target = course.situation.kept.get(rollback.revision or "")
    if target is None:
        return course.remark(f"revision {rollback.revision} is not kept any more: {_choices(course.situation)}")
    until = f"until the annotation {ROLLBACK} is removed or a newer version is promoted"
    course = course.remark(f"held at revision {target.revision} with model version {target.version} {until}")
    return replace(course, situation=replace(course.situation, wanted=target))


def _choices(situation: Situation) -> str:
    kept = ", ".join(f"{each.revision} (version {each.version})" for each in situation.kept.values())
    return f"write one of {kept}, or remove it" if kept else "no revision is kept; remove it"
