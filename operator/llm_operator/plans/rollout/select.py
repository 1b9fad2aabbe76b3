"""All strategies by name, which one the candidate is rolled out by, and why."""

from dataclasses import replace

from llm_operator.plans.rollout.blue_green import BlueGreen
from llm_operator.plans.rollout.canary import Canary
from llm_operator.plans.rollout.decision import Decision
from llm_operator.plans.rollout.first import First
from llm_operator.plans.rollout.move import Move
from llm_operator.plans.rollout.recreate import Recreate
from llm_operator.plans.rollout.rolling import Rolling
from llm_operator.plans.rollout.states import State
from llm_operator.plans.rollout.strategy import Strategy

STRATEGIES: dict[str, Strategy] = {
    "BlueGreen": BlueGreen(),
    "Rolling": Rolling(),
    "Canary": Canary(),
    "Recreate": Recreate(),
}
"""By their names in spec.rollout.strategy. Whoever wants to know how a strategy behaves asks it
(strategy.py) and compares no name. A further strategy is a file, a line here, and its name in
crds/rollout.py."""


def named(name: str | None) -> Strategy | None:
    """The strategy of this name; None for Auto, and where none has been chosen yet."""
    return STRATEGIES.get(name or "")


def select(decision: Decision) -> Decision:
    """The decision with the candidate's strategy,
    which is written down once there are pods to be moved."""
    spec = decision.situation.spec
    for remark in spec.without_effect:
        decision = decision.remark(remark)
    asked = spec.strategy
    known = named(asked)
    decision = replace(decision, interrupts=known is not None and known.interrupts)
    move = decision.move
    if move is None:
        return decision
    if move.stable is None:
        return replace(decision, strategy=First())
    before = move.candidate
    if move.state in (State.FAILED, State.REPLACED) or not move.situation.replicas:
        # Statuses of older operators have no strategy: the specification's applies.
        return replace(
            decision, strategy=STRATEGIES.get(before.strategy or asked, STRATEGIES["BlueGreen"])
        )
    name, reason = _automatic(move) if asked == "Auto" else (asked, "spec.rollout.strategy says so")
    strategy = STRATEGIES[name]
    changes = before.strategy not in (None, name)
    candidate = strategy.prepare(move.changed(strategy=name, strategy_reason=reason), before)
    if changes:
        candidate = replace(candidate, progressed_at=move.situation.moment)
    if changes or (before.surge, candidate.surge) == (1, 0):
        decision = decision.tell("Normal", "StrategyChosen", f"{name}: {candidate.strategy_reason}")
    return replace(decision, candidate=candidate, strategy=strategy)


def _automatic(move: Move) -> tuple[str, str]:
    """BlueGreen until there is no room for it, then Rolling.
    It never interrupts: Recreate is asked for by name."""
    if move.candidate.strategy in ("Rolling", "Recreate"):
        # Older operators let Auto choose Recreate. The old pods are gone already then, and going on is
        # the shortest way.
        return move.candidate.strategy, move.candidate.strategy_reason or ""
    lack = move.lasting_lack
    if lack is not None and move.situation.spec.shadows:
        return (
            "BlueGreen",
            "Auto: it waits for room, as rollout.shadow needs the new pods beside the old",
        )
    if lack is None:
        return "BlueGreen", "Auto: as long as the new pods find room beside the old"
    if move.situation.replicas == 1:
        return (
            "BlueGreen",
            "Auto: it waits for room, as stopping the only pod would be an interruption",
        )
    if not lack.freed:
        return "BlueGreen", "Auto: it waits for room, as stopping an old pod would make none"
    return "Rolling", f"Auto: no room for all new pods beside the old: {lack.message}"
