"""The annotation rollback-to: a kept revision instead of what the specification and the registry
say.

It is read and never written.
The status remembers what was wanted when it was first seen: a newer wish ends it.
"""

from dataclasses import replace

from llm_operator.crds import GROUP, DirectiveStatus
from llm_operator.plans.reasons import Reason
from llm_operator.plans.rollout.decision import Decision
from llm_operator.plans.rollout.situation import Situation

ROLLBACK = f"{GROUP}/rollback-to"
LONGEST = 63
"""No revision has a longer name."""


def pin(decision: Decision) -> Decision:
    """The decision with the revision that a person wants, if any, as the wanted one."""
    asked = decision.situation.annotations.get(ROLLBACK, "")[:LONGEST]
    before = decision.situation.status.rollback
    wanted = decision.situation.wanted
    if not asked:
        return decision
    if before is None or before.value != asked:
        return _first_seen(decision, asked)
    if before.revision is None:
        message = f"the annotation {ROLLBACK} {asked} has no effect: {_choices(decision.situation)}"
        return replace(decision, rollback=before).remark(message)
    instead_of = before.instead_of or (wanted.revision if wanted else None)
    if wanted is not None and wanted.revision != instead_of:
        return replace(decision, rollback=DirectiveStatus(value=asked, instead_of=instead_of))
    return _pinned(
        decision, DirectiveStatus(value=asked, revision=before.revision, instead_of=instead_of)
    )


def _first_seen(decision: Decision, asked: str) -> Decision:
    wanted = decision.situation.wanted
    target = decision.situation.kept.get(asked)
    if target is None:
        message = (
            f"the annotation {ROLLBACK} names revision {asked}, which is not kept:"
            f" {_choices(decision.situation)}"
        )
        decision = replace(decision, rollback=DirectiveStatus(value=asked))
        return decision.tell("Warning", Reason.AnnotationIgnored, message).remark(message)
    message = f"to revision {asked} with model version {target.version}, as annotated"
    decision = decision.tell("Normal", "RollingBack", message)
    instead_of = wanted.revision if wanted else None
    return _pinned(decision, DirectiveStatus(value=asked, revision=asked, instead_of=instead_of))


def _pinned(decision: Decision, rollback: DirectiveStatus) -> Decision:
    decision = replace(decision, rollback=rollback)
    target = decision.situation.kept.get(rollback.revision or "")
    if target is None:
        return decision.remark(
            f"revision {rollback.revision} is not kept any more: {_choices(decision.situation)}"
        )
    until = f"until the annotation {ROLLBACK} is removed or a newer version is promoted"
    decision = decision.remark(
        f"held at revision {target.revision} with model version {target.version} {until}"
    )
    return replace(decision, situation=replace(decision.situation, wanted=target))


def _choices(situation: Situation) -> str:
    kept = ", ".join(
        f"{each.revision} (version {each.version})" for each in situation.kept.values()
    )
    return f"write one of {kept}, or remove it" if kept else "no revision is kept; remove it"
