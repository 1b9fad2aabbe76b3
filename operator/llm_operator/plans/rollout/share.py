"""Pods per revision, and who is behind the Service. Nothing here remembers: what is, and what should be, suffice."""

from dataclasses import replace

from llm_operator.crds import CandidateStatus, RevisionStatus
from llm_operator.plans import gates
from llm_operator.plans.rollout import room, sizes, strategies, times
from llm_operator.plans.rollout.situation import Decision, Situation, since, stamp

GATE_LOOK_SECONDS = 2.0
"""How often a candidate is looked at while gates watch it."""


def share(situation: Situation, decision: Decision) -> Decision:
    """Pods per revision and the revisions behind the Service."""
    stable, candidate = decision.stable, decision.candidate
    kept, settling = _old(situation, decision)
    replicas = dict.fromkeys(kept, 0) | settling
    if stable is not None:
        replicas[stable.revision] = situation.replicas
    serving: tuple[str, ...] = (stable.revision,) if stable else ()
    if candidate is not None and stable is None:
        # Where nothing else serves, a failed candidate keeps trying.
        replicas[candidate.revision] = situation.replicas
        serving = (candidate.revision,) if _smoke_passed(situation, candidate) else ()
    elif candidate is not None and stable is not None:
        serving = _between(situation, stable, candidate, replicas)
    decision = replace(decision, replicas=replicas, serving=serving)
    decision = replace(decision, candidate=_noted(situation, decision))
    if decision.rolling_out and decision.candidate is not None and situation.replicas:
        decision = replace(decision, advice=room.advice(situation, decision.candidate))
    return replace(decision, requeue_seconds=_next_look(situation, decision, bool(settling)))


def _between(
    situation: Situation, stable: RevisionStatus, candidate: CandidateStatus, replicas: dict[str, int]
) -> tuple[str, ...]:
    """Two revisions: fills in `replicas` and returns who is behind the Service."""
    alone = (stable.revision,)
    if situation.replicas == 0:
        replicas[candidate.revision] = 0
        return alone
    # Before operators wrote the strategy down, the specification's was the candidate's.
    if (candidate.strategy or situation.spec.strategy) == "Recreate":
        return (_take_turns(situation, stable, candidate, replicas),)
    both = (stable.revision, candidate.revision)
    if candidate.outcome is not None:
        return _give_back(situation, stable, candidate, replicas, both)
    replicas[candidate.revision] = sizes.wanted_pods(situation, candidate)
    if candidate.strategy == "Rolling":
        enters = _may_enter(situation, stable, candidate)
        taken = min(situation.answering(candidate.revision), replicas[candidate.revision]) if enters else 0
        spare = 1 - (1 if candidate.surge is None else candidate.surge)
        replicas[stable.revision] = max(0, situation.replicas - spare - taken)
        return both if enters else alone
    if candidate.strategy == "BlueGreen" and _turned(situation, candidate):
        return (candidate.revision,)
    if candidate.strategy == "Canary" and not situation.routed and _may_enter(situation, stable, candidate):
        ordered = replicas[candidate.revision]
        found = max(ordered, situation.staying(candidate.revision))
        beside = min(situation.answering(stable.revision), situation.replicas)
        # The worst case counts: all of its pods ready, and of the stable ones only those that are now.
        return both if 100 * found <= sizes.weight_of(situation, candidate) * (found + beside) else alone
    return alone


def _take_turns(
    situation: Situation, stable: RevisionStatus, candidate: CandidateStatus, replicas: dict[str, int]
) -> str:
    """Recreate: whoever is to serve waits until no pod of the other is left. Returns the revision for the Service."""
    failed = candidate.outcome is not None
    coming, going = (stable, candidate) if failed else (candidate, stable)
    gone = situation.pods(going.revision) == 0 and situation.children(going.revision).wanted == 0
    replicas[going.revision] = 0
    replicas[coming.revision] = situation.replicas if gone else 0
    if failed:
        return stable.revision
    return candidate.revision if gone and _smoke_passed(situation, candidate) else stable.revision


def _give_back(
    situation: Situation,
    stable: RevisionStatus,
    candidate: CandidateStatus,
    replicas: dict[str, int],
    both: tuple[str, ...],
) -> tuple[str, ...]:
    """A failed candidate goes at once, except where it has clients and no stable pod is ready."""
    replicas[candidate.revision] = 0
    if situation.answering(stable.revision) or not situation.answering(candidate.revision):
        return (stable.revision,)
    if sizes.switched(candidate):
        replicas[candidate.revision] = situation.replicas
        return (candidate.revision,)
    if candidate.strategy != "Rolling":
        return (stable.revision,)
    # One pod's room for the first stable pod; the rest answers until that is ready.
    replicas[candidate.revision] = min(candidate.replicas or 0, situation.replicas - 1)
    return both if replicas[candidate.revision] and _alone(situation, both) else (stable.revision,)


def _turned(situation: Situation, candidate: CandidateStatus) -> bool:
    """BlueGreen: whether clients are to reach the candidate while the old pods stay."""
    if sizes.switched(candidate):
        return situation.answering(candidate.revision) > 0
    return bool(situation.spec.switch_hold_seconds) and strategies.arrived(situation, candidate)


def _may_enter(situation: Situation, stable: RevisionStatus, candidate: CandidateStatus) -> bool:
    """Whether the candidate may be behind the Service together with the stable revision."""
    begins = candidate.traffic_since is None
    if begins and (
        candidate.paused or not situation.answering(candidate.revision) or not _smoke_passed(situation, candidate)
    ):
        return False
    return _alone(situation, (stable.revision, candidate.revision))


def _alone(situation: Situation, both: tuple[str, ...]) -> bool:
    """A Service of two revisions selects every revision: no third one may have pods that stay."""
    return not any(situation.staying(revision) for revision in situation.revisions if revision not in both)


def _smoke_passed(situation: Situation, candidate: CandidateStatus) -> bool:
    passed = {each.name for each in candidate.verdict or () if each.state == "Passed"}
    return {gates.smoke_name(name) for name in situation.spec.smoke_maps} <= passed


def _noted(situation: Situation, decision: Decision) -> CandidateStatus | None:
    """The candidate with its traffic written down: when it began, and how much it is."""
    candidate = decision.candidate
    if candidate is None or candidate.outcome is not None or decision.stable is None or not situation.replicas:
        return candidate
    change: dict[str, object] = {}
    answers = candidate.revision in decision.serving
    if candidate.strategy == "Canary":
        ready = situation.answering(candidate.revision) >= sizes.wanted_pods(situation, candidate)
        if situation.routed:
            enters = _may_enter(situation, decision.stable, candidate)
            answers = enters and (ready or bool(candidate.weight and situation.answering(candidate.revision)))
        change["weight"] = sizes.weight_of(situation, candidate) if answers else 0
    elif candidate.strategy == "BlueGreen" and answers != sizes.switched(candidate):
        now = stamp(situation.now)
        change |= {
            "weight": sizes.ALL if answers else 0,
            "progressed_at": now,
            "step_started_at": now if answers else None,
        }
    if answers and candidate.traffic_since is None:
        change |= {
            "traffic_since": stamp(situation.now),
            "restarts": sizes.restarts(situation, candidate),
        }
    return candidate.model_copy(update=change) if change else candidate


def _old(situation: Situation, decision: Decision) -> tuple[list[str], dict[str, int]]:
    """Revisions kept to go back to, and among them those whose pods stay a moment longer."""
    current = {r.revision for r in (decision.stable, decision.candidate) if r is not None}
    served = [e for e in decision.history if e.served and e.revision not in current]
    order = list(dict.fromkeys(entry.revision for entry in served))
    kept = order[: situation.spec.revision_history_limit]
    settling = {
        entry.revision: min(situation.children(entry.revision).wanted, situation.replicas)
        for entry in served[:1]
        # Endpoints turn before pods stop: a proxy may still send to an old pod for a moment.
        if since(situation.now, entry.ended_at) < situation.settle_seconds
    }
    return kept, {revision: pods for revision, pods in settling.items() if pods}


def _next_look(situation: Situation, decision: Decision, settling: bool) -> float | None:
    looks = [situation.settle_seconds] if settling else []
    candidate = decision.candidate
    if decision.rolling_out and candidate is not None and situation.replicas:
        if times.expects(situation, decision, candidate):
            looks.append(max(1.0, times.left(situation, candidate) + 0.5))
        if candidate.step_started_at is not None and not candidate.paused:
            looks.append(max(1.0, times.hold_left(situation, decision, candidate) + 0.1))
        if room.lack(situation, candidate) is not None:
            waits = (room.left(situation, candidate), room.help_left(situation, candidate))
            looks += [seconds + 0.5 for seconds in waits if seconds > 0]
        if situation.spec.gates and situation.answering(candidate.revision):
            looks.append(GATE_LOOK_SECONDS)
        if candidate.strategy in ("Rolling", "Canary") and _third(situation, decision):
            looks.append(1.0)
    return min(looks, default=None)


def _third(situation: Situation, decision: Decision) -> bool:
    assert decision.stable is not None or decision.candidate is not None
    known = tuple(each.revision for each in (decision.stable, decision.candidate) if each is not None)
    return not _alone(situation, known)
