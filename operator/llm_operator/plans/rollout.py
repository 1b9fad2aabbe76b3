"""Which revision serves, which one is on its way, how many pods each has. Pure: time is an argument."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from llm_operator.crds import CandidateStatus, HistoryEntry, LLMDeploymentStatus, RevisionStatus
from llm_operator.crds.rollout import RolloutSpec
from llm_operator.state import Fault, Occurrence, RevisionChildren, Verdict

HISTORY_ENTRIES = 20
_NOTHING = RevisionChildren("", None, None)


@dataclass(frozen=True)
class Wanted:
    """The revision that the specification, as resolved, asks for."""

    revision: str
    version: str
    image: str


@dataclass(frozen=True)
class Situation:
    """What a decision is made from."""

    status: LLMDeploymentStatus
    wanted: Wanted | None
    """None while the model reference stands for nothing: hold the course."""
    revisions: dict[str, RevisionChildren]
    faults: dict[str, Fault]
    spec: RolloutSpec
    replicas: int
    """Pods wanted; 0 while suspended."""
    settle_seconds: float
    now: datetime
    model: str = ""
    """The registered model that the candidate's version is of."""

    def children(self, revision: str) -> RevisionChildren:
        return self.revisions.get(revision, _NOTHING)

    def pods(self, revision: str) -> int:
        """Pods that exist, those that are leaving included."""
        return len(self.children(revision).pods)


@dataclass(frozen=True)
class Decision:
    """What should be the case now."""

    stable: RevisionStatus | None
    candidate: CandidateStatus | None
    history: tuple[HistoryEntry, ...]
    replicas: dict[str, int]
    """Pods per kept revision; a revision that is not here is deleted."""
    serving: str | None
    """The revision that the Service selects."""
    occurrences: tuple[Occurrence, ...] = ()
    requeue_seconds: float | None = None
    verdict: Verdict | None = None
    """How the roll-out ended, when it ends now."""

    @property
    def rolling_out(self) -> bool:
        return self.candidate is not None and self.candidate.outcome is None


def advance(situation: Situation) -> Decision:
    """One step: choose the candidate, judge it, then share out the pods."""
    decision = Decision(situation.status.stable, situation.status.candidate, situation.status.history, {}, None)
    decision = _choose(situation, decision)
    decision = _judge(situation, decision)
    decision = replace(decision, history=decision.history[:HISTORY_ENTRIES])
    return _share(situation, decision)


def _choose(situation: Situation, decision: Decision) -> Decision:
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
    fresh = CandidateStatus(
        revision=wanted.revision, version=wanted.version, image=wanted.image, started_at=stamp(situation.now)
    )
    told = Occurrence("Normal", "RolloutStarted", f"revision {fresh.revision} with model version {fresh.version}")
    return replace(decision, candidate=fresh, occurrences=(*decision.occurrences, told))


def _resume(situation: Situation, decision: Decision, candidate: CandidateStatus) -> Decision:
    """A failed candidate whose Deployment was deleted by hand is tried again."""
    if candidate.outcome is None or situation.children(candidate.revision).deployment is not None:
        return decision
    fresh = CandidateStatus(
        revision=candidate.revision,
        version=candidate.version,
        image=candidate.image,
        started_at=stamp(situation.now),
    )
    told = Occurrence("Normal", "RolloutStarted", f"revision {fresh.revision} again, its failed Deployment was deleted")
    return replace(decision, candidate=fresh, occurrences=(*decision.occurrences, told))


def _give_way(situation: Situation, decision: Decision, candidate: CandidateStatus) -> Decision:
    """The wanted revision is another one now. Where nothing else serves, ready pods are kept until it can."""
    if decision.stable is None and situation.children(candidate.revision).ready:
        kept = RevisionStatus(**candidate.model_dump(include=set(RevisionStatus.model_fields)))
        return replace(decision, stable=kept, candidate=None)
    if candidate.outcome is not None:
        return replace(decision, candidate=None)
    entry = _entry(candidate, "Replaced", situation.now, "the specification or the registry moved on")
    return replace(decision, candidate=None, history=(entry, *decision.history))


def _judge(situation: Situation, decision: Decision) -> Decision:
    candidate = decision.candidate
    if candidate is None or situation.replicas == 0:
        return decision
    children = situation.children(candidate.revision)
    if (
        candidate.outcome is None or decision.stable is None
    ) and children.wanted == situation.replicas <= children.ready:
        return _promote(situation, decision, candidate)
    if candidate.outcome is not None:
        return decision
    fault = situation.faults.get(candidate.revision)
    if fault is not None and fault.terminal:
        return _fail(situation, decision, candidate, fault)
    if _left(situation, candidate) <= 0:
        return _fail(situation, decision, candidate, _late(situation, candidate, fault))
    return decision


def _left(situation: Situation, candidate: CandidateStatus) -> float:
    """Seconds until the candidate's deadline."""
    started = parse(candidate.started_at) or situation.now
    deadline = started + timedelta(seconds=situation.spec.progress_deadline_seconds)
    return (deadline - situation.now).total_seconds()


def _late(situation: Situation, candidate: CandidateStatus, fault: Fault | None) -> Fault:
    ready = situation.children(candidate.revision).ready
    why = f": {fault.message}" if fault else ""
    return Fault(
        "ProgressDeadlineExceeded",
        f"{ready} of {situation.replicas} pods were ready after {situation.spec.progress_deadline_seconds} s{why}",
        terminal=True,
    )


def _promote(situation: Situation, decision: Decision, candidate: CandidateStatus) -> Decision:
    now, old = situation.now, decision.stable
    stable = RevisionStatus(
        revision=candidate.revision, version=candidate.version, image=candidate.image, started_at=stamp(now)
    )
    history = decision.history
    if old is not None:
        history = (_entry(old, "Superseded", now, f"by revision {stable.revision}"), *history)
    before = f", version {old.version} leaves" if old else ""
    told = Occurrence(
        "Normal", "RolledOut", f"revision {stable.revision} serves model version {stable.version}{before}"
    )
    verdict = Verdict(situation.model, stable.version, "Promoted", told.message, stable.revision)
    return replace(
        decision,
        stable=stable,
        candidate=None,
        history=history,
        occurrences=(*decision.occurrences, told),
        verdict=verdict,
    )


def _fail(situation: Situation, decision: Decision, candidate: CandidateStatus, fault: Fault) -> Decision:
    failed = candidate.model_copy(
        update={"outcome": "Failed", "reason": fault.reason[:63], "message": fault.message[:4096]}
    )
    keeps = f"; version {decision.stable.version} keeps serving" if decision.stable else ""
    told = Occurrence(
        "Warning", "RolloutFailed", f"model version {candidate.version}: {fault.reason}: {fault.message}{keeps}"
    )
    entry = _entry(candidate, "Failed", situation.now, f"{fault.reason}: {fault.message}")
    return replace(
        decision,
        candidate=failed,
        history=(entry, *decision.history),
        occurrences=(*decision.occurrences, told),
        verdict=Verdict(situation.model, candidate.version, "Failed", entry.message or "", candidate.revision),
    )


def _entry(revision: RevisionStatus, outcome: str, now: datetime, message: str) -> HistoryEntry:
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


def _share(situation: Situation, decision: Decision) -> Decision:
    """Pods per revision and the revision behind the Service."""
    stable, candidate = decision.stable, decision.candidate
    kept, settling = _old(situation, decision)
    replicas = dict.fromkeys(kept, 0) | settling
    serving = stable.revision if stable else candidate.revision if candidate else None
    if stable is not None:
        replicas[stable.revision] = situation.replicas
    if candidate is not None:
        # Where nothing else serves, a failed candidate keeps trying.
        given_up = candidate.outcome is not None and stable is not None
        replicas[candidate.revision] = 0 if given_up else situation.replicas
    if situation.spec.strategy == "Recreate" and stable is not None and candidate is not None:
        serving = _take_turns(situation, stable, candidate, replicas)
    wait = _next_look(situation, decision, bool(settling))
    return replace(decision, replicas=replicas, serving=serving, requeue_seconds=wait)


def _take_turns(
    situation: Situation, stable: RevisionStatus, candidate: CandidateStatus, replicas: dict[str, int]
) -> str:
    """Recreate: whoever is to serve waits until no pod of the other is left. Returns the revision for the Service."""
    coming, going = (candidate, stable) if candidate.outcome is None else (stable, candidate)
    gone = situation.pods(going.revision) == 0 and situation.children(going.revision).wanted == 0
    replicas[going.revision] = 0
    replicas[coming.revision] = situation.replicas if gone else 0
    return coming.revision if gone or candidate.outcome is not None else going.revision


def _old(situation: Situation, decision: Decision) -> tuple[list[str], dict[str, int]]:
    """Revisions kept to go back to, and among them those whose pods stay a moment longer."""
    current = {r.revision for r in (decision.stable, decision.candidate) if r is not None}
    served = [e for e in decision.history if e.outcome == "Superseded" and e.revision not in current]
    order = list(dict.fromkeys(entry.revision for entry in served))
    kept = order[: situation.spec.revision_history_limit]
    settling = {
        entry.revision: min(situation.children(entry.revision).wanted, situation.replicas)
        for entry in served[:1]
        # Endpoints turn before pods stop: a proxy may still send to an old pod for a moment.
        if _since(situation, entry.ended_at) < situation.settle_seconds
    }
    return kept, {revision: pods for revision, pods in settling.items() if pods}


def _next_look(situation: Situation, decision: Decision, settling: bool) -> float | None:
    looks = []
    if settling:
        looks.append(situation.settle_seconds)
    if decision.rolling_out and decision.candidate is not None and situation.replicas:
        looks.append(max(1.0, _left(situation, decision.candidate) + 0.5))
    return min(looks, default=None)


def _since(situation: Situation, moment: str | None) -> float:
    at = parse(moment)
    return (situation.now - at).total_seconds() if at else float("inf")


def stamp(moment: datetime) -> str:
    """A moment as Kubernetes writes it (RFC 3339, UTC, whole seconds)."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def parse(moment: str | None) -> datetime | None:
    """The moment that `stamp` wrote."""
    return datetime.fromisoformat(moment) if moment else None
