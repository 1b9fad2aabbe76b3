"""Findings as conditions, of LLMDeployments and ApiKeys; and those that need no plan."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from llm_operator.crds import Condition
from llm_operator.plans.reasons import Reason
from llm_operator.plans.rollout import stamp
from llm_operator.state import Fault

Finding = tuple[str, str, str]
"""status, reason, message"""


def as_conditions(
    findings: Mapping[str, Finding], previous: Iterable[Condition], generation: int, now: datetime
) -> tuple[Condition, ...]:
    """Findings as conditions; lastTransitionTime moves only when the status does."""
    before = {condition.type: condition for condition in previous}
    return tuple(
        Condition(
            type=kind,
            status=status,
            observed_generation=generation,
            last_transition_time=(
                before[kind].last_transition_time
                if kind in before and before[kind].status == status
                else stamp(now)
            ),
            reason=reason,
            message=message,
        )
        for kind, (status, reason, message) in findings.items()
    )


def with_fault(
    planned: Iterable[Condition], previous: Iterable[Condition], fault: Fault, now: datetime
) -> tuple[Condition, ...]:
    """The planned conditions, corrected by what went wrong while applying."""
    planned = tuple(planned)
    findings: dict[str, Finding] = {c.type: (c.status, c.reason, c.message) for c in planned}
    finding = (fault.reason, fault.message)
    findings |= {"Applied": ("False", *finding), "Ready": ("False", *finding)}
    if fault.terminal:
        findings |= {
            "Stalled": ("True", *finding),
            "Reconciling": ("False", Reason.Settled, "nothing is under way"),
        }
    else:
        findings["Reconciling"] = ("True", Reason.Retrying, fault.message)
    return as_conditions(findings, previous, planned[0].observed_generation or 0, now)


def first(generation: int, now: datetime) -> tuple[Condition, ...]:
    """The conditions before anything is known, because kstatus reads an absent Ready as done."""
    findings: dict[str, Finding] = {
        "Ready": ("Unknown", Reason.Resolving, "the model reference is being resolved"),
        "Reconciling": ("True", Reason.Resolving, "the model reference is being resolved"),
        "Stalled": ("False", Reason.NoFault, "nothing is stuck"),
    }
    return as_conditions(findings, (), generation, now)


def unknown(
    previous: Iterable[Condition], fault: Fault, generation: int, now: datetime
) -> tuple[Condition, ...]:
    """The conditions when a look could not be finished: Ready is Unknown, and all else stays as it
    was last seen."""
    kept: dict[str, Finding] = {c.type: (c.status, c.reason, c.message) for c in previous}
    findings = {
        "Ready": ("Unknown", fault.reason, fault.message),
        "Reconciling": ("True", Reason.Retrying, fault.message),
        "Stalled": ("False", Reason.NoFault, "nothing is stuck"),
    }
    return as_conditions(
        {**{"Ready": findings["Ready"]}, **kept, **findings}, previous, generation, now
    )


def invalid(
    previous: Iterable[Condition],
    message: str,
    generation: int,
    now: datetime,
    reason: str = Reason.InvalidSpec,
) -> tuple[Condition, ...]:
    """The conditions of a specification that can't be read or may not be followed. Everything that
    runs stays as it is."""
    kept: dict[str, Finding] = {c.type: (c.status, c.reason, c.message) for c in previous}
    finding: Finding = ("False", reason, message)
    findings = kept | {
        "Ready": finding,
        "Reconciling": ("False", Reason.Settled, "nothing is under way"),
        "Stalled": ("True", reason, message),
    }
    return as_conditions(findings, previous, generation, now)
