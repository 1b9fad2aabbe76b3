"""The step that gives pods to each revision and puts revisions behind the Service; it says when
to look again. It is stateless: it works only from what exists."""

from dataclasses import replace
from datetime import timedelta

from llm_operator.plans.rollout.candidate import tries_on
from llm_operator.plans.rollout.decision import Decision
from llm_operator.plans.rollout.move import PATIENCE_SECONDS, Allocation, Move
from llm_operator.plans.rollout.situation import parse, stamp
from llm_operator.plans.rollout.states import State
from llm_operator.plans.rollout.strategy import Progress

HISTORY_ENTRIES = 20
GATE_LOOK_SECONDS = 2.0
"""How often a candidate is looked at while gates watch it."""
THIRD_LOOK_SECONDS = 1.0
"""How often, while pods of a third revision keep it out of the Service."""


def allocate(decision: Decision) -> Decision:
    """The decision with what follows for pods and traffic, and what is told of it."""
    decision = replace(decision, history=decision.history[:HISTORY_ENTRIES])
    kept, settling = _earlier(decision)
    found = _between(decision)
    decision = replace(
        decision, candidate=found.candidate, replicas=kept | found.pods, serving=found.serving
    )
    looks = [decision.situation.settle_seconds] if settling else []
    move = decision.move
    strategy = decision.strategy
    if (
        move is not None
        and strategy is not None
        and decision.rolling_out
        and move.situation.replicas
    ):
        progress = strategy.progress(move)
        looks += _looks(move, progress)
        looks += [THIRD_LOOK_SECONDS] if strategy.mixes and move.third else []
        decision = replace(decision, stage=_stage(move, progress), advice=progress.advice)
    elif move is not None and tries_on(decision.situation.status):
        looks += _gate_looks(move)
    return replace(decision, requeue_seconds=min(looks, default=None))


def _between(decision: Decision) -> Allocation:
    """Pods and traffic of the stable revision and the candidate."""
    move = decision.move
    strategy = decision.strategy
    if move is None or strategy is None:
        serving = (decision.stable.revision,) if decision.stable else ()
        return Allocation(dict.fromkeys(serving, decision.situation.replicas), serving)
    if move.stable is not None and move.situation.replicas == 0:
        return Allocation({move.old: 0, move.new: 0}, (move.old,), move.candidate)
    if move.state in (State.FAILED, State.REPLACED):
        return strategy.retreat(move)
    return strategy.allocate(move).noted(move)


def _earlier(decision: Decision) -> tuple[dict[str, int], bool]:
    """Pods of the revisions that are kept to go back to,
    and whether some of these stay a moment longer."""
    situation = decision.situation
    current = {each.revision for each in (decision.stable, decision.candidate) if each}
    served = [each for each in decision.history if each.served and each.revision not in current]
    kept = list(dict.fromkeys(entry.revision for entry in served))[
        : situation.spec.revision_history_limit
    ]
    settling = {
        entry.revision: pods
        for entry in served[:1]
        # Endpoints turn before pods stop: a proxy may still send to an old pod for a moment.
        if situation.since(parse(entry.ended_at)) < situation.settle_seconds
        if (pods := min(situation.children(entry.revision).wanted, situation.replicas))
    }
    return dict.fromkeys(kept, 0) | settling, bool(settling)


def _looks(move: Move, progress: Progress) -> list[float]:
    """Seconds until something about the candidate may change that no watch tells."""
    candidate = move.candidate
    looks = list[float]()
    for left in (progress.deadline_left, progress.undecided_left):
        if left is not None:
            looks.append(max(1.0, left + 0.5))
    if (candidate.step_started_at or move.shadow_left) and not candidate.paused:
        looks.append(max(1.0, progress.hold_left + 0.1))
    if move.lack is not None:
        ends = (PATIENCE_SECONDS, move.help_seconds)
        looks += (end - move.waited + 0.5 for end in ends if end > move.waited)
    return looks + _gate_looks(move)


def _gate_looks(move: Move) -> list[float]:
    return (
        [GATE_LOOK_SECONDS]
        if move.situation.spec.gates and move.situation.answering(move.new)
        else []
    )


def _stage(move: Move, progress: Progress) -> str:
    """The step, what holds it up, and what the gates wait for."""
    if move.state is State.REPLACED:
        return (
            f"another revision is wanted; this one answers until pods of revision {move.old} are"
            " ready"
        )
    parts = [progress.where, _copies(move)]
    if move.candidate.paused:
        parts.append(
            "paused by the annotation llm-operator.dev/rollout: write resume, skip or abort, or"
            " remove it"
        )
    waiting = (gate for gate in move.candidate.gates if gate.state == "Waiting")
    parts += (f"gate {gate.name} waits: {gate.message}" for gate in waiting)
    # Only names: figures would change the text, and have the status written, at every look.
    # The figures are in candidate.gates.
    undecided = ", ".join(gate.name for gate in progress.undecided)
    if undecided:
        parts.append(
            f"not decided yet: {undecided}{_undecided_until(move)} (see .status.candidate.gates)"
        )
    return "; ".join(part for part in parts if part)


def _undecided_until(move: Move) -> str:
    """When a candidate that is held for its gates alone is taken back."""
    since = move.candidate.undecided_since
    if since is None:
        return ""
    return (
        ", held for it until"
        f" {stamp(since + timedelta(seconds=move.situation.spec.max_hold_seconds))} at the latest"
    )


def _copies(move: Move) -> str:
    """The sentence that it is sent copies. It names a moment and not the time left, which would be
    another text at every look."""
    spec = move.situation.spec.shadow
    since = move.candidate.shadowed_since
    if spec is None or since is None or not move.shadows:
        return ""
    until = since + timedelta(seconds=spec.hold_seconds)
    return (
        f"it is sent copies of {spec.percent} % of the requests, at least until"
        f" {until:%H:%M:%S} UTC"
    )
