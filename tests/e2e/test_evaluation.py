"""A quiet service: nobody asks, and a version that answers every tenth record wrongly is refused
all the same."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest

from devstack.registry import push, set_alias
from devstack.stack import Stack
from e2e.reference import greedy
from e2e.world import JUDGE_ADDRESS, JUDGE_URL, World
from llm_runtime import contract
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


JUDGE = "strict-judge"
JUDGED = "essayist"
ESSAYS = 12
BESIDE = f"""
apiVersion: llm-operator.dev/v1alpha1
kind: LLMDeployment
metadata: {{name: {JUDGE}}}
spec:
  model: {{mlflow: {{name: {JUDGE}, version: 1}}}}
  engine: {{maxModelLength: 2048, maxBatchSize: 8}}
  replicas: 1
  resources: {{requests: {{cpu: 100m, memory: 256Mi}}}}
---
apiVersion: llm-operator.dev/v1alpha1
kind: ApiKey
metadata: {{name: for-judging}}
spec: {{deployments: [{JUDGE}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: judge-by-address}}
spec:
  clusterIP: {JUDGE_ADDRESS}
  selector: {{llm-operator.dev/deployment: {JUDGE}}}
  ports: [{{port: 8080, targetPort: {contract.PORT}}}]
"""


def test_another_deployment_marks_the_answers_of_a_candidate(
    world: World, stack: Stack, models: dict[str, Path], tmp_path: Path
) -> None:
    """A random model as the judge: its marks are nonsense, and the same every time."""
    push(stack.mlflow.uri, JUDGE, tiny_model.make(tmp_path / "judge", seed=3, max_positions=2048))
    version = push(stack.mlflow.uri, JUDGED, models["first"])
    mlflow.set_tracking_uri(stack.mlflow.uri)
    mlflow.genai.datasets.create_dataset(name="essays", experiment_id="0").merge_records(
        [{"inputs": {"question": f"hello {number}"}} for number in range(ESSAYS)]
    )
    judge = {
        "url": JUDGE_URL,
        "model": JUDGE,
        "keyRef": {"name": "for-judging-llm-key", "key": "api-key"},
    }
    evaluation = {
        "dataset": "essays",
        "scorers": [{"type": "Judge", "judge": judge}],
        "maxTokens": TOKENS,
        "minScore": 0,
    }
    judged = {
        "apiVersion": "llm-operator.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": JUDGED},
        "spec": {
            "model": {"mlflow": {"name": JUDGED, "version": version}},
            "engine": {"maxModelLength": 256, "maxBatchSize": 8},
            "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
            "rollout": {"gates": [{"evaluation": evaluation}]},
        },
    }
    world.kubectl("apply", "-f", "-", stdin=BESIDE)
    try:
        world.kubectl("wait", f"llmd/{JUDGE}", "--for=condition=Ready", "--timeout=240s")
        world.kubectl("wait", "llmkey/for-judging", "--for=condition=Ready", "--timeout=60s")
        world.kubectl("apply", "-f", "-", stdin=json.dumps(judged))
        world.until(
            lambda: world.condition("Ready", JUDGED)["status"] == "True", "its first version"
        )
        stable = world.llmd(JUDGED)["status"]["stable"]["judged"]
        print(f"judged by {JUDGE}: {stable}")
        assert stable.startswith("passed: gate evaluation essays")
        run = stable.rpartition("run ")[2]
        lines = Path(
            mlflow.artifacts.download_artifacts(
                run_id=run, artifact_path="evaluation/records.jsonl", dst_path=str(tmp_path)
            )
        )
        scores = [
            json.loads(line)["candidate"]["scores"]["1.Judge"]
            for line in lines.read_text().splitlines()
        ]
        assert len(scores) == ESSAYS
        assert set(scores) <= {0, 0.25, 0.5, 0.75, 1}
        # The real runtime was asked under its own key, as any client.
        answered = httpx.get(
            JUDGE_URL.removesuffix("/v1") + contract.METRICS_PATH, trust_env=False
        ).text
        [counted] = [
            float(line.rpartition(" ")[2])
            for line in answered.splitlines()
            if line.startswith(f"{contract.METRIC_API_REQUESTS}_total") and 'status="200"' in line
        ]
        assert counted >= ESSAYS
        # Without the key it is away, and the gate says so.
        open_ = {name: value for name, value in judge.items() if name != "keyRef"}
        worse = {**evaluation, "scorers": [{"type": "Judge", "judge": open_}]}
        patch = {
            "spec": {"engine": {"maxBatchSize": 4}, "rollout": {"gates": [{"evaluation": worse}]}}
        }
        world.kubectl("patch", "llmd", JUDGED, "--type=merge", "-p", json.dumps(patch))
        world.until(
            lambda: "gave no mark" in json.dumps(world.llmd(JUDGED)["status"].get("candidate")),
            "the gate to tell of the judge",
        )
        assert world.llmd(JUDGED)["status"]["stable"]["version"] == version
    finally:
        world.kubectl("delete", "llmd", JUDGED, "--ignore-not-found")
        world.kubectl("delete", "-f", "-", stdin=BESIDE)


def _candidate(world: World) -> dict[str, Any]:
    found: dict[str, Any] = world.llmd(NAME)["status"].get("candidate") or {}
    return found
