"""Processes that die on a real kubelet:
what clients see, how soon the pod is back, and what the status says."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from kind.figures import note
from kind.site import Front, Site, inside
from kindstack.shell import KindError

pytestmark = pytest.mark.kind

NAME = "mortal"
DEPLOYMENT = f"""
apiVersion: llm-operator.dev/v1alpha1
kind: LLMDeployment
metadata: {{name: {NAME}}}
spec:
  model: {{mlflow: {{name: support-bot, version: 1}}}}
  engine: {{maxModelLength: 256, maxBatchSize: 4}}
  access: {{authentication: Disabled}}
  resources: {{requests: {{cpu: 50m, memory: 256Mi}}, limits: {{memory: 1536Mi}}}}
  rollout: {{progressDeadlineSeconds: 60}}
"""
FIND_ENGINE = (
    "import glob; print(*[p.split('/')[2] for p in glob.glob('/proc/[0-9]*/cmdline')"
    " if b'-m\\0llm_runtime.worker' in open(p, 'rb').read()])"
)
KILL = "import os, sys; os.kill(int(sys.argv[1]), 9)"
HOG = """
import pathlib, sys, time
held, deadline = [], time.monotonic() + 20
while pathlib.Path(f"/proc/{sys.argv[1]}").exists() and time.monotonic() < deadline:
    if len(held) < 24:
        held.append(bytearray(b"x" * (4 << 20)))
    time.sleep(0.05)
"""
# Takes a container's id; leaves it 48 MiB beyond what can't be dropped,
# in either version of control groups.
SQUEEZE = """
room() { awk -v name=$1 '$1 == name {print $2 + 48 * 1048576}' $2; }
for folder in $(find /sys/fs/cgroup -type d -name "*$1*"); do
  if [ -f $folder/memory.limit_in_bytes ]; then
    room total_rss $folder/memory.stat >$folder/memory.limit_in_bytes
  elif [ -f $folder/memory.max ]; then
    room anon $folder/memory.stat >$folder/memory.max
  fi
done
"""


@pytest.fixture
def mortal(site: Site, bot: Front) -> Iterator[Front]:
    site.cluster.kubectl("apply", "-f", "-", stdin=DEPLOYMENT)
    front = Front(site, NAME)
    front.ready()
    yield front
    site.cluster.kubectl("delete", "llmd", NAME, "--wait=true", "--timeout=90s")


def runtime_status(site: Site) -> dict[str, Any]:
    (pod,) = site.pods(NAME)
    (found,) = [c for c in pod["status"]["containerStatuses"] if c["name"] == "runtime"]
    return dict(found)


def engine_of(site: Site) -> str:
    (pod,) = site.pods(NAME)
    return inside(pod, site.cluster, "python", "-c", FIND_ENGINE).split()[0]


def run_out_of_memory(site: Site, pod: dict[str, Any], engine: str) -> None:
    """Ask for a little more memory than there is:
    the kernel ends the largest process, which is the engine."""
    container = runtime_status(site)["containerID"].rpartition("/")[2]
    site.cluster.node_exec(pod["spec"]["nodeName"], "sh", "-euc", SQUEEZE, "squeeze", container)
    with suppress(KindError):  # The command may end with its container.
        inside(pod, site.cluster, "python", "-c", HOG, engine)


@pytest.mark.parametrize("how", ["killed", "out of memory"])
def test_a_dead_engine_is_told_and_back_within_seconds(site: Site, mortal: Front, how: str) -> None:
    (pod,) = site.pods(NAME)
    engine = engine_of(site)
    began = time.monotonic()
    if how == "killed":
        inside(pod, site.cluster, "python", "-c", KILL, engine)
        words = ("EngineKilled",)
    else:
        run_out_of_memory(site, pod, engine)
        words = ("OutOfMemory",)
    mortal.until(lambda: mortal.told(*words), "the cause", 30)
    cause = time.monotonic() - began
    mortal.until(lambda: runtime_status(site)["restartCount"] >= 1, "another container", 60)
    anew = time.monotonic() - began
    mortal.until(mortal.is_ready, "Ready again", 120)
    mortal.until(
        lambda: httpx.get(f"{mortal.url}/readyz", trust_env=False, timeout=5).status_code == 200,
        "answers",
        30,
    )
    back = time.monotonic() - began
    note(
        f"engine {how}",
        f"cause told {cause:.1f} s, container anew {anew:.1f} s, ready {back:.1f} s",
    )
    ended = runtime_status(site)["lastState"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) != (0, "Completed")


def test_a_limit_that_is_too_small_is_told_with_the_field_to_raise(site: Site, bot: Front) -> None:
    small = DEPLOYMENT.replace("memory: 1536Mi", "memory: 200Mi").replace(
        "memory: 256Mi", "memory: 64Mi"
    )
    site.cluster.kubectl("apply", "-f", "-", stdin=small)
    front = Front(site, NAME)
    try:
        front.until(
            lambda: front.told("ModelTooLarge", "OutOfMemory", "WillNotFit"), "the reason", 120
        )
        note("limit of 200 Mi", "{reason}: {message}".format(**front.condition("Ready", NAME)))
        assert "memory" in front.condition("Ready", NAME)["message"]
    finally:
        site.cluster.kubectl("delete", "llmd", NAME, "--wait=true", "--timeout=90s")


def test_an_image_that_cannot_be_pulled_never_takes_over_and_becomes_stalled(
    site: Site, mortal: Front
) -> None:
    patch = {"spec": {"image": "127.0.0.1:9/nobody/llm-runtime:9"}}
    mortal.kubectl("patch", "llmd", NAME, "--type=merge", "-p", json.dumps(patch))
    mortal.until(
        lambda: mortal.condition("Ready", NAME)["reason"] == "ImagePullFailed",
        "ImagePullFailed",
        30,
    )
    assert "spec.image" in mortal.condition("Ready", NAME)["message"]
    mortal.until(lambda: mortal.condition("Stalled", NAME)["status"] == "True", "Stalled", 120)
    assert mortal.condition("Available", NAME)["status"] == "True"
    assert httpx.get(f"{mortal.url}/readyz", trust_env=False, timeout=5).status_code == 200
