"""What people write on the LLMDeployment to steer a roll-out. Annotations are read, never written.

An annotation stays after it has been obeyed. So that it is not misread by the next roll-out, the status remembers what
each value was about when it was first seen.
"""

from dataclasses import replace

from llm_operator.crds import GROUP, DirectiveStatus
from llm_operator.plans.reasons import Reason
from llm_operator.plans.rollout.situation import Decision, Situation
from llm_operator.state import Occurrence

STEER = f"{GROUP}/rollout"
ROLLBACK = f"{GROUP}/rollback-to"
LEVELS = ("pause", "resume")
"""In force as long as they are written."""
ONCE = ("skip", "abort")
"""For the roll-out that is under way when they are first seen; or word:revision for that one alone."""


def read(situation: Situation, decision: Decision) -> Decision:
    """The steering annotation, understood once."""
    value = situation.annotations.get(STEER, "")
    if not value:
        return replace(decision, directive=None)
    before = situation.status.directive
    if before is not None and before.value == value[:256]:
        decision = replace(decision, directive=before)
        return decision if _known(value) else replace(decision, remarks=(*decision.remarks, _allowed(value)))
    word, _, named = value.partition(":")
    about = named or (
        decision.candidate.revision if word in ONCE and decision.rolling_out and decision.candidate else ""
    )
    seen = DirectiveStatus(value=value[:256], revision=about[:63] or None)
    decision = replace(decision, directive=seen)
    if _known(value):
        return decision
    told = Occurrence("Warning", Reason.AnnotationIgnored, _allowed(value))
    return replace(decision, occurrences=(*decision.occurrences, told), remarks=(*decision.remarks, told.message))


def _known(value: str) -> bool:
    word, colon, named = value.partition(":")
    return value in LEVELS or (word in ONCE and bool(named) == bool(colon))


def _allowed(value: str) -> str:
    return (
        f"the annotation {STEER} is {value[:100]!r} and has no effect: write pause, resume, skip, abort, "
        "skip:<revision> or abort:<revision>"
    )


def paused(decision: Decision) -> bool:
    """Whether roll-outs are to stay where they are."""
    return decision.directive is not None and decision.directive.value == "pause"


def ordered(decision: Decision, word: str) -> bool:
    """Whether `skip` or `abort` was said of this candidate."""
    directive, candidate = decision.directive, decision.candidate
    if directive is None or candidate is None or directive.revision != candidate.revision:
        return False
    return directive.value.partition(":")[0] == word


def roll_back(situation: Situation, decision: Decision) -> tuple[Situation, Decision]:
    """The kept revision that a person wants instead of what the specification and the registry say, if any."""
    asked, before, wanted = situation.annotations.get(ROLLBACK, "")[:63], situation.status.rollback, situation.wanted
    if not asked:
        return situation, replace(decision, rollback=None)
    if before is None or before.value != asked:
        return _pin(situation, decision, asked)
    if before.revision is not None and before.instead_of is None and wanted is not None:
        before = before.model_copy(update={"instead_of": wanted.revision})
    decision = replace(decision, rollback=before)
    if before.revision is None:
        return situation, _remark(decision, f"the annotation {ROLLBACK} {asked} has no effect: {_choices(situation)}")
    if wanted is not None and before.instead_of is not None and wanted.revision != before.instead_of:
        spent = before.model_copy(update={"revision": None})
        return situation, replace(decision, rollback=spent)
    return _as_pinned(situation, decision, before)


def _pin(situation: Situation, decision: Decision, asked: str) -> tuple[Situation, Decision]:
    wanted = situation.wanted
    if asked not in situation.kept:
        message = f"the annotation {ROLLBACK} names revision {asked}, which is not kept: {_choices(situation)}"
        told = Occurrence("Warning", Reason.AnnotationIgnored, message)
        decision = _remark(replace(decision, occurrences=(*decision.occurrences, told)), message)
        return situation, replace(decision, rollback=DirectiveStatus(value=asked))
    pin = DirectiveStatus(value=asked, revision=asked, instead_of=wanted.revision if wanted else None)
    target = situation.kept[asked]
    told = Occurrence("Normal", "RollingBack", f"to revision {asked} with model version {target.version}, as annotated")
    decision = replace(decision, rollback=pin, occurrences=(*decision.occurrences, told))
    return _as_pinned(situation, decision, pin)


def _as_pinned(situation: Situation, decision: Decision, pin: DirectiveStatus) -> tuple[Situation, Decision]:
    target = situation.kept.get(pin.revision or "")
    if target is None:
        return situation, _remark(decision, f"revision {pin.revision} is not kept any more: {_choices(situation)}")
    until = f"until the annotation {ROLLBACK} is removed or a newer version is promoted"
    decision = _remark(decision, f"held at revision {target.revision} with model version {target.version} {until}")
    return replace(situation, wanted=target), decision


def _remark(decision: Decision, message: str) -> Decision:
    return replace(decision, remarks=(*decision.remarks, message))


def _choices(situation: Situation) -> str:
    kept = ", ".join(f"{each.revision} (version {each.version})" for each in situation.kept.values())
    return f"write one of {kept}, or remove it" if kept else "no revision is kept; remove it"
