"""The adapters' versions and where they answer:
status, condition AdaptersReady, Events, and when to look again."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from llm_operator.crds import AdapterCandidate, AdapterStatus, Condition, LLMDeploymentStatus
from llm_operator.crds.rollout import RolloutSpec
from llm_operator.plans.evidence import gates
from llm_operator.plans.reasons import Reason
from llm_operator.plans.rollout import parse, stamp
from llm_operator.plans.status.findings import Finding
from llm_operator.state import AdapterVersions, Fault, Observed, Occurrence

FIRST_LOOK_SECONDS = 2.0
LONGEST_LOOK_SECONDS = 60.0
NAMED_PODS = 3
"""In a message, at most."""
ON_THE_WAY = frozenset({Reason.AdapterLoading, Reason.AdapterJudged, Reason.NoReadyPods})
TOLD_APART = frozenset({Reason.AdapterRefused})
"""Each version that is refused has an Event, and the condition none."""


@dataclass(frozen=True)
class _Served:
    """Where one adapter's version answers, by pod name. Only ready pods count."""

    adapter: AdapterStatus
    answer: tuple[str, ...]
    behind: tuple[str, ...]
    """Pods that answer the operator, but not for this version."""
    silent: tuple[str, ...]
    failed: dict[str, str]
    """Reason by pod, of the pods behind that give one."""

    @property
    def pods(self) -> int:
        return len(self.answer) + len(self.behind) + len(self.silent)


@dataclass(frozen=True)
class AdapterReport:
    """What the status says of adapters."""

    versions: tuple[AdapterStatus, ...] = ()
    """Each adapter's version, since when it is wanted, and in how many ready pods it answers."""
    candidates: tuple[AdapterCandidate, ...] = ()
    """Versions that are behind their gates, since when, and in how many ready pods they are
    loaded."""
    finding: Finding | None = None
    """AdaptersReady; None without adapters."""
    late: bool = False
    """Some ready pods do not answer, or not for the version that they should."""


def report(observed: Observed, now: datetime) -> AdapterReport:
    """What there is to tell of the adapters."""
    served = _all_served(observed)
    return AdapterReport(
        versions=_answering(observed, served, now),
        candidates=_candidates(observed, now),
        finding=_finding(observed, served) if observed.adapters else None,
        late=any(each.behind or each.silent for each in served),
    )


def _answering(
    observed: Observed, served: Iterable[_Served], now: datetime
) -> tuple[AdapterStatus, ...]:
    known = {each.name: each for each in observed.status.adapters}
    return tuple(
        each.adapter.model_copy(
            update={
                "ready_replicas": len(each.answer),
                "resolved_at": _since(each.adapter, known.get(each.adapter.name)) or stamp(now),
            }
        )
        for each in served
    )


def _candidates(observed: Observed, now: datetime) -> tuple[AdapterCandidate, ...]:
    known = {each.name: each for each in observed.status.adapter_candidates}
    return tuple(
        each.candidate.model_copy(
            update={
                "ready_replicas": each.spread.pods if each.spread else 0,
                "resolved_at": _since(each.candidate, known.get(each.candidate.name)) or stamp(now),
            }
        )
        for each in observed.adapter_versions
        if each.candidate is not None
    )


def _since(adapter: AdapterStatus, before: AdapterStatus | None) -> str | None:
    same = before is not None and adapter.identity == before.identity
    return before.resolved_at if same and before else None


def _all_served(observed: Observed) -> list[_Served]:
    pods = [
        pod["metadata"]["name"] for each in observed.revisions.values() for pod in each.ready_pods
    ]
    return [_served(observed, adapter, pods) for adapter in observed.serving_adapters]


def _served(observed: Observed, adapter: AdapterStatus, pods: Sequence[str]) -> _Served:
    name = adapter.name
    known = observed.figures
    silent = list[str]()
    answer = list[str]()
    behind = list[str]()
    for pod in pods:
        if pod not in known:
            silent.append(pod)
        else:
            (answer if known[pod].adapters.get(name) == adapter.version else behind).append(pod)
    failed = {
        pod: known[pod].adapter_failures[name]
        for pod in behind
        if name in known[pod].adapter_failures
    }
    return _Served(adapter, tuple(answer), tuple(behind), tuple(silent), failed)


def _finding(observed: Observed, served: Sequence[_Served]) -> Finding:
    """AdaptersReady. Never a part of Ready: the model and the others answer all the same."""
    if found := _unresolved(observed):
        return ("False" if found.terminal else "Unknown"), found.reason, found.message
    versions = ", ".join(f"{each.adapter.name} is {_what(each.adapter)}" for each in served)
    if failed := [each for each in served if each.failed]:
        return (
            "False",
            _reason(failed[0].failed),
            "; ".join(_failure(observed, each) for each in failed),
        )
    late = "; ".join(_lateness(each) for each in served if each.behind or each.silent)
    if waiting := _behind_any_gates(observed):
        status, reason, message = waiting
        return status, reason, f"{message}; {late}" if late else message
    if late:
        return "Unknown", Reason.AdapterLoading, late
    if any(not each.pods for each in served):
        return "Unknown", Reason.NoReadyPods, f"{versions}; no pod is ready yet"
    return "True", Reason.AdaptersLoaded, versions


def _unresolved(observed: Observed) -> Fault | None:
    """The first adapter that stands for no version now, and how many more do not."""
    faulty = [adapter for adapter in observed.adapters if adapter.resolution.fault is not None]
    if not faulty:
        return None
    first = faulty[0]
    known = {each.name: each for each in observed.status.adapters}
    found = first.resolution.fault
    assert found is not None
    kept = known.get(first.spec.name)
    keeps = f"; its version {kept.version} stays in the pods" if kept else ""
    others = (
        f"; nor are {', '.join(each.spec.name for each in faulty[1:])}" if len(faulty) > 1 else ""
    )
    return Fault(
        found.reason,
        f"adapter {first.spec.name} is not resolved: {found.message}{keeps}{others}",
        found.terminal,
    )


def _behind_any_gates(observed: Observed) -> Finding | None:
    """What is found about versions that do not answer because of gates, the bad ones first."""
    found = [each for each in observed.adapter_versions if each.candidate is not None]
    message = "; ".join(_behind_gates(observed, each) for each in found)
    for each in found:
        if each.judged and each.spread and each.spread.failed:
            return "False", _reason(each.spread.failed), message
    if any(each.judged is None for each in found):
        return "False", Reason.AdapterRefused, message
    if any(each.late for each in found):
        return "False", Reason.ProgressDeadlineExceeded, message
    return ("Unknown", Reason.AdapterJudged, message) if found else None


def _refused_at(candidate: AdapterCandidate, rollout: RolloutSpec) -> datetime | None:
    """When a version that is held for undecided gates is refused."""
    since = parse(candidate.undecided_since)
    if since is None or candidate.outcome is not None or rollout.on_inconclusive != "Hold":
        return None
    return since + timedelta(seconds=rollout.max_hold_seconds)


def _shadowed_until(observed: Observed, candidate: AdapterCandidate) -> datetime | None:
    """Until when a version is sent copies at least."""
    since = parse(candidate.shadowed_since)
    spec = next(
        (each.shadow for each in observed.spec.adapters or () if each.name == candidate.name), None
    )
    if since is None or spec is None or candidate.outcome is not None:
        return None
    return since + timedelta(seconds=spec.hold_seconds)


def _copies(observed: Observed, candidate: AdapterCandidate) -> str:
    """Words that tell of the copies which a version is sent.
    A moment, not what is left: that would be another text at every look."""
    until = _shadowed_until(observed, candidate)
    if until is None:
        return ""
    return f", is sent copies of requests, at least until {until:%H:%M:%S} UTC"


def _behind_gates(observed: Observed, versions: AdapterVersions) -> str:
    rollout = observed.spec.rollout
    candidate = versions.candidate
    assert candidate is not None
    if versions.judged is None:
        what = f"was refused by {candidate.message or 'its gates'}"
    else:
        open_ = [gates.describe(each) for each in candidate.gates if each.state != "Passed"]
        behind = versions.spread.behind if versions.spread else ""
        open_ += [behind] if behind and not any(behind in each for each in open_) else []
        what = f"is behind its gates: {', '.join(open_)}" if open_ else "is behind its gates"
        what += _copies(observed, candidate)
        if (until := _refused_at(candidate, rollout)) is not None:
            what += f", held until {stamp(until)} at the latest"
        if versions.late:
            seconds = rollout.progress_deadline_seconds
            what += f", got no further in {seconds} s and is tried on"
    serves = versions.serves
    keeps = (
        f"version {serves.version} of {serves.model} goes on answering"
        if serves
        else "no version answers"
    )
    return f"adapter {candidate.name}: {_what(candidate)} {what}; {keeps}"


def _what(adapter: AdapterStatus) -> str:
    return f"{adapter.model} version {adapter.version}"


def _reason(failed: Mapping[str, str]) -> str:
    failure = next(iter(failed.values()))
    return failure if failure in Reason.__members__ else Reason.AdapterFailed


def _failure(observed: Observed, served: _Served) -> str:
    adapter = served.adapter
    reasons = sorted(set(served.failed.values()))
    kept = {observed.figures[pod].adapters.get(adapter.name) for pod in served.failed} - {None}
    keeps = f"; version {', '.join(sorted(map(str, kept)))} goes on answering there" if kept else ""
    pods = tuple(served.failed)
    return (
        f"adapter {adapter.name}: {_what(adapter)} can't be loaded in {_names(pods)}:"
        f" {', '.join(reasons)}; the pod's log says why (kubectl logs {pods[0]}){keeps}"
    )


def _lateness(served: _Served) -> str:
    counted = f"{len(served.answer)} of {served.pods} ready pods"
    parts = [f"adapter {served.adapter.name}: {_what(served.adapter)} answers in {counted}"]
    if served.behind:
        parts.append(f"not yet in {_names(served.behind)}")
    if served.silent:
        parts.append(f"the operator can't read the metrics of {_names(served.silent)}")
    return ", ".join(parts)


def _names(pods: Sequence[str]) -> str:
    more = f" and {len(pods) - NAMED_PODS} more" if len(pods) > NAMED_PODS else ""
    return f"{', '.join(pods[:NAMED_PODS])}{more}"


def look_again(
    observed: Observed, found: AdapterReport, after: LLMDeploymentStatus, now: datetime
) -> float | None:
    """Seconds until pods that are behind are asked again: soon at first, then ever more rarely.
    None: none is.

    The same for versions behind their gates:
    prompts are answered, and ConfigMaps mended, without an event.
    """
    judged = observed.judged_adapters
    if not found.late and not judged:
        return None
    condition = next((each for each in after.conditions if each.type == "AdaptersReady"), None)
    moments = [each.resolved_at for each in (*after.adapters, *after.adapter_candidates)]
    moments += [condition.last_transition_time] if condition else []
    newest = max((moment for each in moments if (moment := parse(each))), default=now)
    soon = min(max(FIRST_LOOK_SECONDS, (now - newest).total_seconds() / 10), LONGEST_LOOK_SECONDS)
    if any(each.shadowed_since for each in judged):
        soon = FIRST_LOOK_SECONDS
    rollout = observed.spec.rollout
    ends = [_refused_at(each, rollout) for each in after.adapter_candidates]
    ends += [each.deadline for each in observed.adapter_versions]
    left = [(each - now).total_seconds() + 0.5 for each in ends if each is not None and each >= now]
    return max(1.0, min([soon, *left]))


def events(observed: Observed, after: LLMDeploymentStatus) -> list[Occurrence]:
    """Events for changes: an adapter version, whether all answer, or what keeps one from it."""
    before = observed.status
    known = {each.name: each for each in before.adapters}
    found = list[Occurrence]()
    for each in after.adapters:
        old = known.get(each.name)
        if old is None or (old.model, old.version) != (each.model, each.version):
            was = f", was {_what(old)}" if old else ""
            judged = f"; {each.judged}" if each.judged else ""
            found.append(
                Occurrence(
                    "Normal",
                    "AdapterResolved",
                    f"adapter {each.name} is {_what(each)}{was}{judged}",
                )
            )
    return (
        found
        + _candidate_events(observed, before, after)
        + _condition_events(_condition(before), _condition(after))
    )


def _candidate_events(
    observed: Observed, before: LLMDeploymentStatus, after: LLMDeploymentStatus
) -> list[Occurrence]:
    known = {each.name: each for each in before.adapter_candidates}
    serving = {each.name: each for each in after.adapters}
    found = list[Occurrence]()
    for each in after.adapter_candidates:
        old = known.get(each.name)
        same = old is not None and old.identity == each.identity
        if each.outcome is None and not same:
            message = f"adapter {each.name}: {_what(each)} has to pass its gates before it answers"
            found.append(Occurrence("Normal", "AdapterCandidate", message))
        if each.outcome is not None and not (same and old and old.outcome is not None):
            message = _behind_gates(observed, AdapterVersions(serving.get(each.name), each))
            found.append(Occurrence("Warning", Reason.AdapterRefused, message))
    return found


def _condition(status: LLMDeploymentStatus) -> Condition | None:
    return next((each for each in status.conditions if each.type == "AdaptersReady"), None)


def _condition_events(old: Condition | None, new: Condition | None) -> list[Occurrence]:
    if new is None or (old is not None and (old.status, old.reason) == (new.status, new.reason)):
        return []
    if new.status == "True":
        return [Occurrence("Normal", new.reason, new.message)]
    return (
        []
        if new.reason in ON_THE_WAY | TOLD_APART
        else [Occurrence("Warning", new.reason, new.message)]
    )
