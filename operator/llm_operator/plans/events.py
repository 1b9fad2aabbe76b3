"""Events read off a changed status, and Events of restarted and evicted pods. A roll-out's own
Events (RolledOut, RolloutFailed, GateUndecided) are in rollout/judge.py."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from llm_operator.crds import Condition, LLMDeploymentStatus
from llm_operator.plans.reasons import Reason
from llm_operator.plans.status.faults import Mishaps
from llm_operator.state import Observed, Occurrence

NEWS = timedelta(minutes=30)
"""Events live for an hour, by default, and an Event that is there is not written again."""


def changes(
    observed: Observed, status: LLMDeploymentStatus, of_adapters: Iterable[Occurrence]
) -> tuple[Occurrence, ...]:
    """Events for what changed in the status."""
    before = {condition.type: condition for condition in observed.status.conditions}
    after = {condition.type: condition for condition in status.conditions}
    occurrences: list[Occurrence] = []
    old = observed.status.model
    new = status.model
    if new and (old is None or (old.name, old.version) != (new.name, new.version)):
        moved = f", was version {old.version}" if old and old.name == new.name else ""
        occurrences.append(
            Occurrence("Normal", "Resolved", f"{new.name} is version {new.version}{moved}")
        )
    elif new and old and new.anew and new.anew != old.anew:
        message = (
            f"version {new.version} of {new.name} was registered anew, from {new.source}: it is"
            " rolled out as another"
        )
        occurrences.append(Occurrence("Warning", "RegisteredAnew", message))
    for kind, good in (
        ("ModelResolved", "True"),
        ("RegistryReachable", "True"),
        ("Stalled", "False"),
        ("Applied", "True"),
    ):
        if kind in after:
            occurrences += _change(before.get(kind), after[kind], good, kind)
    if after["UsagePersistent"].reason != Reason.NoDatabase:  # That is a choice.
        occurrences += _change(
            before.get("UsagePersistent"), after["UsagePersistent"], "True", "UsagePersistent"
        )
    occurrences += of_adapters
    if "UpdateAvailable" in after:
        occurrences += _waiting(before.get("UpdateAvailable"), after["UpdateAvailable"])
    occurrences += _hindered(before.get("Progressing"), after["Progressing"])
    return tuple(dict.fromkeys(occurrences))


def together(
    rolled: tuple[Occurrence, ...], changed: tuple[Occurrence, ...]
) -> tuple[Occurrence, ...]:
    """The Events of a roll-out and of a changed status, in one list.

    A version that was resolved and is rolled out at once is one Event, not two.
    """
    resolved = next((each for each in changed if each.reason == "Resolved"), None)
    started = next((each for each in rolled if each.reason == "RolloutStarted"), None)
    if resolved is None or started is None:
        return (*rolled, *changed)
    told = replace(started, message=f"{started.message}: {resolved.message}")
    return (
        *(told if each is started else each for each in rolled),
        *(each for each in changed if each is not resolved),
    )


def mishaps(happened: Mishaps, now: datetime) -> tuple[Occurrence, ...]:
    """One for each restart of a container and each evicted pod."""
    found = [(each.fault.reason, each.words, each.finished) for each in happened.restarts]
    found += [(fault.reason, fault.message, at) for fault, at in happened.evictions]
    return tuple(
        Occurrence("Warning", reason, words, once=True)
        for reason, words, at in found
        if now - at < NEWS
    )


def _waiting(before: Condition | None, after: Condition) -> list[Occurrence]:
    """A version that waits for somebody's word."""
    new = after.status == "True" and (before is None or before.message != after.message)
    return [Occurrence("Normal", "UpdateAvailable", after.message)] if new else []


def _hindered(before: Condition | None, after: Condition) -> list[Occurrence]:
    """A candidate whose pods have a fault that may still pass:
    worth an Event before the deadline decides."""
    under_way = after.status == "True" and after.reason not in (
        Reason.RollingOut,
        Reason.Downloading,
        Reason.RolledOut,
    )
    if under_way and (before is None or before.reason != after.reason):
        return [Occurrence("Warning", after.reason, after.message)]
    return []


def _change(before: Condition | None, after: Condition, good: str, kind: str) -> list[Occurrence]:
    known = (before.status, before.reason) if before else (good, "")
    if after.status != good and known != (after.status, after.reason):
        return [Occurrence("Warning", after.reason, after.message)]
    if (
        kind == "RegistryReachable"
        and after.status == good
        and before is not None
        and before.status != good
    ):
        return [Occurrence("Normal", "RegistryRecovered", after.message)]
    return []
