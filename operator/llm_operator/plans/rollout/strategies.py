"""How far a candidate is on its way, by strategy, and when it has arrived."""

from dataclasses import replace
from typing import Any

from llm_operator.crds import CandidateStatus
from llm_operator.plans import gates
from llm_operator.plans.rollout import directives, room
from llm_operator.plans.rollout.situation import Decision, Situation, stamp
from llm_operator.plans.rollout.sizes import canary_pods, step_of, switched, wanted_pods
from llm_operator.plans.rollout.times import hold_left
from llm_operator.state import Occurrence


def select(situation: Situation, decision: Decision) -> Decision:
    """Write down how the candidate is rolled out, and why so."""
    candidate = decision.candidate
    if candidate is None or candidate.outcome is not None or decision.stable is None or situation.replicas == 0:
        return decision
    asked = situation.spec.strategy
    if asked == "Auto":
        strategy, reason = _automatic(situation, candidate)
    else:
        strategy, reason = asked, "spec.rollout.strategy says so"
    change: dict[str, Any] = {"strategy": strategy, "strategy_reason": reason}
    if candidate.strategy not in (None, strategy):
        change["progressed_at"] = stamp(situation.now)
    if strategy == "Rolling":
        change |= _room(situation, candidate, chosen=asked == "Auto" and candidate.strategy != strategy)
        change["replicas"] = max(1, candidate.replicas or situation.answering(candidate.revision))
    changed = candidate.model_copy(update=change)
    told = decision.occurrences
    if candidate.strategy not in (None, strategy) or (candidate.surge, changed.surge) == (1, 0):
        told = (*told, Occurrence("Normal", "StrategyChosen", f"{strategy}: {changed.strategy_reason}"))
    return replace(decision, candidate=changed, occurrences=told)


def _automatic(situation: Situation, candidate: CandidateStatus) -> tuple[str, str]:
    """BlueGreen until there is no room for it, then Rolling. It never interrupts: Recreate is asked for by name."""
    if candidate.strategy in ("Rolling", "Recreate"):
        # Before 2026-11-28 Auto chose Recreate: then the old pods are gone already, and going on is the shortest way.
        return candidate.strategy, candidate.strategy_reason or ""
    lack = room.lasting(situation, candidate)
    if lack is None:
        return "BlueGreen", "Auto: as long as the new pods find room beside the old"
    if situation.replicas == 1:
        return "BlueGreen", "Auto: it waits for room, as stopping the only pod would be an interruption"
    if not lack.freed:
        return "BlueGreen", "Auto: it waits for room, as stopping an old pod would make none"
    return "Rolling", f"Auto: no room for all new pods beside the old: {lack.message}"[:1024]


def _room(situation: Situation, candidate: CandidateStatus, *, chosen: bool) -> dict[str, Any]:
    """How many pods Rolling may have beyond `replicas`. The only pod that serves is never stopped for a new one."""
    if situation.replicas == 1:
        return {"surge": 1}
    if candidate.surge == 0:
        return {"surge": 0, "strategy_reason": candidate.strategy_reason}
    if chosen:
        # One that has a place needs no old pod to make it.
        return {"surge": 1 if situation.placed(candidate.revision) else 0}
    lack = room.lasting(situation, candidate)
    if lack is None or not lack.freed:
        return {"surge": 1}
    why = f"one pod less at a time, no room for one more: {lack.message}"[:1024]
    return {"surge": 0, "strategy_reason": why, "progressed_at": stamp(situation.now)}


def progress(situation: Situation, decision: Decision, candidate: CandidateStatus) -> tuple[CandidateStatus, bool]:
    """The candidate as it is now, a step further where that is earned; and whether it has arrived."""
    if candidate.strategy == "Canary" and decision.stable is not None:
        return _canary(situation, decision, candidate)
    if candidate.strategy == "Rolling" and decision.stable is not None:
        return _rolling(situation, decision, candidate)
    if candidate.strategy == "BlueGreen" and decision.stable is not None:
        return _blue_green(situation, decision, candidate)
    return candidate, arrived(situation, candidate)


def arrived(situation: Situation, candidate: CandidateStatus) -> bool:
    """All pods are ready and no gate is awaited."""
    children = situation.children(candidate.revision)
    full = children.wanted == situation.replicas <= children.ready
    return full and not candidate.paused and gates.cleared(candidate.verdict or ())


def _blue_green(situation: Situation, decision: Decision, candidate: CandidateStatus) -> tuple[CandidateStatus, bool]:
    judged = switched(candidate)
    candidate = _held(situation, candidate, situation.replicas, judged=judged)
    if not judged:
        return candidate, not situation.spec.switch_hold_seconds and arrived(situation, candidate)
    return candidate, _over(situation, decision, candidate) and arrived(situation, candidate)


def _rolling(situation: Situation, decision: Decision, candidate: CandidateStatus) -> tuple[CandidateStatus, bool]:
    given = wanted_pods(situation, candidate)
    candidate = candidate.model_copy(update={"replicas": given})
    candidate = _held(situation, candidate, given, judged=candidate.traffic_since is not None)
    if not _over(situation, decision, candidate):
        return candidate, False
    if given >= situation.replicas:
        return candidate, arrived(situation, candidate)
    assert decision.stable is not None
    # The next pod only when the last has left: it would find no room and be taken for a lack of it.
    left = situation.pods(decision.stable.revision) + situation.pods(candidate.revision)
    if left > situation.replicas - 1 + (candidate.surge or 0):
        return candidate, False
    return _further(situation, candidate, replicas=given + 1), False


def _canary(situation: Situation, decision: Decision, candidate: CandidateStatus) -> tuple[CandidateStatus, bool]:
    steps, step = situation.spec.steps, step_of(situation, candidate)
    if directives.ordered(decision, "skip") and step <= len(steps):
        return _further(situation, candidate, step=len(steps) + 1), False
    candidate = candidate.model_copy(update={"step": step})
    if step > len(steps):
        return candidate, arrived(situation, candidate)
    fits = canary_pods(situation, steps[step - 1].weight) > 0
    judged = candidate.weight is not None and (bool(candidate.weight) or not fits)
    candidate = _held(situation, candidate, wanted_pods(situation, candidate), judged=judged)
    if _over(situation, decision, candidate):
        return _further(situation, candidate, step=step + 1), False
    return candidate, False


def _held(situation: Situation, candidate: CandidateStatus, pods: int, *, judged: bool) -> CandidateStatus:
    """The hold runs while the step's pods are ready and have what they are judged by."""
    runs = judged and situation.answering(candidate.revision) >= pods and not candidate.paused
    if runs == (candidate.step_started_at is not None):
        return candidate
    return candidate.model_copy(update={"step_started_at": stamp(situation.now) if runs else None})


def _over(situation: Situation, decision: Decision, candidate: CandidateStatus) -> bool:
    """Whether the step's hold has passed without a gate that objects or is awaited."""
    if candidate.step_started_at is None or not gates.cleared(candidate.verdict or ()):
        return False
    return hold_left(situation, decision, candidate) <= 0


def _further(situation: Situation, candidate: CandidateStatus, **change: Any) -> CandidateStatus:
    return candidate.model_copy(update={"progressed_at": stamp(situation.now), "step_started_at": None, **change})
