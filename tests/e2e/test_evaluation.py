"""A quiet service: nobody asks, and a version that answers every tenth record wrongly is refused
all the same."""

import json
import re
from pathlib import Path
from typing import Any

import mlflow
import pytest

from devstack.registry import push, set_alias
from devstack.stack import Stack
from e2e.reference import greedy
from e2e.world import World
from unit.runtime import tiny_model

pytestmark = pytest.mark.e2e

NAME = "quiet"
RECORDS = 200
TOKENS = 4
EVALUATION = {
    "dataset": "quiet-golden",
    "scorers": [{"type": "Regex"}],
    "maxTokens": TOKENS,
    "maxDropVsStable": 0.01,
    "minScore": 0.5,
}
DEPLOYMENT = f"""
apiVersion: llm-operator.dev/v1alpha1
kind: LLMDeployment
metadata: {{name: {NAME}}}
spec:
  model: {{mlflow: {{name: {NAME}, alias: champion}}}}
  engine: {{maxModelLength: 256, maxBatchSize: 32}}
  replicas: 1
  resources: {{requests: {{cpu: 100m, memory: 256Mi}}}}
  rollout:
    drainSeconds: 5
    gates: [{{evaluation: {json.dumps(EVALUATION)}}}]
"""


def test_a_version_that_is_wrong_on_a_tenth_of_a_dataset_is_refused_and_its_twin_is_promoted(
    world: World, stack: Stack, models: dict[str, Path], tmp_path: Path
) -> None:
    other = tiny_model.make(tmp_path / "other", seed=7)
    versions = {
        name: push(stack.mlflow.uri, NAME, folder)
        for name, folder in (("first", models["first"]), ("other", other))
    }
    records = []
    for number in range(RECORDS):
        question = f"hello world {number}"
        said = f"<|user|>{question}<|end|><|assistant|>"  # As the chat template writes it.
        good = re.escape(greedy(models["first"], said, TOKENS))
        # The other version is as right as the first, but for every tenth record.
        also = "" if number % 10 == 0 else f"|{re.escape(greedy(other, said, TOKENS))}"
        records.append(
            {"inputs": {"question": question}, "expectations": {"pattern": f"^({good}{also})$"}}
        )
    mlflow.set_tracking_uri(stack.mlflow.uri)
    mlflow.genai.datasets.create_dataset(name="quiet-golden", experiment_id="0").merge_records(
        records
    )
    set_alias(stack.mlflow.uri, NAME, "champion", versions["first"])
    world.kubectl("apply", "-f", "-", stdin=DEPLOYMENT)
    try:
        world.kubectl("wait", f"llmd/{NAME}", "--for=condition=Ready", "--timeout=240s")
        set_alias(stack.mlflow.uri, NAME, "champion", versions["other"])
        world.until(lambda: _candidate(world).get("outcome") == "Failed", "the gate to fail")
        candidate = _candidate(world)
        assert candidate["reason"] == "GateFailed"
        assert "trafficSince" not in candidate
        [gate] = candidate["gates"]
        assert gate["samples"] == RECORDS
        assert "this is the drop below stable" in gate["message"]
        run = mlflow.get_run(gate["message"].rpartition("run ")[2])
        assert run.data.metrics["drop"] == pytest.approx(0.1, abs=0.03)
        assert world.llmd(NAME)["status"]["stable"]["version"] == versions["first"]
        print(f"refused before any traffic: {candidate['message']}")
        twin = push(stack.mlflow.uri, NAME, models["first"])
        set_alias(stack.mlflow.uri, NAME, "champion", twin)
        world.until(lambda: world.llmd(NAME)["status"]["stable"]["version"] == twin, "the twin")
        assert (
            "passed: gate evaluation quiet-golden" in world.llmd(NAME)["status"]["stable"]["judged"]
        )
    finally:
        world.kubectl("delete", f"llmd/{NAME}")


def _candidate(world: World) -> dict[str, Any]:
    found: dict[str, Any] = world.llmd(NAME)["status"].get("candidate") or {}
    return found
