"""Is the candidate good? It is promoted, given up, or gets further on its way."""

from dataclasses import replace

from llm_operator.crds import CandidateStatus, RevisionStatus
from llm_operator.plans import gates
from llm_operator.plans.reasons import Reason
from llm_operator.plans.rollout import directives, room, sizes, strategies, times
from llm_operator.plans.rollout.choose import ended
from llm_operator.plans.rollout.situation import Decision, Situation, parse, stamp
from llm_operator.state import Evidence, Fault, Occurrence


def judge(situation: Situation, decision: Decision) -> Decision:
    """One look at the candidate."""
    candidate = decision.candidate
    if candidate is None or situation.replicas == 0:
        return decision
    if candidate.outcome is not None:
        # Where nothing else serves, a failed candidate keeps trying; but a wrong answer does not get right by waiting.
        heals = decision.stable is None and candidate.reason not in (Reason.GateFailed, Reason.Aborted)
        return _promote(situation, decision, candidate) if heals and _complete(situation, candidate) else decision
    candidate = _seen(situation, decision, candidate)
    decision = replace(decision, candidate=candidate)
    if (fault := _refusal(situation, decision, candidate)) is not None:
        return _fail(situation, decision, candidate, fault)
    candidate, done = strategies.progress(situation, decision, candidate)
    if done:
        return _promote(situation, decision, candidate)
    decision = replace(decision, candidate=candidate)
    fault = situation.faults.get(candidate.revision)
    if fault is not None and fault.terminal:
        return _fail(situation, decision, candidate, fault)
    if (fault := _in_vain(situation, decision, candidate)) is not None:
        return _fail(situation, decision, candidate, fault)
    if times.expects(situation, decision, candidate) and times.left(situation, candidate) <= 0:
        fault = situation.faults.get(candidate.revision)
        return _fail(situation, decision, candidate, _late(situation, candidate, fault))
    return decision


def _complete(situation: Situation, candidate: CandidateStatus) -> bool:
    children = situation.children(candidate.revision)
    return children.wanted == situation.replicas <= children.ready


def _seen(situation: Situation, decision: Decision, candidate: CandidateStatus) -> CandidateStatus:
    """The candidate with today's verdict; a clock that was set back or a pause that ends begins its times anew."""
    change: dict[str, object] = {}
    if situation.spec.gates:
        about = situation.evidence if situation.evidence.revision == candidate.revision else Evidence()
        change["verdict"] = gates.judge(situation.spec.gates, about)
    elif candidate.verdict is not None:
        change["verdict"] = None
    halted, now = directives.paused(decision), stamp(situation.now)
    if halted != bool(candidate.paused):
        change |= {"paused": halted or None, "progressed_at": now, "step_started_at": None}
    for name in ("progressed_at", "step_started_at", "started_at"):
        moment = parse(getattr(candidate, name))
        if moment is not None and moment > situation.now and name not in change:
            change[name] = now
    return candidate.model_copy(update=change) if change else candidate


def _refusal(situation: Situation, decision: Decision, candidate: CandidateStatus) -> Fault | None:
    if directives.ordered(decision, "abort"):
        return Fault(Reason.Aborted, f"the annotation {directives.STEER} says abort", terminal=True)
    crashes = sizes.restarts(situation, candidate) - (candidate.restarts or 0)
    if candidate.traffic_since is not None and crashes > 0:
        fault = situation.faults.get(candidate.revision)
        why = f": {fault.message}" if fault else ""
        return Fault(Reason.CandidateCrashed, f"a pod ended {crashes} times while it had traffic{why}", terminal=True)
    if (verdict := gates.failed(candidate.verdict or ())) is not None:
        return Fault(Reason.GateFailed, gates.told(verdict), terminal=True)
    return None


def _in_vain(situation: Situation, decision: Decision, candidate: CandidateStatus) -> Fault | None:
    """Old pods were stopped to make room and it was not enough: they come back, now and not at the deadline."""
    if decision.stable is None or candidate.paused:
        return None
    if (lack := room.in_vain(situation, candidate, decision.stable)) is None:
        return None
    fault = situation.faults.get(candidate.revision)
    said, reason = (fault.message, fault.reason) if fault else (lack.message, Reason.PodUnschedulable)
    return Fault(reason, f"stopping old pods ({candidate.strategy}) made no room for the new: {said}", terminal=True)


def _late(situation: Situation, candidate: CandidateStatus, fault: Fault | None) -> Fault:
    ready, waiting = situation.ready(candidate.revision), [v for v in candidate.verdict or () if v.state == "Waiting"]
    wanted = sizes.wanted_pods(situation, candidate)
    why = f": {fault.message}" if fault else "".join(f"; {gates.told(verdict)}" for verdict in waiting)
    advice = room.advice(situation, candidate)
    why += f"; {advice}" if advice else ""
    return Fault(
        Reason.ProgressDeadlineExceeded,
        f"{ready} of {wanted} pods were ready after {situation.spec.progress_deadline_seconds} s{why}",
        terminal=True,
    )


def _promote(situation: Situation, decision: Decision, candidate: CandidateStatus) -> Decision:
    now, old = situation.now, decision.stable
    stable = RevisionStatus(
        revision=candidate.revision, version=candidate.version, image=candidate.image, started_at=stamp(now)
    )
    history = decision.history
    if old is not None:
        back = decision.rollback is not None and decision.rollback.revision == stable.revision
        outcome, why = ("RolledBack", ", as the annotation rollback-to asked") if back else ("Superseded", "")
        history = (ended(old, outcome, now, f"by revision {stable.revision}{why}"), *history)
    before = f", version {old.version} leaves" if old else ""
    unjudged = [v.name for v in candidate.verdict or () if v.state == "TooFewSamples"]
    note = f"; too few samples to judge {', '.join(unjudged)}" if unjudged else ""
    told = Occurrence(
        "Normal", "RolledOut", f"revision {stable.revision} serves model version {stable.version}{before}{note}"
    )
    return replace(
        decision,
        stable=stable,
        candidate=None,
        history=history,
        occurrences=(*decision.occurrences, told),
    )


def _fail(situation: Situation, decision: Decision, candidate: CandidateStatus, fault: Fault) -> Decision:
    reason = str(fault.reason)
    failed = candidate.model_copy(
        update={"outcome": "Failed", "reason": reason[:63], "message": fault.message[:4096], "paused": None}
    )
    keeps = f"; version {decision.stable.version} keeps serving" if decision.stable else ""
    told = Occurrence(
        "Warning", "RolloutFailed", f"model version {candidate.version}: {reason}: {fault.message}{keeps}"
    )
    entry = ended(candidate, "Failed", situation.now, f"{reason}: {fault.message}")
    return replace(
        decision,
        candidate=failed,
        history=(entry, *decision.history),
        occurrences=(*decision.occurrences, told),
    )
