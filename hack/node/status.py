"""A pod's status, in the kubelet's words. Pure: records in, status out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from node.api import Json


@dataclass
class Record:
    """The state of one container. `state` and `last_state` have the API's shape."""

    name: str
    image: str
    state: Json = field(default_factory=lambda: waiting("PodInitializing"))
    last_state: Json = field(default_factory=dict)
    restarts: int = 0
    ready: bool = False
    started: bool = False
    container_id: str = ""
    sidecar: bool = False
    """An init container that is always started again:
    the next one waits for its start, not for its end."""
    begun: bool = False
    """Whether it was started once."""

    @property
    def initialised(self) -> bool:
        """As an init container: whether the next one may start."""
        return self.begun if self.sidecar else self.exit_code == 0

    @property
    def exit_code(self) -> int | None:
        terminated = self.state.get("terminated") or {}
        return terminated.get("exitCode")

    @property
    def is_running(self) -> bool:
        return "running" in self.state

    def as_status(self) -> Json:
        return {
            "name": self.name,
            "image": self.image,
            "imageID": "",
            "containerID": self.container_id,
            "state": self.state,
            "lastState": self.last_state,
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
        }


def waiting(reason: str, message: str = "") -> Json:
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


def terminated(
    exit_code: int, started: datetime, finished: datetime, message: str, container_id: str
) -> Json:
    """A finished attempt. If a signal ended the process, the code is 128 + signal,
    as with a container runtime."""
    code = 128 - exit_code if exit_code < 0 else exit_code
    result = {
        "exitCode": code,
        "reason": "Completed" if code == 0 else "Error",
        "startedAt": stamp(started),
        "finishedAt": stamp(finished),
        "containerID": container_id,
        **({"message": message} if message else {}),
        **({"signal": -exit_code} if exit_code < 0 else {}),
    }
    return {"terminated": result}


def phase(inits: Sequence[Record], mains: Sequence[Record], restart_policy: str) -> str:
    """Pending, Running, Succeeded or Failed, by the kubelet's rules."""
    if not all(record.initialised for record in inits):
        dead = (
            any(record.exit_code for record in inits if not record.sidecar)
            and restart_policy == "Never"
        )
        return "Failed" if dead else "Pending"
    if any("waiting" in record.state and not record.last_state for record in mains):
        return "Pending"
    if any(record.exit_code is None for record in mains) or restart_policy == "Always":
        return "Running"
    failed = any(record.exit_code != 0 for record in mains)
    if failed and restart_policy == "OnFailure":
        return "Running"
    return "Failed" if failed else "Succeeded"


def conditions(
    pod: Json, inits: Sequence[Record], mains: Sequence[Record], phase: str, now: datetime
) -> list[Json]:
    """Initialized, ContainersReady and Ready.
    The time of transition moves only when a status changes."""
    done = phase in ("Succeeded", "Failed")
    uninitialized = [record.name for record in inits if not record.initialised]
    lasting = [*(record for record in inits if record.sidecar), *mains]
    unready = [record.name for record in lasting if not record.ready]
    gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates") or []]
    previous = {entry["type"]: entry for entry in (pod.get("status") or {}).get("conditions") or []}
    shut = [gate for gate in gates if previous.get(gate, {}).get("status") != "True"]
    ready = verdict(unready, "ContainersNotReady", "containers with unready status", done)
    initialized = verdict(
        uninitialized, "ContainersNotInitialized", "containers with incomplete status", False
    )
    wanted = {
        "PodReadyToStartContainers": ("False", "", "") if done else ("True", "", ""),
        "Initialized": initialized,
        "ContainersReady": ready,
        "Ready": (
            ready
            if ready[0] == "False"
            else verdict(shut, "ReadinessGatesNotReady", "closed gates", False)
        ),
    }
    return [condition(kind, value, previous.get(kind), now) for kind, value in wanted.items()]


def verdict(names: list[str], reason: str, text: str, done: bool) -> tuple[str, str, str]:
    if done:
        return "False", "PodCompleted", ""
    if names:
        return "False", reason, f"{text}: [{' '.join(names)}]"
    return "True", "", ""


def condition(kind: str, value: tuple[str, str, str], previous: Json | None, now: datetime) -> Json:
    status, reason, message = value
    same = previous is not None and previous["status"] == status
    moved = previous["lastTransitionTime"] if same and previous else stamp(now)
    # Null removes an old reason, because the patch merges conditions by type.
    return {
        "type": kind,
        "status": status,
        "reason": reason or None,
        "message": message or None,
        "lastTransitionTime": moved,
        "lastProbeTime": None,
    }


def stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
