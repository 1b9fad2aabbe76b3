"""An adapter's alias moves: the new version answers in every pod, no request fails,
and no pod starts anew.

With gates a worse version never answers, and a good one does once it has passed.
"""

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import mlflow
import pytest

from devstack.load import RequestLoop
from devstack.registry import push, set_alias
from e2e.world import MODEL, World
from llm_runtime import contract
from unit.runtime import lora_models

pytestmark = pytest.mark.e2e

NAME = "advisor"
ADAPTER = "support-legal"
RECORDS = 60
SMOKE = "advisor-legal-smoke"
"""The operator's, as the stack installs it: it notices after that at the latest."""
DEPLOYMENT = f"""
apiVersion: llm-operator.dev/v1alpha1
kind: LLMDeployment
metadata: {{name: {NAME}}}
spec:
  model: {{mlflow: {{name: {MODEL}, version: 1}}}}
  adapters: []
  engine: {{maxModelLength: 256, maxBatchSize: 32}}
  server: {{completionCache: {{enabled: false}}}}
  replicas: 2
  resources: {{requests: {{cpu: 100m, memory: 256Mi}}}}
  rollout: {{drainSeconds: 5, progressDeadlineSeconds: 120}}
---
apiVersion: llm-operator.dev/v1alpha1
kind: ApiKey
metadata: {{name: advisors}}
spec: {{deployments: [{NAME}], adapters: [legal]}}
"""


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[httpx.Client]:
    world.kubectl("apply", "-f", "-", stdin=DEPLOYMENT)
    world.kubectl("wait", f"llmd/{NAME}", "--for=condition=Ready", "--timeout=180s")
    world.kubectl("wait", "llmkey/advisors", "--for=condition=Ready", "--timeout=60s")
    headers = {"Authorization": f"Bearer {key(world)}"}
    with httpx.Client(
        base_url=world.stack.service_url(NAME), headers=headers, timeout=60, trust_env=False
    ) as session:
        yield session
    world.kubectl("delete", "llmd", NAME, "--timeout=60s")
    world.kubectl("delete", "llmkey", "advisors")
    world.kubectl("delete", "configmap", SMOKE, "--ignore-not-found")
    world.until(lambda: NAME not in world.kubectl("get", "pods", "-o", "name"), "its pods gone")


@pytest.fixture(scope="module")
def versions(
    models: dict[str, Path], world: World, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """Three versions of an adapter for the first model:
    `champion`, one that answers otherwise, and the first again."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, alias in ((0, "champion"), (1, None), (0, None)):
        made = lora_models.save_adapter(models["first"], folder / str(seed), seed)
        push(world.stack.mlflow.uri, ADAPTER, made, alias=alias)
    return ADAPTER


def key(world: World) -> str:
    return base64.b64decode(
        world.stack.get("secret", "advisors-llm-key")["data"]["api-key"]
    ).decode()


def pods(world: World) -> list[tuple[str, int]]:
    """Each pod and how often it was started anew."""
    selector = f"llm-operator.dev/deployment={NAME}"
    listed = json.loads(world.kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
    return sorted(
        (
            pod["metadata"]["uid"],
            sum(each["restartCount"] for each in pod["status"]["containerStatuses"]),
        )
        for pod in listed
    )


def answer(session: httpx.Client, model: str) -> httpx.Response:
    # A connection of its own: the Service chooses a pod for each.
    body = {"model": model, "prompt": "hello", "temperature": 0, "max_tokens": 12}
    return session.post("/v1/completions", json=body, headers={"Connection": "close"})


def test_a_moved_alias_answers_in_all_pods_and_nobody_notices(
    client: httpx.Client, world: World, versions: str
) -> None:
    before = pods(world)
    legal = f"{NAME}:legal"
    assert len(before) == 2
    assert answer(client, legal).status_code == 404
    adapters = [{"name": "legal", "mlflow": {"name": versions, "alias": "champion"}}]
    world.kubectl(
        "patch", "llmd", NAME, "--type=merge", "-p", json.dumps({"spec": {"adapters": adapters}})
    )
    world.until(
        lambda: all(answer(client, legal).is_success for _ in range(8)), "the adapter in all pods"
    )
    loop = RequestLoop(
        str(client.base_url).rstrip("/"), key(world), legal, "hello", clients=2, max_tokens=8
    ).start()
    try:
        world.until(lambda: loop.tally.requests >= 8, "requests before the move")
        (old,) = loop.tally.answers
        moved = time.monotonic()
        set_alias(world.stack.mlflow.uri, versions, "champion", "2")
        world.until(lambda: len(loop.tally.answers) == 2, "the new version to answer")
        settled = time.monotonic()
        while (now := time.monotonic()) - settled < 2:
            last = loop.tally.answers[old]
            time.sleep(0.1)
            settled = settled if loop.tally.answers[old] == last else now
    finally:
        tally = loop.stop()
    print(
        f"all pods answered {settled - moved:.1f} s after the alias moved; {tally.requests}"
        " requests, none failed"
    )
    assert tally.failures == []
    assert world.llmd(NAME)["status"]["adapters"][0]["version"] == "2"
    assert pods(world) == before
    world.until(
        lambda: world.condition("AdaptersReady", NAME)["status"] == "True", "the operator to see it"
    )
    assert world.llmd(NAME)["status"]["adapters"][0]["readyReplicas"] == 2


def test_a_removed_adapter_is_gone_and_the_pods_are_not(client: httpx.Client, world: World) -> None:
    before = pods(world)
    world.kubectl("patch", "llmd", NAME, "--type=merge", "-p", '{"spec": {"adapters": []}}')
    world.until(
        lambda: all(answer(client, f"{NAME}:legal").status_code == 404 for _ in range(6)),
        "it to go",
    )
    assert answer(client, NAME).is_success
    assert pods(world) == before


def first_version(client: httpx.Client, world: World, versions: str) -> dict[str, str]:
    """Have all pods answer with version 1 of the adapter `legal`, by its alias. Returns the reference."""
    reference = {"name": versions, "alias": "champion"}
    set_alias(world.stack.mlflow.uri, versions, "champion", "1")
    adapt(world, {"name": "legal", "mlflow": reference})
    legal = f"{NAME}:legal"
    world.until(
        lambda: all(answer(client, legal).is_success for _ in range(8)), "the adapter in all pods"
    )
    return reference


def test_a_worse_version_never_answers_and_a_good_one_does_when_it_has_passed(
    client: httpx.Client, world: World, versions: str
) -> None:
    before = pods(world)
    legal = f"{NAME}:legal"
    reference = first_version(client, world, versions)
    chat = {
        "model": legal,
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0,
        "max_tokens": 12,
    }
    right = client.post("/v1/chat/completions", json=chat).json()["choices"][0]["message"][
        "content"
    ]
    prompt = {"prompt": "hello", "maxTokens": 12, "expect": {"exact": right}}
    about = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": SMOKE},
        "data": {"hi": json.dumps(prompt)},
    }
    world.kubectl("apply", "-f", "-", stdin=json.dumps(about))
    adapt(
        world,
        {"name": "legal", "mlflow": reference, "gates": [{"smokePrompts": {"configMap": SMOKE}}]},
    )
    loop = RequestLoop(
        str(client.base_url).rstrip("/"), key(world), legal, "hello", clients=2, max_tokens=8
    ).start()
    try:
        world.until(lambda: loop.tally.requests >= 8, "requests before the move")
        refuse(world, versions)
        refused = world.condition("AdaptersReady", NAME)["message"]
        assert serving(world) == "1"
        asked = loop.tally.requests
        world.until(lambda: loop.tally.requests >= asked + 8, "requests after the refusal")
        passed = promote_twin(world, versions)
        world.until(
            lambda: world.condition("AdaptersReady", NAME)["status"] == "True", "it in all pods"
        )
    finally:
        tally = loop.stop()
    print(
        f"refused: {refused}\npassed {passed:.1f} s after the alias moved; {tally.requests}"
        " requests"
    )
    assert tally.failures == []
    assert len(tally.answers) == 1
    assert "version 1 of support-legal goes on answering" in refused
    assert [each["id"] for each in client.get("/v1/models").json()["data"]] == [NAME, legal]
    assert world.llmd(NAME)["status"]["adapters"][0]["judged"].startswith(
        "passed: gate smokePrompts"
    )
    assert pods(world) == before


def test_a_version_that_answers_a_dataset_worse_is_refused_and_its_twin_passes(
    client: httpx.Client, world: World, versions: str
) -> None:
    legal = f"{NAME}:legal"
    reference = first_version(client, world, versions)
    first_version_serves(world)
    mlflow.set_tracking_uri(world.stack.mlflow.uri)
    mlflow.genai.datasets.create_dataset(name="legal-golden", experiment_id="0").merge_records(
        [
            {
                "inputs": {"question": question},
                "expectations": {"expected_response": said(client, legal, question)},
            }
            for question in (f"hello world {number}" for number in range(RECORDS))
        ]
    )
    evaluation = {
        "dataset": "legal-golden",
        "scorers": [{"type": "Exact"}],
        "maxTokens": 8,
        "maxDropVsStable": 0.1,
    }
    adapt(world, {"name": "legal", "mlflow": reference, "gates": [{"evaluation": evaluation}]})
    loop = RequestLoop(
        str(client.base_url).rstrip("/"), key(world), legal, "hello", clients=1, max_tokens=8
    ).start()
    try:
        world.until(lambda: loop.tally.requests >= 4, "requests before the move")
        refused = refuse(world, versions)
        told = world.llmd(NAME)["status"]["adapterCandidates"][0]["gates"][0]
        passed = promote_twin(world, versions)
    finally:
        tally = loop.stop()
    print(
        f"refused {refused:.1f} s after the alias moved: {told['message']}\n"
        f"its twin passed after {passed:.1f} s; {tally.requests} requests"
    )
    assert tally.failures == []
    assert len(tally.answers) == 1
    assert (told["samples"], told["stableSamples"]) == (RECORDS, RECORDS)
    run = mlflow.get_run(told["message"].rpartition("run ")[2])
    assert run.data.tags["llm-operator.candidate"] == "adapter legal version 2"
    assert run.data.tags["llm-operator.model"] == versions
    assert run.data.metrics["drop"] > 0.5
    judged = world.llmd(NAME)["status"]["adapters"][0]["judged"]
    assert judged.startswith("passed: gate evaluation legal-golden")


def test_copies_refuse_a_version_that_answers_otherwise_and_prove_its_twin_to_nobody_s_cost(
    client: httpx.Client, world: World, versions: str
) -> None:
    before = pods(world)
    legal = f"{NAME}:legal"
    reference = first_version(client, world, versions)
    first_version_serves(world)
    load = {"seconds": 10, "concurrency": 1, "promptTokens": 8, "maxTokens": 8}
    judged = [
        {"shadowAgreement": {"minExact": 0.9}, "minRequests": 20},
        {"loadProbe": {**load, "maxInterTokenRatio": 5}},
    ]
    shadow = {"percent": 100, "maxInFlight": 2, "holdSeconds": 5}
    adapt(world, {"name": "legal", "mlflow": reference, "gates": judged, "shadow": shadow})
    counted = answers(world)
    loop = RequestLoop(
        str(client.base_url).rstrip("/"), key(world), legal, "hello", clients=2, max_tokens=8
    ).start()
    try:
        world.until(lambda: loop.tally.requests >= 40, "requests before the move")
        alone = len(loop.tally.seconds)
        refused = refuse(world, versions)
        beside = len(loop.tally.seconds)
        told = world.condition("AdaptersReady", NAME)["message"]
        passed = promote_twin(world, versions)
    finally:
        tally = loop.stop()
    print(
        f"refused {refused:.1f} s after the alias moved: {told}\n"
        f"its twin passed after {passed:.1f} s; {tally.requests} requests, median"
        f" {median(tally.seconds[:alone]):.3f} s, {median(tally.seconds[alone:beside]):.3f} s with"
        " a version beside that is loaded and sent copies"
    )
    assert "was refused by gate shadowAgreement minExact" in told
    assert "had another text" in told
    assert tally.failures == []
    assert len(tally.answers) == 1
    # No pod has counted a copy, or the load of the probe, as a request.
    assert answers(world) - counted == tally.requests
    judged_by = world.llmd(NAME)["status"]["adapters"][0]["judged"]
    assert judged_by.startswith("passed: gate shadowAgreement minExact is 1")
    assert "gate loadProbe" in judged_by
    assert pods(world) == before


def first_version_serves(world: World) -> None:
    """Wait until it does, in all pods."""
    world.until(lambda: serving(world) == "1", "the first version")
    world.until(
        lambda: world.condition("AdaptersReady", NAME)["status"] == "True", "it in all pods"
    )


def refuse(world: World, versions: str) -> float:
    """Move the alias to the worse version, and wait until it is refused. Returns the seconds."""
    moved = time.monotonic()
    set_alias(world.stack.mlflow.uri, versions, "champion", "2")
    world.until(
        lambda: world.condition("AdaptersReady", NAME)["reason"] == "AdapterRefused",
        "it to be refused",
    )
    return time.monotonic() - moved


def promote_twin(world: World, versions: str) -> float:
    """Move the alias to a version that answers as the first one, which still serves, and wait until
    it answers. Returns the seconds."""
    assert serving(world) == "1"
    moved = time.monotonic()
    set_alias(world.stack.mlflow.uri, versions, "champion", "3")
    world.until(lambda: serving(world) == "3", "the good version to pass")
    return time.monotonic() - moved


def answers(world: World) -> int:
    """Requests that all pods together have counted."""
    selector = f"llm-operator.dev/deployment={NAME}"
    listed = json.loads(world.kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
    total = 0.0
    for pod in listed:
        url = f"http://{pod['status']['podIP']}:{contract.PORT}{contract.METRICS_PATH}"
        for line in httpx.get(url, trust_env=False).text.splitlines():
            if line.startswith(f"{contract.METRIC_API_REQUESTS}_total"):
                total += float(line.rpartition(" ")[2])
    return int(total)


def said(client: httpx.Client, model: str, question: str) -> str:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 8,
    }
    answered = client.post("/v1/chat/completions", json=body).raise_for_status().json()
    return str(answered["choices"][0]["message"]["content"])


def adapt(world: World, adapter: dict[str, Any]) -> None:
    world.kubectl(
        "patch", "llmd", NAME, "--type=merge", "-p", json.dumps({"spec": {"adapters": [adapter]}})
    )


def serving(world: World) -> str:
    return str(world.llmd(NAME)["status"]["adapters"][0]["version"])
