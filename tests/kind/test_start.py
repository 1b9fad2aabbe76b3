"""From `kubectl apply` to the first token, with the weights in a volume: where the seconds go."""

import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from kind.figures import note
from kind.site import Front, Site
from kind.volumes import volume

pytestmark = pytest.mark.kind

Pod = dict[str, Any]
NAME = "quick"
DEPLOYMENT = f"""
apiVersion: llm-operator.dev/v1alpha1
kind: LLMDeployment
metadata: {{name: {NAME}}}
spec:
  model: {{mlflow: {{name: support-bot, version: 1}}}}
  modelCache: {{persistentVolumeClaim: {{claimName: weights}}}}
  engine: {{maxModelLength: 256, maxBatchSize: 4}}
  access: {{authentication: Disabled}}
  resources: {{requests: {{cpu: 50m, memory: 256Mi}}}}
"""


PHASES: tuple[tuple[str, Callable[[Pod], bool]], ...] = (
    ("pod made", lambda _: True),
    ("fetched", lambda pod: is_true(pod, "Initialized")),
    (
        "container started",
        lambda pod: pod["status"]["containerStatuses"][0]["state"].get("running") is not None,
    ),
    ("pod ready", lambda pod: is_true(pod, "Ready")),
)


def test_the_first_token_comes_within_seconds_where_the_weights_are_there(
    site: Site, bot: Front
) -> None:
    with volume(site, "weights"):
        seconds_to_first_token(site)  # This pod fetches the weights into the volume.
        phases = seconds_to_first_token(site)
    note(
        "apply → first token, weights cached",
        ", ".join(f"{what} {at:.1f} s" for what, at in phases.items()),
    )


def seconds_to_first_token(site: Site) -> dict[str, float]:
    """Apply the deployment, ask until a token comes, delete it;
    the seconds since the beginning of each step."""
    began = time.monotonic()
    site.cluster.kubectl("apply", "-f", "-", stdin=DEPLOYMENT)
    seen = {"applied": time.monotonic() - began}
    front = Front(site, NAME)
    try:
        for what, there in PHASES:
            front.until(lambda there=there: any(map(there, site.pods(NAME))), what, 180)
            seen[what] = time.monotonic() - began
        take_a_token(front)
        seen["first token"] = time.monotonic() - began
    finally:
        site.cluster.kubectl("delete", "llmd", NAME, "--wait=true", "--timeout=90s")
        front.until(
            lambda: not site.get("pods", "-l", f"llm-operator.dev/deployment={NAME}")["items"],
            "no pod",
            90,
        )
    return seen


def take_a_token(front: Front) -> None:
    """A stream's first piece of text, from the Service."""
    body = {"model": NAME, "prompt": "hello", "max_tokens": 8, "stream": True}
    with httpx.stream(
        "POST", f"{front.url}/v1/completions", json=body, trust_env=False, timeout=60
    ) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"]:
                return
    raise AssertionError("the stream ended without a token")


def is_true(pod: Pod, condition: str) -> bool:
    return any(
        c["type"] == condition and c["status"] == "True"
        for c in pod["status"].get("conditions", [])
    )
