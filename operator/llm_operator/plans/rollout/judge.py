"""The step that promotes the candidate, gives it up, or lets it get further; and the Events of
each."""

from dataclasses import replace
from datetime import timedelta

from llm_operator.plans.evidence import gates
from llm_operator.plans.reasons import Reason
from llm_operator.plans.rollout.candidate import Candidate, tries_on
from llm_operator.plans.rollout.decision import Decision
from llm_operator.plans.rollout.move import Move
from llm_operator.plans.rollout.situation import stamp
from llm_operator.plans.rollout.states import State
from llm_operator.plans.rollout.steer import STEER
from llm_operator.plans.rollout.strategy import Look, Progress
from llm_operator.state import Evidence, Fault

_PAST = ("started_at", "progressed_at", "shadowed_since", "step_started_at", "undecided_since")
"""Moments of a candidate that are never later than now."""


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
    failed = move.state is State.FAILED
    if move.state is State.REPLACED or (failed and not tries_on(move.situation.status)):
        return decision
    move = _weighed(move if failed else _timed(move, paused=decision.paused))
    told = gates.objection(move.candidate.gates)
    objection = Fault(Reason.GateFailed, told, terminal=True) if told else None
    if failed:
        return _tried_on(decision, move, objection)
    look = strategy.look(move)
    if (fault := _refusal(decision, move) or objection) is not None:
        return _fail(decision, look.seen, fault)
    progress = look.progress
    if progress is None:
        return _promote(decision, look.seen)
    left = progress.undecided_left
    if left is not None and left <= 0:
        return _fail(decision, look.candidate, _undecided(look.candidate, progress))
    if left is not None and look.begins_undecided:
        decision = _tell_undecided(decision, look, progress, left)
    if (fault := _hopeless(replace(move, candidate=look.candidate), progress)) is not None:
        return _fail(decision, look.candidate, fault)
    return replace(decision, candidate=look.candidate)


def _timed(move: Move, *, paused: bool) -> Move:
    """The move whose times begin anew where a pause began or ended,
    or where the clock was set back."""
    now = move.situation.moment
    if paused != move.candidate.paused:
        move = move.changed(
            paused=paused, progressed_at=now, step_started_at=None, undecided_since=None
        )
    known = {name: getattr(move.candidate, name) for name in _PAST}
    return move.changed(**{name: min(now, at) for name, at in known.items() if at is not None})


def _weighed(move: Move) -> Move:
    """The move with today's verdicts of the candidate's gates."""
    evidence = move.situation.evidence
    mine = evidence if evidence.revision == move.new else Evidence()
    verdicts = gates.judge(move.situation.spec.gates or (), mine)
    if move.state is State.TRAFFIC:
        verdicts = gates.with_shadow_verdicts_kept(verdicts, move.candidate.gates)
    return move.changed(gates=verdicts)


def _tried_on(decision: Decision, move: Move, objection: Fault | None) -> Decision:
    """A failed candidate that nothing else could replace: its gates are asked as before."""
    if objection is not None:
        return _fail(decision, move.candidate, objection)
    if move.complete and move.unopposed:
        return _promote(decision, move.candidate)
    return replace(decision, candidate=move.candidate)


def _refusal(decision: Decision, move: Move) -> Fault | None:
    """Why the candidate fails whatever its gates say: it is aborted, or has crashed."""
    if decision.ordered("abort"):
        return Fault(Reason.Aborted, f"the annotation {STEER} says abort", terminal=True)
    crashes = move.situation.restarts(move.new) - (move.candidate.restarts or 0)
    if move.state is State.TRAFFIC and crashes > 0:
        fault = move.situation.faults.get(move.new)
        why = f": {fault.message}" if fault else ""
        return Fault(
            Reason.CandidateCrashed,
            f"its containers were restarted {crashes} time(s) while it had traffic{why}",
            terminal=True,
        )
    return None


def _undecided(candidate: Candidate, progress: Progress) -> Fault:
    undecided = progress.undecided or tuple(
        each for each in candidate.gates if each.state == "Inconclusive"
    )
    verdicts = "; ".join(map(gates.describe, undecided))
    advice = (
        "more traffic, a longer rollout.maxHoldSeconds or onInconclusive: Promote would let it"
        " go on"
    )
    message = f"the gates could not decide in the time that they had: {verdicts}; {advice}"
    return Fault(Reason.GateInconclusive, message, terminal=True)


def _tell_undecided(decision: Decision, look: Look, progress: Progress, left: float) -> Decision:
    names = ", ".join(each.name for each in progress.undecided)
    until = stamp(decision.situation.now + timedelta(seconds=left))
    message = (
        f"{names}: not decided at the end of the hold; revision {look.candidate.revision} is held"
        f" until {until} at the latest"
    )
    return decision.tell("Normal", "GateUndecided", message)


def _hopeless(move: Move, progress: Progress) -> Fault | None:
    """Why the candidate is waited for no longer."""
    fault = move.situation.faults.get(move.new)
    if fault is not None and fault.terminal:
        return fault
    if (lack := progress.stopped_in_vain) is not None:
        # Old pods were stopped to make room and it was not enough:
        # they come back, now and not at the deadline.
        why, reason = (
            (fault.message, fault.reason) if fault else (lack.message, Reason.PodUnschedulable)
        )
        message = f"stopping old pods ({move.candidate.strategy}) made no room for the new: {why}"
        return Fault(reason, message, terminal=True)
    left = progress.deadline_left
    return _late(move, progress, fault) if left is not None and left <= 0 else None


def _late(move: Move, progress: Progress, fault: Fault | None) -> Fault:
    ready = move.situation.children(move.new).ready
    seconds = move.situation.spec.progress_deadline_seconds
    counted = f"{ready} of {progress.size} pods were ready after {seconds} s"
    waiting = [gates.describe(each) for each in move.candidate.gates if each.state == "Waiting"]
    why = f": {fault.message}" if fault else "".join(f"; {told}" for told in waiting)
    message = counted + why + (f"; {progress.advice}" if progress.advice else "")
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
