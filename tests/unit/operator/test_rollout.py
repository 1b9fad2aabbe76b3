"""The rollout as a pure function: a situation in, a decision out."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from llm_operator.crds import CandidateStatus, HistoryEntry, LLMDeploymentStatus, StableStatus
from llm_operator.crds.rollout import RolloutSpec
from llm_operator.plans import rollout
from llm_operator.plans.rollout import Decision, Situation, Wanted, stamp
from llm_operator.state import Fault, RevisionChildren

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OLD = StableStatus(revision="old", version="1", image="i")
NEW = CandidateStatus(revision="new", version="2", image="i", started_at=stamp(NOW))


def children(revision: str, wanted: int, ready: int, pods: int = 0) -> RevisionChildren:
    deployment = {
        "metadata": {"generation": 1},
        "spec": {"replicas": wanted},
        "status": {"observedGeneration": 1, "readyReplicas": ready},
    }
    return RevisionChildren(
        revision, deployment, {}, tuple(pod(n < ready) for n in range(max(ready, pods)))
    )


def pod(ready: bool) -> dict[str, Any]:
    return {
        "metadata": {"name": "p"},
        "status": {"conditions": [{"type": "Ready", "status": str(ready)}]},
    }


def situation(**changes: Any) -> Situation:
    base = Situation(
        status=LLMDeploymentStatus(stable=OLD, candidate=NEW),
        wanted=Wanted("new", "2", "i"),
        revisions={"old": children("old", 2, 2), "new": children("new", 2, 1)},
        faults={},
        spec=RolloutSpec(),
        replicas=2,
        settle_seconds=5,
        now=NOW,
    )
    return replace(base, **changes)


def advance(situation: Situation) -> Decision:
    """The decision, with the candidate as the status has it."""
    decision = rollout.advance(situation)
    status = decision.candidate.status() if decision.candidate else None
    return replace(decision, candidate=status)  # type: ignore[arg-type]


def test_a_candidate_gets_as_many_pods_as_the_stable_revision_has() -> None:
    decision = advance(situation())
    assert decision.replicas == {"old": 2, "new": 2}
    assert decision.serving == ("old",)


def test_a_deployment_whose_status_is_older_than_its_specification_counts_no_ready_pods() -> None:
    stale = children("new", 2, 2)
    assert stale.deployment is not None
    stale.deployment["status"]["observedGeneration"] = 0
    assert advance(situation(revisions={"new": stale})).serving == ("old",)


def test_pods_of_a_smaller_size_do_not_prove_a_larger_one() -> None:
    assert advance(situation(revisions={"new": children("new", 1, 1)}, replicas=1)).serving == (
        "new",
    )
    assert advance(situation(revisions={"new": children("new", 1, 1)}, replicas=2)).serving == (
        "old",
    )


def test_history_tells_who_was_superseded() -> None:
    decision = advance(
        situation(revisions={"old": children("old", 2, 2), "new": children("new", 2, 2)})
    )
    assert decision.history[0].revision == "old"
    assert decision.history[0].outcome == "Superseded"
    assert decision.replicas == {"old": 2, "new": 2}


def test_a_first_candidate_serves_as_its_pods_get_ready_and_keeps_trying_after_a_failure() -> None:
    first = LLMDeploymentStatus(candidate=NEW)
    faults = {"new": Fault("ModelCorrupt", "short", terminal=True)}
    decision = advance(situation(status=first, faults=faults))
    assert (decision.serving, decision.replicas) == (("new",), {"new": 2})
    assert decision.candidate is not None
    assert decision.candidate.outcome == "Failed"
    healed = replace(situation(), status=LLMDeploymentStatus(candidate=decision.candidate))
    healed = replace(healed, revisions={"new": children("new", 2, 2)})
    assert advance(healed).stable is not None


def test_ready_pods_that_never_became_stable_serve_until_the_next_is_ready() -> None:
    decision = advance(
        situation(status=LLMDeploymentStatus(candidate=NEW), wanted=Wanted("newer", "3", "i"))
    )
    assert decision.stable is not None
    assert decision.stable.revision == "new"
    assert decision.serving == ("new",)


def test_a_replaced_candidate_is_removed_and_remembered() -> None:
    decision = advance(situation(wanted=Wanted("newer", "3", "i")))
    assert "new" not in decision.replicas
    assert decision.history[0].outcome == "Replaced"


def test_an_alias_moved_back_to_the_stable_version_ends_the_rollout() -> None:
    decision = advance(situation(wanted=Wanted("old", "1", "i")))
    assert decision.candidate is None
    assert decision.replicas == {"old": 2}


def test_while_the_reference_stands_for_nothing_the_course_is_held() -> None:
    decision = advance(situation(wanted=None))
    assert decision.candidate is not None
    assert (decision.candidate.revision, decision.candidate.started_at) == ("new", stamp(NOW))
    assert decision.replicas == {"old": 2, "new": 2}


def failed(**changes: Any) -> Decision:
    gone = NEW.model_copy(
        update={"outcome": "Failed", "reason": "ModelCorrupt", "message": "short"}
    )
    return advance(situation(status=LLMDeploymentStatus(stable=OLD, candidate=gone), **changes))


def test_a_failed_candidate_gives_its_room_back_and_stays_failed() -> None:
    decision = failed(now=NOW + timedelta(days=1))
    assert decision.replicas == {"old": 2, "new": 0}
    assert decision.candidate is not None
    assert decision.candidate.outcome == "Failed"
    assert decision.occurrences == ()


def test_a_failed_candidate_whose_deployment_was_deleted_is_tried_again() -> None:
    decision = failed(revisions={"old": children("old", 2, 2)})
    assert decision.rolling_out
    assert decision.replicas["new"] == 2


def test_without_pods_nothing_is_judged() -> None:
    decision = advance(situation(replicas=0, now=NOW + timedelta(days=1)))
    assert decision.candidate is not None
    assert decision.candidate.outcome is None
    assert decision.replicas == {"old": 0, "new": 0}


def test_after_a_failed_recreate_the_old_pods_come_back_when_the_new_are_gone() -> None:
    spec = RolloutSpec(strategy="Recreate")
    here = {"old": children("old", 0, 0), "new": children("new", 0, 0, pods=1)}
    assert failed(spec=spec, revisions=here).replicas == {"old": 0, "new": 0}
    here["new"] = children("new", 0, 0)
    assert failed(spec=spec, revisions=here).replicas == {"old": 2, "new": 0}
    assert failed(spec=spec, revisions=here).serving == ("old",)


def test_old_revisions_beyond_the_limit_are_dropped() -> None:
    entries = tuple(
        HistoryEntry(revision=f"r{n}", version=str(n), outcome="Superseded") for n in range(8)
    )
    status = LLMDeploymentStatus(stable=OLD, history=entries)
    decision = advance(
        situation(
            status=status,
            wanted=Wanted("old", "1", "i"),
            spec=RolloutSpec(revision_history_limit=3),
        )
    )
    assert decision.replicas == {"old": 2, "r0": 0, "r1": 0, "r2": 0}


def test_words_that_are_too_long_are_cut_where_the_status_is_made() -> None:
    faults = {"new": Fault("ModelCorrupt", "x" * 9000, terminal=True)}
    decision = advance(situation(faults=faults))
    assert decision.candidate is not None
    assert len(decision.candidate.message or "") == 4096
    assert len(decision.history[0].message or "") == 1024
    assert (
        len(decision.occurrences[0].message) > 9000
    )  # Where Events are written they are cut as well.
