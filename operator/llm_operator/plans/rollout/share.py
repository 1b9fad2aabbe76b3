"""Pods per revision, who is behind the Service, and what is told of it. It remembers nothing: what is suffices."""

from dataclasses import replace

from llm_operator.plans.rollout import room
from llm_operator.plans.rollout.course import Course, Decision
from llm_operator.plans.rollout.move import Move, Share
from llm_operator.plans.rollout.situation import parse
from llm_operator.plans.rollout.states import State
from llm_operator.plans.rollout.strategy import Strategy

HISTORY_ENTRIES = 20
GATE_LOOK_SECONDS = 2.0
"""How often a candidate is looked at while gates watch it."""
THIRD_LOOK_SECONDS = 1.0
"""How often, while pods of a third revision keep it out of the Service."""


def share(course: Course) -> Decision:
    """What follows for pods and traffic from where the roll-out is."""
    history = course.history[:HISTORY_ENTRIES]
    kept, settling = _earlier(replace(course, history=history))
    found = _between(course)
    candidate, moving = found.candidate, None
    if candidate is not None and candidate.outcome is None and course.situation.replicas:
        moving = replace(course, candidate=candidate).move
    looks = [course.situation.settle_seconds] if settling else []
    decision = Decision(
        stable=course.stable,
        candidate=candidate.status() if candidate else None,
        history=history,
        replicas=kept | found.pods,
        serving=found.serving,
        occurrences=course.occurrences,
        requeue_seconds=min(looks, default=None),
        directive=course.directive,
        rollback=course.rollback,
        remarks=course.remarks,
    )
    if moving is None or course.strategy is None:
        return decision
    looks += _looks(moving, course.strategy)
    stage, advice = _stage(moving, course.strategy), course.strategy.advice(moving)
    return replace(decision, requeue_seconds=min(looks, default=None), stage=stage, advice=advice)


def _between(course: Course) -> Share:
    """Pods and traffic of the stable revision and the candidate."""
    move, strategy, replicas = course.move, course.strategy, course.situation.replicas
    if move is None or strategy is None:
        serving = (course.stable.revision,) if course.stable else ()
        return Share(dict.fromkeys(serving, replicas), serving)
    if move.stable is not None and replicas == 0:
        return Share({move.old: 0, move.new: 0}, (move.old,), move.candidate)
    if move.state is State.FAILED:
        return strategy.retreat(move)
    return strategy.share(move).noted(move)


def _earlier(course: Course) -> tuple[dict[str, int], bool]:
    """Pods of the revisions that are kept to go back to, and whether some of these stay a moment longer."""
    situation, current = course.situation, {each.revision for each in (course.stable, course.candidate) if each}
    served = [each for each in course.history if each.outcome == "Superseded" and each.revision not in current]
    kept = list(dict.fromkeys(entry.revision for entry in served))[: situation.spec.revision_history_limit]
    settling = {
        entry.revision: pods
        for entry in served[:1]
        # Endpoints turn before pods stop: a proxy may still send to an old pod for a moment.
        if situation.since(parse(entry.ended_at)) < situation.settle_seconds
        if (pods := min(situation.children(entry.revision).wanted, situation.replicas))
    }
    return dict.fromkeys(kept, 0) | settling, bool(settling)


def _looks(move: Move, strategy: Strategy) -> list[float]:
    """Seconds until something about the candidate may change that no watch tells."""
    situation, candidate, looks = move.situation, move.candidate, list[float]()
    if (left := strategy.deadline_left(move)) is not None:
        looks.append(max(1.0, left + 0.5))
    if candidate.step_started_at is not None and not candidate.paused:
        looks.append(max(1.0, strategy.hold_left(move) + 0.1))
    if room.lack(move) is not None:
        looks += (seconds + 0.5 for seconds in (room.left(move), room.help_left(move)) if seconds > 0)
    if situation.spec.gates and situation.answering(move.new):
        looks.append(GATE_LOOK_SECONDS)
    if strategy.mixes and move.third:
        looks.append(THIRD_LOOK_SECONDS)
    return looks


def _stage(move: Move, strategy: Strategy) -> str:
    """The step, what holds it up, and what the gates wait for."""
    parts = [strategy.describe(move)]
    if move.candidate.paused:
        parts.append("paused by the annotation llm-operator.dev/rollout: write resume, skip or abort, or remove it")
    waiting = (gate for gate in move.candidate.verdict if gate.state == "Waiting")
    parts += (f"gate {gate.name} waits: {gate.message}" for gate in waiting)
    return "; ".join(part for part in parts if part)
