"""What the operator gives an evaluation to do, and what it gets back. Both are JSON."""

import json
from dataclasses import asdict, dataclass, field

from pydantic import TypeAdapter

from llm_operator.crds.rollout import EvaluationSpec
from llm_operator.state import EvaluationOutcome

REPORT_BYTES = 4096
"""Kubernetes keeps no longer termination message."""
MESSAGE_CHARACTERS = 900


@dataclass(frozen=True)
class Side:
    """One revision, and where its pods answer."""

    revision: str
    version: str
    addresses: tuple[str, ...]


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
    """Of the LLMDeployment, which is the model's name in requests."""
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
_OUTCOME = TypeAdapter(EvaluationOutcome)


def to_json(task: Task) -> str:
    """The task for the Secret that the Job mounts."""
    return _TASK.dump_json(task).decode()


def from_json(text: str) -> Task:
    """The same, read. Raises ValueError."""
    return _TASK.validate_json(text)


def report(outcome: EvaluationOutcome) -> str:
    """The outcome as a termination message."""
    told = {**asdict(outcome)}
    for name in ("message", "waiting"):
        told[name] = told[name][:MESSAGE_CHARACTERS]
    return json.dumps(told, ensure_ascii=False)


def outcome(text: str) -> EvaluationOutcome:
    """What a termination message says. Raises ValueError."""
    return _OUTCOME.validate_json(text)
