"""What becomes of the versions of adapters that are behind their gates. Pure."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from llm_operator.crds import AdapterCandidate, AdapterStatus, GateVerdict
from llm_operator.crds.rollout import RolloutSpec
from llm_operator.plans import names
from llm_operator.plans.evidence import gates
from llm_operator.plans.objects import adapter_versions
from llm_operator.plans.rollout import parse, stamp
from llm_operator.state import AdapterVersions, Evidence, Observed, ResolvedAdapter, SmokeOutcome


def judge(observed: Observed, now: datetime) -> tuple[AdapterVersions, ...]:
    """The versions of each adapter, as the gates let them."""
    found = adapter_versions.candidates(observed)
    adapters = {each.spec.name: each for each in observed.adapters}
    return tuple(
        _judged(observed, adapters[each.judged.name], each, now) if each.judged else each
        for each in found
    )


def _judged(
    observed: Observed, adapter: ResolvedAdapter, found: AdapterVersions, now: datetime
) -> AdapterVersions:
    rollout = observed.spec.rollout
    candidate = found.judged
    assert candidate is not None
    if adapter.resolution.fault is not None:
        # Nobody can tell what is wanted: that is no time that the version has had.
        return replace(found, candidate=candidate.model_copy(update={"waiting_since": None}))
    verdict = gates.judge(adapter.spec.checks, _evidence(observed, adapter, found))
    objection = gates.objection(verdict)
    clear = gates.no_objection(verdict)
    shadowed, left = _shadowed(found, adapter, verdict, now)
    awaited = bool(found.spread and found.spread.behind) or not clear or left > 0
    times = {
        "waiting_since": _waiting_since(found, verdict, now),
        "shadowed_since": shadowed,
        "undecided_since": _undecided_since(candidate, verdict, now, awaited=awaited),
    }
    told = {name: stamp(moment) if moment else None for name, moment in times.items()}
    candidate = candidate.model_copy(update={"gates": verdict, **told})
    found = replace(found, candidate=candidate, deadline=_deadline(rollout, candidate))
    if refusal := objection or _refusal(rollout, found, now):
        fields = {**candidate.model_dump(), "outcome": "Failed", "message": refusal}
        return AdapterVersions(found.serves, AdapterCandidate.model_validate(fields))
    if awaited or (_undecided(verdict) and _holds(rollout, found)):
        return replace(found, late=found.deadline is not None and now >= found.deadline)
    fields = {
        **candidate.model_dump(include=set(AdapterStatus.model_fields)),
        "judged": gates.summary(verdict),
    }
    return AdapterVersions(AdapterStatus.model_validate(fields))


def _deadline(rollout: RolloutSpec, candidate: AdapterCandidate) -> datetime | None:
    """When a version that waits must have got further. None: it does not wait."""
    since = parse(candidate.waiting_since)
    return since + timedelta(seconds=rollout.progress_deadline_seconds) if since else None


def _evidence(observed: Observed, adapter: ResolvedAdapter, found: AdapterVersions) -> Evidence:
    """What the gates judge the version by."""
    assert found.candidate is not None
    evidence = observed.adapter_evidence.get(names.loaded_as(found.candidate), Evidence())
    smoke = {name: _outcome(found, evidence, name) for name in adapter.spec.smoke_maps}
    return replace(evidence, smoke=smoke)


def _outcome(found: AdapterVersions, evidence: Evidence, config_map: str) -> SmokeOutcome:
    """What became of the prompts, with regard to pods that could not be asked."""
    assert found.spread is not None
    known = evidence.smoke.get(config_map)
    behind = found.spread.behind
    if known is not None and found.spread.loaded and (known.failures or known.waiting):
        return known
    if behind or known is None:
        return SmokeOutcome(waiting=behind or "not asked yet", pods=known.pods if known else 0)
    return known


def _undecided(verdict: Iterable[GateVerdict]) -> list[GateVerdict]:
    return [each for each in verdict if each.state == "Inconclusive"]


def _undecided_since(
    candidate: AdapterCandidate, verdict: Iterable[GateVerdict], now: datetime, *, awaited: bool
) -> datetime | None:
    """Since when inconclusive gates are all that is left; a new pod does not begin it anew."""
    if not _undecided(verdict):
        return None
    since = parse(candidate.undecided_since)
    if since is None:
        return None if awaited else now
    return min(since, now)


def _shadowed(
    found: AdapterVersions,
    adapter: ResolvedAdapter,
    verdict: Iterable[GateVerdict],
    now: datetime,
) -> tuple[datetime | None, float]:
    """Since when it is sent copies, and the seconds for which it is at least.

    It is, while it is loaded in all pods and has answered its prompts there. Without a version that
    answers clients there is nothing to copy.
    """
    spec = adapter.spec.shadow
    if spec is None or not adapter.spec.shadows or found.serves is None or found.candidate is None:
        return None, 0.0
    passed = {each.name for each in verdict if each.state == "Passed"}
    answers = {gates.smoke_name(each) for each in adapter.spec.smoke_maps} <= passed
    if found.spread is None or found.spread.behind or not answers:
        return None, float(spec.hold_seconds)
    since = min(parse(found.candidate.shadowed_since) or now, now)
    return since, spec.hold_seconds - (now - since).total_seconds()


def _refusal(rollout: RolloutSpec, found: AdapterVersions, now: datetime) -> str:
    """By what a version is refused that no gate objects to; empty where it is not."""
    candidate = found.candidate
    assert candidate is not None
    since = parse(candidate.undecided_since)
    most = rollout.max_hold_seconds if rollout.on_inconclusive == "Hold" else 0
    late = since is not None and (now - since).total_seconds() >= most
    if late and _holds(rollout, found):
        told = "; ".join(map(gates.describe, _undecided(candidate.gates)))
        return f"rollout.onInconclusive, neither surely good nor surely bad: {told}"
    # What clients have no other of is tried on.
    if found.deadline is None or now < found.deadline or found.serves is None:
        return ""
    behind = found.spread.behind if found.spread else ""
    waits = [gates.describe(each) for each in candidate.gates if each.state == "Waiting"]
    told = "; ".join([*([behind] if behind else []), *waits])
    seconds = rollout.progress_deadline_seconds
    return f"rollout.progressDeadlineSeconds, as it got no further in {seconds} s: {told}"


def _holds(rollout: RolloutSpec, found: AdapterVersions) -> bool:
    """Whether an inconclusive gate holds the version up:
    none does where clients have no other version."""
    return found.serves is not None and rollout.on_inconclusive != "Promote"


def _waiting_since(
    found: AdapterVersions, verdict: tuple[GateVerdict, ...], now: datetime
) -> datetime | None:
    """Since when a version waits for something that lets it get no further.

    Not while all that is left are holds, nor where no pod is ready that could load it.
    """
    spread = found.spread
    before = found.candidate
    if spread is None or before is None or not spread.ready:
        return None
    if not spread.behind and all(each.state != "Waiting" for each in verdict):
        return None
    since = parse(before.waiting_since)
    further = spread.pods > (before.ready_replicas or 0) or _reached(verdict) > _reached(
        before.gates
    )
    return now if since is None or further else min(since, now)


def _reached(verdict: Iterable[GateVerdict]) -> tuple[int, int]:
    """How far the gates are: those that have a result, and the pods that have passed prompts."""
    verdict = tuple(verdict)
    waiting = [each for each in verdict if each.state == "Waiting"]
    return len(verdict) - len(waiting), sum(each.samples or 0 for each in waiting)
