"""Where a roll-out is, in words for `kubectl describe`."""

from datetime import timedelta

from llm_operator.crds import CandidateStatus
from llm_operator.crds.rollout import RolloutSpec
from llm_operator.plans.rollout.situation import parse
from llm_operator.plans.rollout.sizes import switched


def describe(spec: RolloutSpec, candidate: CandidateStatus) -> str:
    """The step, what holds it up, and what the gates wait for."""
    parts = [_step(spec, candidate)]
    if candidate.paused:
        parts.append("paused by the annotation llm-operator.dev/rollout: write resume, skip or abort, or remove it")
    for gate in candidate.verdict or ():
        if gate.state == "Waiting":
            parts.append(f"gate {gate.name} waits: {gate.message}")
    return "; ".join(part for part in parts if part)


def _step(spec: RolloutSpec, candidate: CandidateStatus) -> str:
    if candidate.strategy == "Rolling":
        one = "one pod less" if candidate.surge == 0 else "one pod more"
        return f"Rolling with {one} at a time"
    if switched(candidate):
        return f"it has the traffic; the old pods stay until it has had it for {spec.switch_hold_seconds} s"
    if candidate.strategy != "Canary" or candidate.step is None:
        return ""
    if candidate.step > len(spec.steps):
        return "the canary's steps are done, it grows to all pods"
    step = spec.steps[candidate.step - 1]
    weight = step.weight
    where = f"canary step {candidate.step} of {len(spec.steps)}"
    if candidate.weight:
        return f"{where}, at most {weight} % of the traffic{_until(candidate, step.hold_seconds)}"
    return f"{where} without traffic: {_why_none(candidate, weight)}"


def _until(candidate: CandidateStatus, hold_seconds: int) -> str:
    """A moment, not what is left: that would be another text, and another write, every second."""
    began = parse(candidate.step_started_at)
    return f", at least until {began + timedelta(seconds=hold_seconds):%H:%M:%S} UTC" if began and hold_seconds else ""


def _why_none(candidate: CandidateStatus, weight: int) -> str:
    if candidate.step_started_at is None:
        return "its pods are not ready yet, its smoke prompts are not answered, or other pods are still leaving"
    return f"one of its pods would take more than {weight} %; more replicas or canary.httpRoute would let it in"
