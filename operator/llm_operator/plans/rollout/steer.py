"""The annotation rollout, by which a person steers a roll-out: pause, resume, skip, abort.

It is read and never written, and stays after it has been obeyed. So that it is not misread by the
next roll-out, the status remembers what it was about when it was first seen.
"""

from dataclasses import replace

from llm_operator.crds import GROUP, DirectiveStatus
from llm_operator.plans.reasons import Reason
from llm_operator.plans.rollout.decision import Decision

STEER = f"{GROUP}/rollout"
LEVELS = ("pause", "resume")
"""Words that are in force as long as they are written."""
ONCE = ("skip", "abort")
"""Words for one roll-out: the one under way when they are first seen, or that of
`word:revision`."""


def steer(decision: Decision) -> Decision:
    """The decision with the annotation as it was understood when it was first seen."""
    value = decision.situation.annotations.get(STEER, "")
    if not value:
        return decision
    word, colon, named = value.partition(":")
    about = (
        decision.candidate.revision
        if decision.candidate and decision.rolling_out and word in ONCE
        else None
    )
    before = decision.situation.status.directive
    seen = DirectiveStatus(value=value, revision=named or about)
    known = before is not None and before.value == seen.value
    decision = replace(decision, directive=before if known else seen)
    if value in LEVELS or (word in ONCE and bool(named) == bool(colon)):
        return decision
    message = (
        f"the annotation {STEER} is {value[:100]!r} and has no effect: write pause, resume, skip,"
        " abort, skip:<revision> or abort:<revision>"
    )
    return (
        decision if known else decision.tell("Warning", Reason.AnnotationIgnored, message)
    ).remark(message)
