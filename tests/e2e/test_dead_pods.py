"""Ready is never said of dead pods: every process of the runtime is killed, by its id,
and the conditions follow."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from e2e.world import MODEL, World

pytestmark = pytest.mark.e2e

NAME = "mortal"
DEPLOYMENT = f"""
apiVersion: llm-operator.dev/v1alpha1
kind: LLMDeployment
metadata: {{name: {NAME}}}
spec:
  model: {{mlflow: {{name: {MODEL}, version: 1}}}}
  engine: {{maxModelLength: 128, maxBatchSize: 4}}
  replicas: 2
  access: {{authentication: Disabled}}
  resources: {{requests: {{cpu: 50m, memory: 128Mi}}}}
"""


@pytest.fixture
def mortal(world: World) -> Iterator[World]:
    world.kubectl("apply", "-f", "-", stdin=DEPLOYMENT)
    world.kubectl("wait", f"llmd/{NAME}", "--for=condition=Ready", "--timeout=180s")
    yield world
    world.kubectl("delete", "llmd", NAME, "--wait=true", "--timeout=60s")


def runtimes(world: World) -> list[int]:
    """The processes of this deployment's servers:
    their configuration lies in a folder of their pod."""
    pods = world.kubectl(
        "get", "pods", "-l", f"llm-operator.dev/deployment={NAME}", "-o", "name"
    ).split()
    uids = [world.kubectl("get", pod, "-o", "jsonpath={.metadata.uid}") for pod in pods]
    names = [pod.removeprefix("pod/") for pod in pods]
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            text = (entry / "cmdline").read_bytes() + b"\0" + (entry / "environ").read_bytes()
            if b"serve" in text and any(each.encode() in text for each in (*uids, *names)):
                found.append(int(entry.name))
    return found


def of_worker(pid: int) -> bool:
    """Whether it is an engine's process."""
    return b"llm_runtime.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()


def engines(world: World) -> list[int]:
    """The engine's process of each server, a child of it."""
    children = [
        Path(f"/proc/{pid}/task/{pid}/children").read_text().split() for pid in runtimes(world)
    ]
    return [int(child) for each in children for child in each if of_worker(int(child))]


def restarts(world: World) -> int:
    chosen = (
        "-l",
        f"llm-operator.dev/deployment={NAME}",
        "-o",
        "jsonpath={.items[*].status.containerStatuses[0].restartCount}",
    )
    return sum(int(count) for count in world.kubectl("get", "pods", *chosen).split())


def test_a_killed_engine_has_its_container_started_again_at_once_and_its_cause_told(
    mortal: World,
) -> None:
    before = restarts(mortal)
    victims = engines(mortal)
    assert victims
    killed = time.monotonic()
    os.kill(victims[0], signal.SIGKILL)
    mortal.until(lambda: restarts(mortal) == before + 1, "the container to be started again", 30)
    print(f"engine killed → container started again: {time.monotonic() - killed:.1f} s")
    mortal.until(
        lambda: "EngineKilled" in mortal.condition("Ready", NAME)["message"], "the cause", 30
    )
    print(f"engine killed → cause told: {time.monotonic() - killed:.1f} s")
    mortal.until(lambda: mortal.condition("Ready", NAME)["status"] == "True", "the pod to be back")
    print(f"engine killed → ready again: {time.monotonic() - killed:.1f} s")
    assert "containers were restarted" in mortal.condition("Ready", NAME)["message"]
    events = mortal.kubectl(
        "get",
        "events",
        "--field-selector",
        f"involvedObject.name={NAME}",
        "-o",
        "jsonpath={.items[*].reason}",
    )
    assert events.split().count("EngineKilled") == 1


def test_ready_is_taken_back_within_seconds_when_all_processes_are_killed(mortal: World) -> None:
    victims = runtimes(mortal)
    assert len(victims) >= 2, victims
    killed = time.monotonic()
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    mortal.until(
        lambda: mortal.condition("Ready", NAME)["status"] != "True", "Ready to be taken back", 10
    )
    print(
        f"killed → Ready={mortal.condition('Ready', NAME)['status']}:"
        f" {time.monotonic() - killed:.1f} s"
    )
    mortal.until(lambda: mortal.condition("Ready", NAME)["status"] == "True", "the pods to be back")
