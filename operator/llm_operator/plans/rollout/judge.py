"""The step that promotes the candidate, gives it up, or lets it get further; and the Events of
each."""

from dataclasses import replace
from datetime import datetime, timedelta

from llm_operator.crds import GateVerdict
from llm_operator.plans.evidence import gates
from llm_operator.plans.reasons import Reason
from llm_operator.plans.rollout import room
from llm_operator.plans.rollout.candidate import Candidate, tries_on
from llm_operator.plans.rollout.decision import Decision
from llm_operator.plans.rollout.move import Move
from llm_operator.plans.rollout.situation import stamp
from llm_operator.plans.rollout.states import State
from llm_operator.plans.rollout.steer import STEER
from llm_operator.plans.rollout.strategy import Strategy
from llm_operator.state import Evidence, Fault


def judge(decision: Decision) -> Decision:
    """One look at the candidate."""
    move = decision.move
    strategy = decision.strategy
    if move is None or strategy is None:
        return decision
    if move.situation.replicas == 0:
        # Its times stand still while it has no pods, as while it is paused.
        return (
            replace(decision, candidate=replace(move.candidate, paused=True))
            if decision.rolling_out
            else decision
        )
    if move.state is State.REPLACED:
        return decision
    if move.state is State.FAILED:
        return _tried_on(decision, move) if tries_on(move.situation.status) else decision
    move = replace(move, candidate=_seen(move, paused=decision.paused))
    move = move.shadowed(strategy.size(move))
    if (fault := _refusal(move, aborted=decision.ordered("abort"))) is not None:
        return _fail(decision, move.candidate, fault)
    further = strategy.next(move)
    if further is State.STABLE:
        return _promote(decision, move.candidate)
    move = _noting_undecided(replace(move, candidate=further), strategy)
    left = strategy.undecided_left(move)
    if left is not None and left <= 0:
        return _fail(decision, move.candidate, _undecided(move, strategy))
    if left is not None and further.undecided_since is None:
        decision = _tell_undecided(decision, move, strategy, left)
    if (fault := _hopeless(move, strategy)) is not None:
        return _fail(decision, move.candidate, fault)
    return replace(decision, candidate=move.candidate)


def _tried_on(decision: Decision, move: Move) -> Decision:
    """A failed candidate that nothing else could replace: its gates are asked as before."""
    candidate = replace(move.candidate, gates=_judged(move))
    if (verdict := gates.failed(candidate.gates)) is not None:
        return _fail(
            decision, candidate, Fault(Reason.GateFailed, gates.describe(verdict), terminal=True)
        )
    if move.complete and gates.none_objects(candidate.gates):
        return _promote(decision, candidate)
    return replace(decision, candidate=candidate)


def _judged(move: Move) -> tuple[GateVerdict, ...]:
    """Today's gates."""
    evidence = move.situation.evidence
    mine = evidence if evidence.revision == move.new else Evidence()
    return gates.judge(move.situation.spec.gates or (), mine)


def _seen(move: Move, *, paused: bool) -> Candidate:
    """The candidate with today's gates;
    a clock that was set back or a pause that ends begins its times anew."""
    candidate = move.candidate
    now = move.situation.moment
    judged = _judged(move)
    if candidate.traffic_since is not None:
        judged = gates.with_shadow_verdicts_kept(judged, candidate.gates)
    candidate = replace(candidate, gates=judged)
    if paused != candidate.paused:
        candidate = replace(
            candidate, paused=paused, progressed_at=now, step_started_at=None, undecided_since=None
        )
    return replace(
        candidate,
        started_at=_at_most(now, candidate.started_at),
        progressed_at=_at_most(now, candidate.progressed_at),
        shadowed_since=_at_most(now, candidate.shadowed_since),
        step_started_at=_at_most(now, candidate.step_started_at),
        undecided_since=_at_most(now, candidate.undecided_since),
    )


def _at_most(now: datetime, moment: datetime | None) -> datetime | None:
    return min(now, moment) if moment else None


def _refusal(move: Move, *, aborted: bool) -> Fault | None:
    """Why the candidate fails whatever its state: it is aborted, has crashed, or a gate failed."""
    if aborted:
        return Fault(Reason.Aborted, f"the annotation {STEER} says abort", terminal=True)
    crashes = move.situation.restarts(move.new) - (move.candidate.restarts or 0)
    if move.state is State.TRAFFIC and crashes > 0:
        fault = move.situation.faults.get(move.new)
        why = f": {fault.message}" if fault else ""
        return Fault(
            Reason.CandidateCrashed,
            f"a pod ended {crashes} times while it had traffic{why}",
            terminal=True,
        )
    if (verdict := gates.failed(move.candidate.gates)) is not None:
        return Fault(Reason.GateFailed, gates.describe(verdict), terminal=True)
    return None


def _noting_undecided(move: Move, strategy: Strategy) -> Move:
    """The move with the moment noted since which undecided gates hold the candidate up although its
    hold is over."""
    undecided = not move.candidate.paused and bool(strategy.undecided(move))
    since = move.candidate.undecided_since
    if (
        undecided
        and since is None
        and (strategy.hold_over(move) or (move.state is State.READY and move.shadow_done))
    ):
        return move.changed(undecided_since=move.situation.moment)
    if not undecided and since is not None and not strategy.lost_its_evidence(move):
        # The deadline, which stood still, begins anew.
        return move.changed(undecided_since=None, progressed_at=move.situation.moment)
    return move


def _undecided(move: Move, strategy: Strategy) -> Fault:
    undecided = strategy.undecided(move) or tuple(
        each for each in move.candidate.gates if each.state == "Inconclusive"
    )
    verdicts = "; ".join(map(gates.describe, undecided))
    advice = (
        "more traffic, a longer rollout.maxHoldSeconds or onInconclusive: Promote would let it"
        " go on"
    )
    message = f"neither surely good nor surely bad in the time it had: {verdicts}; {advice}"
    return Fault(Reason.GateInconclusive, message, terminal=True)


def _tell_undecided(decision: Decision, move: Move, strategy: Strategy, left: float) -> Decision:
    names = ", ".join(each.name for each in strategy.undecided(move))
    until = stamp(move.situation.now + timedelta(seconds=left))
    message = (
        f"{names}: not decided at the end of the hold; revision {move.new} is held until {until} at"
        " most"
    )
    return decision.tell("Normal", "GateUndecided", message)


def _hopeless(move: Move, strategy: Strategy) -> Fault | None:
    """Why the candidate is waited for no longer."""
    fault = move.situation.faults.get(move.new)
    if fault is not None and fault.terminal:
        return fault
    if (
        strategy.stops_old_pods(move)
        and not move.candidate.paused
        and (lack := room.in_vain(move)) is not None
    ):
        # Old pods were stopped to make room and it was not enough:
        # they come back, now and not at the deadline.
        why, reason = (
            (fault.message, fault.reason) if fault else (lack.message, Reason.PodUnschedulable)
        )
        message = f"stopping old pods ({move.candidate.strategy}) made no room for the new: {why}"
        return Fault(reason, message, terminal=True)
    left = strategy.deadline_left(move)
    return _late(move, strategy, fault) if left is not None and left <= 0 else None


def _late(move: Move, strategy: Strategy, fault: Fault | None) -> Fault:
    ready = move.situation.children(move.new).ready
    seconds = move.situation.spec.progress_deadline_seconds
    counted = f"{ready} of {strategy.size(move)} pods were ready after {seconds} s"
    waiting = [gates.describe(each) for each in move.candidate.gates if each.state == "Waiting"]
    why = f": {fault.message}" if fault else "".join(f"; {told}" for told in waiting)
    advice = strategy.advice(move)
    message = counted + why + (f"; {advice}" if advice else "")
    return Fault(Reason.ProgressDeadlineExceeded, message, terminal=True)


def _promote(decision: Decision, candidate: Candidate) -> Decision:
    old = decision.stable
    stable = candidate.served(decision.situation.now)
    before = ""
    if old is not None:
        back = decision.rollback is not None and decision.rollback.revision == stable.revision
        outcome, why = (
            ("RolledBack", ", as the annotation rollback-to asked") if back else ("Superseded", "")
        )
        decision = decision.ended(old, outcome, f"by revision {stable.revision}{why}")
        before = f", version {old.version} leaves"
    note = f"; gates {stable.judged}" if stable.judged else ""
    message = f"revision {stable.revision} serves model version {stable.version}{before}{note}"
    return replace(decision, stable=stable, candidate=None).tell("Normal", "RolledOut", message)


def _fail(decision: Decision, candidate: Candidate, fault: Fault) -> Decision:
    reason = str(fault.reason)
    message = f"{fault.reason}: {fault.message}"
    keeps = f"; version {decision.stable.version} keeps serving" if decision.stable else ""
    decision = decision.ended(candidate.status(), "Failed", message)
    failed = replace(
        candidate, outcome="Failed", reason=reason, message=fault.message, paused=False
    )
    event = f"model version {candidate.version}: {message}{keeps}"
    return replace(decision, candidate=failed).tell("Warning", "RolloutFailed", event)
