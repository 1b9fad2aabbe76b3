"""Ready is never said of dead pods: every process of the runtime is killed, by its id, and the conditions follow."""

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
    """The processes of this deployment's servers: their configuration lies in a folder of their pod."""
    pods = world.kubectl("get", "pods", "-l", f"llm-operator.dev/deployment={NAME}", "-o", "name").split()
    uids = [world.kubectl("get", pod, "-o", "jsonpath={.metadata.uid}") for pod in pods]
    names = [pod.removeprefix("pod/") for pod in pods]
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            text = (entry / "cmdline").read_bytes() + b"\0" + (entry / "environ").read_bytes()
            if b"serve" in text and any(each.encode() in text for each in (*uids, *names)):
                found.append(int(entry.name))
    return found


def test_ready_is_taken_back_within_seconds_when_all_processes_are_killed(mortal: World) -> None:
    victims = runtimes(mortal)
    assert len(victims) >= 2, victims
    killed = time.monotonic()
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    mortal.until(lambda: mortal.condition("Ready", NAME)["status"] != "True", "Ready to be taken back", 10)
    print(f"killed → Ready={mortal.condition('Ready', NAME)['status']}: {time.monotonic() - killed:.1f} s")
    mortal.until(lambda: mortal.condition("Ready", NAME)["status"] == "True", "the pods to be back")
