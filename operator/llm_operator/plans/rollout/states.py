"""The states of a candidate's life, and what leads from one to the next. hack/generate draws
TRANSITIONS in docs/rollouts.md."""

from enum import StrEnum


class State(StrEnum):
    """A candidate's state in its life; Move.state computes it."""

    STARTING = "Starting"
    READY = "Ready"
    TRAFFIC = "Traffic"
    STABLE = "Stable"
    FAILED = "Failed"
    REPLACED = "Replaced"


TRANSITIONS: tuple[tuple[State | None, State | None, str], ...] = (
    (None, State.STARTING, "alias moved, or spec changed"),
    (State.STARTING, State.READY, "a pod is ready"),
    (State.READY, State.STARTING, "no pod is ready any more"),
    (
        State.READY,
        State.TRAFFIC,
        "smoke prompts answered, and evaluations, load probes and copies let it go on",
    ),
    (State.STARTING, State.TRAFFIC, "Recreate, when the old pods are gone"),
    (State.TRAFFIC, State.TRAFFIC, "next step, hold over, no gate objects"),
    (State.READY, State.STABLE, "all pods ready, and gates passed, and nothing to hold"),
    (State.TRAFFIC, State.STABLE, "all pods ready, and gates passed"),
    (State.STARTING, State.FAILED, "deadline, broken model, no room or abort"),
    (State.READY, State.FAILED, "a gate failed or was undecided for too long, deadline or abort"),
    (
        State.TRAFFIC,
        State.FAILED,
        "a gate failed or was undecided for too long, crash, deadline or abort",
    ),
    (State.STARTING, State.REPLACED, "alias moved again"),
    (State.READY, State.REPLACED, "alias moved again"),
    (State.TRAFFIC, State.REPLACED, "alias moved again"),
    (State.REPLACED, None, "pods of the stable revision answer"),
    (State.REPLACED, State.TRAFFIC, "wanted again"),
    (State.REPLACED, State.STABLE, "no pod of the stable revision answers in time"),
    (State.FAILED, State.STABLE, "nothing else serves, its pods got ready, and gates passed"),
    (State.FAILED, State.STARTING, "its Deployment was deleted, it is tried again"),
    (State.FAILED, None, "another revision is wanted"),
)
"""From, to and when; None: there is no candidate."""


def mermaid() -> str:
    """The diagram."""
    lines = (
        f"    {source or '[*]'} --> {target or '[*]'}: {when}"
        for source, target, when in TRANSITIONS
    )
    return "\n".join(("stateDiagram-v2", *lines))
