"""How many pods a candidate is to have, and how much of the traffic."""

import math

from llm_operator.crds import CandidateStatus
from llm_operator.plans import names
from llm_operator.plans.rollout.situation import Situation, exists
from llm_operator.state import Manifest

ALL = 100
"""Percent."""


def wanted_pods(situation: Situation, candidate: CandidateStatus) -> int:
    """Pods that the candidate is to have now."""
    if candidate.strategy == "Rolling":
        return min(situation.replicas, candidate.replicas or 1)
    if candidate.strategy == "Canary" and (step := step_of(situation, candidate)) <= len(situation.spec.steps):
        return max(1, canary_pods(situation, situation.spec.steps[step - 1].weight))
    return situation.replicas


def canary_pods(situation: Situation, weight: int) -> int:
    """The most pods whose share beside the stable ones is not above `weight`; 0 where one would be too many.

    With an HTTPRoute the share does not depend on them: as many as carry their weight.
    """
    if situation.routed:
        return min(situation.replicas, math.ceil(situation.replicas * weight / 100))
    return min(situation.replicas, weight * situation.replicas // (100 - weight))


def step_of(situation: Situation, candidate: CandidateStatus) -> int:
    """The canary's step, from 1; one more than there are steps: it grows to all pods."""
    return min(candidate.step or 1, len(situation.spec.steps) + 1)


def switched(candidate: CandidateStatus) -> bool:
    """BlueGreen: whether clients reach the candidate, while the old pods stay to turn back to."""
    return candidate.strategy == "BlueGreen" and candidate.weight == ALL


def weight_of(situation: Situation, candidate: CandidateStatus) -> int:
    """The most that the candidate may have of the traffic, in percent."""
    steps, step = situation.spec.steps, step_of(situation, candidate)
    if step <= len(steps):
        return steps[step - 1].weight
    # It has shown what the steps asked for: as many pods as the stable revision has may come in beside it.
    return steps[-1].weight if situation.routed else max(steps[-1].weight, 50)


def restarts(situation: Situation, candidate: CandidateStatus) -> int:
    """How often the candidate's serving containers have ended."""
    return sum(_endings(pod) for pod in situation.children(candidate.revision).pods)


def _endings(pod: Manifest) -> int:
    if not exists(pod):
        return 0  # Its node has ended it, or it was told to stop: no crash.
    found = 0
    for container in pod.get("status", {}).get("containerStatuses") or []:
        if container.get("name", names.RUNTIME_CONTAINER) != names.RUNTIME_CONTAINER:
            continue  # Put into the pod by somebody else, a mesh or an agent: its end says nothing of the version.
        state = container.get("state") or {}
        waiting = (state.get("waiting") or {}).get("reason") == "CrashLoopBackOff"
        # The count moves when the container starts again: until then its end is told by the state.
        found += int(container.get("restartCount") or 0) + (1 if "terminated" in state or waiting else 0)
    return found
