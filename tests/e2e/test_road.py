"""From `kubectl apply` to text, and through every fault on the way:
what served before goes on serving.

The tests share one installation and run in order, as an afternoon with the product would.
"""

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from devstack.load import RequestLoop
from devstack.registry import push
from e2e.reference import greedy
from e2e.streams import texts_at_once
from e2e.world import MODEL, World
from secrets_told import Collector

pytestmark = pytest.mark.e2e

DEPLOYMENT = f"""
apiVersion: llm-operator.dev/v1alpha1
kind: LLMDeployment
metadata: {{name: {MODEL}}}
spec:
  model: {{mlflow: {{name: {MODEL}, alias: champion}}}}
  engine: {{maxModelLength: 256, maxBatchSize: 32}}
  replicas: 1
  resources: {{requests: {{cpu: 100m, memory: 256Mi}}}}
  rollout: {{drainSeconds: 20, progressDeadlineSeconds: 120}}
"""
KEY = f"""
apiVersion: llm-operator.dev/v1alpha1
kind: ApiKey
metadata: {{name: web-team}}
spec: {{owner: web-team@example.com, deployments: [{MODEL}]}}
"""


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[httpx.Client]:
    """A client of the Service with the generated key, once the model is ready."""
    world.kubectl("apply", "-f", "-", stdin=f"{DEPLOYMENT}---{KEY}")
    world.kubectl("wait", f"llmd/{MODEL}", "--for=condition=Ready", "--timeout=180s")
    world.kubectl("wait", "llmkey/web-team", "--for=condition=Ready", "--timeout=60s")
    with httpx.Client(
        base_url=world.stack.service_url(MODEL),
        headers={"Authorization": f"Bearer {key(world)}"},
        timeout=60,
        trust_env=False,
    ) as session:
        world.until(
            lambda: session.post("/v1/completions", json=completion("a")).is_success,
            "the key to be known",
        )
        yield session


def key(world: World, name: str = "web-team") -> str:
    return base64.b64decode(
        world.stack.get("secret", f"{name}-llm-key")["data"]["api-key"]
    ).decode()


def completion(prompt: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 12, **fields}


def test_applied_yaml_becomes_text_equal_to_transformers_own(
    client: httpx.Client, models: dict[str, Path]
) -> None:
    answer = client.post("/v1/completions", json=completion("hello world"))
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["text"] == greedy(models["first"], "hello world", 12)


def test_every_dialect_answers(client: httpx.Client) -> None:
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
    assert (
        client.post("/v1/chat/completions", json=chat).json()["choices"][0]["message"]["role"]
        == "assistant"
    )
    generated = client.post(
        "/v1/generate", json={"prompt": "hello", "max_new_tokens": 8, "temperature": 0.0}
    )
    assert generated.json()["tokens_generated"] > 0
    predicted = client.post(
        "/predict", json={"prompt": "hello", "max_length": 8, "temperature": 0.0}
    )
    assert predicted.json()["model_version"] == "1"
    assert client.get("/livez").json() == {"status": "ok"}
    assert client.get("/readyz").status_code == 200
    assert client.get("/health").json()["model_loaded"] is True
    assert "tokens_generated_total" in client.get("/metrics").text


def test_traces_reach_their_collector(
    world: World, client: httpx.Client, collector: Collector
) -> None:
    """Else there would be none to search for secrets at the end."""
    world.until(
        lambda: b"/v1/completions" in collector.file.read_bytes(), "the trace of a request", 60
    )


def test_a_changed_limit_reaches_the_running_pods(world: World, client: httpx.Client) -> None:
    def limited(tiers: list[dict[str, Any]]) -> None:
        world.kubectl(
            "patch",
            "llmd",
            MODEL,
            "--type=merge",
            "-p",
            json.dumps({"spec": {"access": {"tiers": tiers}}}),
        )

    def pods() -> str:
        return world.kubectl(
            "get", "pods", "-l", f"llm-operator.dev/deployment={MODEL}", "-o", "name"
        )

    before = pods()
    limited([{"name": "standard", "requestsPerMinute": 2}])
    refused = world.until(
        lambda: (
            answer
            if (answer := client.post("/v1/completions", json=completion("a"))).status_code == 429
            else None
        ),
        "the limit to hold",
        10,
    )
    assert refused.headers["x-ratelimit-limit-requests"] == "2"
    assert refused.json()["error"]["code"] == "requests_per_minute"
    limited([{"name": "standard", "maxConcurrent": 64}])
    world.until(
        lambda: client.post("/v1/completions", json=completion("a")).is_success, "the limit to go"
    )
    assert pods() == before
    assert world.condition("UsagePersistent")["reason"] == "NoDatabase"


def test_no_key_and_a_wrong_key_are_refused(client: httpx.Client) -> None:
    for headers in ({"Authorization": ""}, {"Authorization": f"Bearer llmk_nobody_{'x' * 43}"}):
        assert (
            client.post("/v1/completions", json=completion("hello"), headers=headers).status_code
            == 401
        )


async def test_32_concurrent_streams_each_equal_generate(
    client: httpx.Client, models: dict[str, Path]
) -> None:
    prompts = [
        f"{word} {'and so on ' * (number % 7)}{number}"
        for number, word in enumerate(["hello", "world"] * 16)
    ]
    bodies = [completion(prompt, max_tokens=32) for prompt in prompts]
    texts = await texts_at_once(str(client.base_url), dict(client.headers), bodies)
    assert texts == [greedy(models["first"], prompt, 32) for prompt in prompts]


def test_kubectl_tells_the_story(client: httpx.Client, world: World) -> None:
    row = world.kubectl("get", "llmd", MODEL)
    assert all(
        word in row
        for word in ("READY", "AVAILABLE", "REASON", "VERSION", "TARGET", "True", "Serving", MODEL)
    )
    story = world.kubectl("describe", "llmd", MODEL)
    assert f"with model version 1: {MODEL} is version 1" in story
    assert f"http://{MODEL}.default.svc" in story


def test_promotion_loses_no_request(
    client: httpx.Client, world: World, models: dict[str, Path]
) -> None:
    push(world.stack.mlflow.uri, MODEL, models["second"])
    loop = RequestLoop(
        str(client.base_url).rstrip("/"), key(world), MODEL, "hello", clients=4
    ).start()
    try:
        world.until(lambda: loop.tally.requests >= 8, "requests before the promotion")
        world.alias("2")
        world.until(lambda: world.serves("2"), "version 2 serving")
        before = loop.tally.requests
        world.until(lambda: loop.tally.requests >= before + 20, "requests after the promotion")
    finally:
        tally = loop.stop()
    assert tally.failures == []
    assert len(tally.answers) == 2, tally.answers


def test_corrupt_weights_never_take_over(
    client: httpx.Client, world: World, models: dict[str, Path]
) -> None:
    push(world.stack.mlflow.uri, MODEL, models["corrupt"])
    world.alias("3")
    world.until(
        lambda: world.condition("Stalled")["reason"] == "ModelCorrupt", "Stalled=ModelCorrupt"
    )
    assert "model.safetensors" in world.condition("Stalled")["message"]
    assert world.condition("Available")["status"] == "True"
    assert client.get("/readyz").status_code == 200
    assert (
        client.post("/predict", json={"prompt": "hello", "max_length": 4}).json()["model_version"]
        == "2"
    )
    assert "ModelCorrupt" in world.events()
    world.alias("2")
    world.until(lambda: world.serves("2"), "the way back to version 2")


def test_no_such_alias_and_no_such_model_say_so(client: httpx.Client, world: World) -> None:
    for patch, reason in (
        ({"alias": "nobody"}, "AliasNotFound"),
        ({"name": "nothing"}, "ModelNotFound"),
    ):
        edit({"model": {"mlflow": patch}}, world)
        world.until(
            lambda reason=reason: world.condition("ModelResolved")["reason"] == reason, reason
        )
        assert world.condition("Available")["status"] == "True"
        assert client.post("/v1/completions", json=completion("hello")).status_code == 200
        edit({"model": {"mlflow": {"name": MODEL, "alias": "champion"}}}, world)
        world.until(lambda: world.serves("2"), "the way back")


def edit(spec: dict[str, Any], world: World) -> None:
    world.kubectl("patch", "llmd", MODEL, "--type=merge", "-p", json.dumps({"spec": spec}))


def test_a_bad_field_is_refused_and_changes_nothing(client: httpx.Client, world: World) -> None:
    with pytest.raises(Exception, match="exactly one of"):
        edit({"model": {"mlflow": {"version": "1"}}}, world)
    assert world.serves("2")


def test_mlflow_away_is_told_and_nothing_stops(client: httpx.Client, world: World) -> None:
    world.stack.mlflow.stop()
    try:
        world.until(
            lambda: world.condition("RegistryReachable")["status"] == "False",
            "RegistryReachable=False",
        )
        assert world.condition("Available")["status"] == "True"
        assert client.post("/v1/completions", json=completion("hello")).status_code == 200
    finally:
        world.stack.mlflow.start()
    world.until(
        lambda: world.condition("RegistryReachable")["status"] == "True", "RegistryReachable=True"
    )


def test_a_hand_edited_deployment_is_put_right(client: httpx.Client, world: World) -> None:
    revision = world.llmd()["status"]["stable"]["revision"]
    name = revision if revision.startswith(MODEL) else f"{MODEL}-{revision}"
    world.kubectl("scale", "deployment", name, "--replicas=0")
    world.until(
        lambda: world.stack.get("deployment", name)["spec"]["replicas"] == 1, "replicas put right"
    )
    world.until(lambda: world.serves("2"), "serving again")


def test_a_deleted_key_secret_means_a_new_key_and_a_void_old_one(
    client: httpx.Client, world: World
) -> None:
    old = key(world)
    world.kubectl("delete", "secret", "web-team-llm-key")
    world.until(
        lambda: "web-team-llm-key" in world.kubectl("get", "secrets", "-o", "name"), "a new Secret"
    )
    assert key(world) != old
    assert client.get("/readyz").status_code == 200
    client.headers["Authorization"] = f"Bearer {key(world)}"
    world.until(
        lambda: client.post("/v1/completions", json=completion("hello")).is_success,
        "the new key to work",
    )
    refused = client.post(
        "/v1/completions", json=completion("hello"), headers={"Authorization": f"Bearer {old}"}
    )
    assert refused.status_code == 401


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system can only be mounted by root")
def test_a_full_disk_is_named(client: httpx.Client, world: World, tmp_path: Path) -> None:
    disk = tmp_path / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    try:
        world.kubectl("apply", "-f", "-", stdin=small_volume(disk))
        other = DEPLOYMENT.replace(f"name: {MODEL}}}\nspec:", "name: cramped}\nspec:", 1)
        cache = "  modelCache: {persistentVolumeClaim: {claimName: small}}\n"
        world.kubectl("apply", "-f", "-", stdin=other + cache)
        world.until(lambda: world.condition("Ready", "cramped")["reason"] == "DiskFull", "DiskFull")
        assert "free" in world.condition("Ready", "cramped")["message"]
        assert "DiskFull" in world.events()
    finally:
        world.kubectl("delete", "llmd", "cramped", "--ignore-not-found", "--wait=true")
        world.until(
            lambda: "cramped" not in world.kubectl("get", "pods", "-o", "name"), "its pods gone"
        )
        subprocess.run(["umount", "-l", str(disk)], check=False)


def small_volume(folder: Path) -> str:
    return f"""
apiVersion: v1
kind: PersistentVolume
metadata: {{name: small}}
spec:
  capacity: {{storage: 64Ki}}
  accessModes: [ReadWriteMany]
  storageClassName: ""
  hostPath: {{path: {folder}}}
  claimRef: {{namespace: default, name: small}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: small}}
spec:
  accessModes: [ReadWriteMany]
  storageClassName: ""
  volumeName: small
  resources: {{requests: {{storage: 64Ki}}}}
"""


def test_a_revoked_key_stops_within_seconds(client: httpx.Client, world: World) -> None:
    world.kubectl("delete", "llmkey", "web-team")
    world.until(
        lambda: client.post("/v1/completions", json=completion("hello")).status_code == 401,
        "the key to be refused",
        5,
    )


def test_deletion_leaves_nothing(client: httpx.Client, world: World) -> None:
    world.kubectl("delete", "llmd", MODEL, "--timeout=60s")
    kinds = "deployments,services,configmaps,serviceaccounts,hpa,pdb,pods"
    world.until(
        lambda: MODEL not in world.kubectl("get", kinds, "-o", "name"),
        "all children collected",
        timeout_seconds=90,
    )
