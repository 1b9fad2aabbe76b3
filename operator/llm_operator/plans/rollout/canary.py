"""Canary: traffic in steps, then all pods, then the switch."""

import math
from dataclasses import replace
from datetime import timedelta

from llm_operator.crds import GateVerdict
from llm_operator.crds.rollout import CanaryStep
from llm_operator.plans.rollout.move import Allocation, Move
from llm_operator.plans.rollout.states import State
from llm_operator.plans.rollout.strategy import Next, Strategy


class Canary(Strategy):
    """The share follows from the numbers of pods,
    or is exact where an HTTPRoute divides the traffic."""

    mixes = True
    takes_copies = True

    def size(self, move: Move) -> int:
        step = _step(move)
        return max(1, _most_pods(move, step.weight)) if step else move.situation.replicas

    def hold_seconds(self, move: Move) -> float:
        step = _step(move)
        return float(step.hold_seconds) if step else 0.0

    def judged(self, move: Move) -> bool:
        # After its steps it has been judged, and only grows.
        return super().judged(move) and not _grows(move) and not _without(move)

    def undecided(self, move: Move) -> tuple[GateVerdict, ...]:
        # A gate that was added after the steps ended: no traffic has judged it, or ever will.
        return move.undecided_evaluations if _grows(move) else super().undecided(move)

    def hold_over(self, move: Move) -> bool:
        return move.complete if _grows(move) else super().hold_over(move)

    def lost_its_evidence(self, move: Move) -> bool:
        return not _grows(move) and super().lost_its_evidence(move)

    def next(self, move: Move) -> Next:
        step = _step(move)
        if step is not None and move.skips:
            return move.further(step=len(move.situation.spec.steps) + 1)
        move = move.changed(step=_number(move))
        if step is None:
            return super().next(move)
        judged = bool(move.candidate.weight) or (_without(move) and move.shadow_done)
        move = move.with_hold(self.size(move), self.hold_seconds(move), judged=judged)
        return move.further(step=_number(move) + 1) if self.step_over(move) else move.candidate

    def allocate(self, move: Move) -> Allocation:
        situation = move.situation
        size = self.size(move)
        answering = situation.answering(move.new)
        if situation.routed:
            answers = (
                move.enters and answering > 0 and (answering >= size or bool(move.candidate.weight))
            )
        else:
            # Assume the worst: all candidate pods ready,
            # and only those stable pods that are ready now.
            mine = max(size, situation.staying(move.new))
            beside = min(situation.answering(move.old), situation.replicas)
            # All pods of its first step are asked before one gets traffic:
            # the Service can't tell them apart.
            asked = (
                move.state is State.TRAFFIC or answering >= size or not situation.spec.smoke_maps
            )
            answers = move.enters and asked and 100 * mine <= _weight(move) * (mine + beside)
        serving = (move.old, move.new) if answers and not situation.routed else (move.old,)
        pods = {move.old: situation.replicas, move.new: size}
        return Allocation(
            pods, serving, replace(move.candidate, weight=_weight(move) if answers else 0)
        )

    def describe(self, move: Move) -> str:
        candidate = move.candidate
        steps = move.situation.spec.steps
        if candidate.step is None:
            return ""
        if candidate.step > len(steps):
            return "the canary's steps are done, it grows to all pods"
        step = steps[candidate.step - 1]
        where = f"canary step {candidate.step} of {len(steps)}"
        if candidate.weight:
            return (
                f"{where}, at most {step.weight} % of the traffic{_until(move, step.hold_seconds)}"
            )
        if candidate.step_started_at is None:
            why = _waits_for(move)
        else:
            more = "more replicas or canary.httpRoute would let it in"
            why = f"one of its pods would take more than {step.weight} %; {more}"
        return f"{where} without traffic: {why}"


def _number(move: Move) -> int:
    """The step, from 1; one more than there are steps: it grows to all pods."""
    return min(move.candidate.step or 1, len(move.situation.spec.steps) + 1)


def _step(move: Move) -> CanaryStep | None:
    """The step; None while it grows to all pods."""
    steps = move.situation.spec.steps
    number = _number(move)
    return steps[number - 1] if number <= len(steps) else None


def _grows(move: Move) -> bool:
    """Whether it has traffic, and its steps are over."""
    return move.state is State.TRAFFIC and _step(move) is None


def _without(move: Move) -> bool:
    """Whether it has no traffic in this step, as none of its pods would fit in."""
    step = _step(move)
    return step is not None and move.candidate.weight == 0 and not _most_pods(move, step.weight)


def _weight(move: Move) -> int:
    """The most that the candidate may have of the traffic, in percent."""
    if (step := _step(move)) is not None:
        return step.weight
    last = move.situation.spec.steps[-1].weight
    # It has passed every step, so it may have as many pods as the stable revision.
    return last if move.situation.routed else max(last, 50)


def _waits_for(move: Move) -> str:
    """What keeps the candidate from its traffic,
    while nothing says that its share would be too large."""
    if move.state is State.READY and not move.proven:
        return "its smoke prompts or evaluations are not passed yet"
    if move.state is State.READY and move.third:
        return "pods of another revision are still leaving"
    if move.state is State.READY and not move.probed:
        return "the load probe has not decided yet"
    if move.state is State.READY and not move.shadow_done:
        return "copies of requests judge it first"
    return "its pods are not ready yet"


def _most_pods(move: Move, weight: int) -> int:
    """The most pods whose share beside the stable ones is not above `weight`;
    0 where one would be too many.

    With an HTTPRoute the share does not depend on them: as many as carry their weight.
    """
    replicas = move.situation.replicas
    if move.situation.routed:
        return min(replicas, math.ceil(replicas * weight / 100))
    return min(replicas, weight * replicas // (100 - weight))


def _until(move: Move, hold_seconds: int) -> str:
    """Until when the step lasts at least. It names a moment and not the time left, which would be
    another text, and another write, every second."""
    began = move.candidate.step_started_at
    # Once the hold is over, it is the gates that are waited for, and these say until when.
    if not began or not hold_seconds or move.candidate.undecided_since:
        return ""
    return f", at least until {began + timedelta(seconds=hold_seconds):%H:%M:%S} UTC"
