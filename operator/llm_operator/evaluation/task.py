"""What the operator gives an evaluation to do, and what it gets back. Both are JSON."""

import json
from dataclasses import asdict, dataclass, field

from pydantic import TypeAdapter

from llm_operator.crds.rollout import EvaluationSpec
from llm_operator.state import EvaluationOutcome, Pods

REPORT_BYTES = 4096
"""Kubernetes keeps no longer termination message."""
MESSAGE_CHARACTERS = 900


@dataclass(frozen=True)
class Side:
    """One of those that are asked."""

    name: str
    """For people: a revision, or a version of an adapter."""
    version: str
    model: str
    """What requests call it."""


@dataclass(frozen=True)
class Judge:
    """Where a judge model answers. `url` ends before /chat/completions."""

    url: str
    model: str
    key: str = field(default="", repr=False)


@dataclass(frozen=True)
class Task:
    """One evaluation."""

    spec: EvaluationSpec
    namespace: str
    name: str
    """Name of the LLMDeployment."""
    connection: str
    candidate: Side
    stable: Side | None
    """None for a first version."""
    model: str = ""
    """The registered model; empty: none has a number for the version."""
    made_by: str = ""
    """The MLflow run that made the candidate's version."""
    key: str = field(default="", repr=False)
    """The operator's own key; empty where none is required."""
    judges: tuple[Judge, ...] = ()
    """In the order of the scorers that need one."""
    write: bool = True
    """Whether MLflow is told."""


_TASK = TypeAdapter(Task)
_PODS = TypeAdapter(Pods)
_OUTCOME = TypeAdapter(EvaluationOutcome)


def to_json(task: Task) -> str:
    """The task for the Secret that the Job mounts."""
    return _TASK.dump_json(task).decode()


def from_json(text: str) -> Task:
    """The same, read. Raises ValueError."""
    return _TASK.validate_json(text)


def pods_to_json(pods: Pods) -> str:
    """Whom to ask, for the same Secret: it is written again where pods come and go."""
    return _PODS.dump_json(pods).decode()


def pods_from_json(text: str) -> Pods:
    """The same, read. Raises ValueError."""
    return _PODS.validate_json(text)


def report(outcome: EvaluationOutcome) -> str:
    """The outcome as a termination message."""
    told = asdict(outcome)
    for name in ("message", "waiting"):
        told[name] = told[name][:MESSAGE_CHARACTERS]
    return json.dumps(told, ensure_ascii=False)


def outcome(text: str) -> EvaluationOutcome:
    """What a termination message says. Raises ValueError."""
    return _OUTCOME.validate_json(text)
