"""How long a candidate waits, and how long it may be waited for."""

from datetime import timedelta

from llm_operator.crds import CandidateStatus
from llm_operator.crds.rollout import JUDGED_SECONDS
from llm_operator.plans.rollout import directives
from llm_operator.plans.rollout.situation import Decision, Situation, parse, since
from llm_operator.plans.rollout.sizes import step_of, switched


def left(situation: Situation, candidate: CandidateStatus) -> float:
    """Seconds until the candidate's deadline."""
    began = parse(candidate.progressed_at or candidate.started_at) or situation.now
    if (held := parse(candidate.step_started_at)) is not None:
        began = max(began, held + timedelta(seconds=hold_seconds(situation, candidate)))
    deadline = began + timedelta(seconds=situation.spec.progress_deadline_seconds)
    return (deadline - situation.now).total_seconds()


def hold_left(situation: Situation, decision: Decision, candidate: CandidateStatus) -> float:
    """Seconds that the step lasts at least; 0 when it holds nothing up."""
    if candidate.step_started_at is None or directives.ordered(decision, "skip"):
        return 0.0
    return max(0.0, hold_seconds(situation, candidate) - since(situation.now, candidate.step_started_at))


def hold_seconds(situation: Situation, candidate: CandidateStatus) -> float:
    """How long the present step lasts once its pods are ready."""
    steps, step = situation.spec.steps, step_of(situation, candidate)
    if candidate.strategy == "Canary" and step <= len(steps):
        return float(steps[step - 1].hold_seconds)
    if candidate.strategy == "Rolling" and any(each.state != "Passed" for each in candidate.verdict or ()):
        return float(JUDGED_SECONDS)
    return float(situation.spec.switch_hold_seconds) if switched(candidate) else 0.0


def expects(situation: Situation, decision: Decision, candidate: CandidateStatus) -> bool:
    """Whether the candidate's deadline runs: not while it is told to wait, by a person or by a hold."""
    return not candidate.paused and hold_left(situation, decision, candidate) <= 0
