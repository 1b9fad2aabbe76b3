"""Adapters of a registry that wants a password:
the serving container never has it, whatever becomes of the other."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from devstack.registry import push, set_alias
from e2e.world import MODEL, World
from guarded_mlflow import ADMIN, READER, ask, guarded_mlflow
from unit.runtime import lora_models

pytestmark = pytest.mark.e2e

NAME = "guarded"
ADAPTER = "guarded-legal"
LATER = "another password than before"
DEPLOYMENT = f"""
apiVersion: llm-operator.dev/v1alpha1
kind: LLMDeployment
metadata: {{name: {NAME}}}
spec:
  model: {{mlflow: {{name: {MODEL}, version: 1}}}}
  adapters:
    - {{name: legal, mlflow: {{name: {ADAPTER}, alias: champion, connection: guarded}}}}
  engine: {{maxModelLength: 256, maxBatchSize: 8}}
  server: {{completionCache: {{enabled: false}}}}
  access: {{authentication: Disabled}}
  resources: {{requests: {{cpu: 100m, memory: 256Mi}}}}
"""


@dataclass
class Guarded:
    """The registry, and the folder that the operator reads the pods' account from."""

    uri: str
    account: Path

    def set_password(self, password: str) -> None:
        (self.account / "password").write_text(password)


@pytest.fixture(scope="module")
def guarded(
    world: World, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    """Three versions of an adapter, the first being the champion,
    on a server of which the operator knows."""
    folder = tmp_path_factory.mktemp("guarded")
    for name, (user, password) in (("operator", ADMIN), ("pods", READER)):
        (folder / name).mkdir()
        (folder / name / "username").write_text(user)
        (folder / name / "password").write_text(password)
    with guarded_mlflow(folder) as uri, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN[0])
        patch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN[1])
        for seed, alias in enumerate(("champion", None, None)):
            push(
                uri,
                ADAPTER,
                lora_models.save_adapter(models["first"], folder / str(seed), seed),
                alias=alias,
            )
        connection = {
            "trackingUri": uri,
            "credentialsFolder": str(folder / "operator"),
            "podCredentialsFolder": str(folder / "pods"),
        }
        namespace = ("-n", "llm-operator-system")
        config = json.loads(world.kubectl("get", "cm", "llm-operator", *namespace, "-o", "json"))[
            "data"
        ]
        text = config["config.yaml"].replace(
            "connections:", f"connections:\n  guarded: {json.dumps(connection)}"
        )
        change = json.dumps({"data": {"config.yaml": text}})
        world.kubectl("patch", "cm", "llm-operator", *namespace, "--type=merge", "-p", change)
        world.kubectl(
            "annotate", "pod", "--all", *namespace, "told=yes"
        )  # It looks at its ConfigMap at once.
        yield Guarded(uri, folder / "pods")


@pytest.fixture(scope="module")
def client(world: World, guarded: Guarded) -> Iterator[httpx.Client]:
    world.kubectl("apply", "-f", "-", stdin=DEPLOYMENT)
    world.kubectl("wait", f"llmd/{NAME}", "--for=condition=Ready", "--timeout=180s")
    with httpx.Client(
        base_url=world.stack.service_url(NAME), timeout=60, trust_env=False
    ) as session:
        world.until(lambda: answer(session) is not None, "the adapter")
        yield session
    world.kubectl("delete", "llmd", NAME, "--timeout=60s")


def answer(session: httpx.Client) -> str | None:
    """The adapter's; None while it is not there, or the pod is not ready."""
    body = {"model": f"{NAME}:legal", "prompt": "hello", "temperature": 0, "max_tokens": 12}
    with suppress(httpx.TransportError):
        said = session.post("/v1/completions", json=body, headers={"Connection": "close"})
        return str(said.json()["choices"][0]["text"]) if said.is_success else None
    return None


def the_pod(world: World) -> dict[str, Any]:
    (pod,) = world.stack.get("pods", "-l", f"llm-operator.dev/deployment={NAME}")["items"]
    return dict(pod)


def version(world: World) -> str | None:
    """The one that answers in all pods, by the operator's word."""
    ready = world.condition("AdaptersReady", NAME)["status"] == "True"
    return str(world.llmd(NAME)["status"]["adapters"][0]["version"]) if ready else None


def processes(pod: dict[str, Any], word: str) -> list[int]:
    """Those of the pod with this word in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            told = command + (entry / "environ").read_bytes()
            if word.encode() in command and any(
                pod["metadata"][each].encode() in told for each in ("uid", "name")
            ):
                found.append(int(entry.name))
    return found


def mounted(world: World, pod: dict[str, Any], container: dict[str, Any]) -> bytes:
    """All that the container's volumes hold."""
    volumes = world.stack.folder / "node" / "pods" / pod["metadata"]["uid"] / "volumes"
    files = [
        file for each in container["volumeMounts"] for file in (volumes / each["name"]).rglob("*")
    ]
    return b"\n".join(file.read_bytes() for file in files if file.is_file())


def test_the_serving_container_has_no_credentials_in_files_or_environment(
    client: httpx.Client, world: World
) -> None:
    pod = the_pod(world)
    secret = READER[1].encode()
    (runtime,), adapters = pod["spec"]["containers"], pod["spec"]["initContainers"][-1]
    assert secret in mounted(world, pod, adapters)
    assert secret not in mounted(world, pod, runtime)
    serving = processes(pod, "serve")
    assert serving
    for process in serving:
        assert secret not in Path(f"/proc/{process}/environ").read_bytes()
    assert READER[1] not in json.dumps(client.get("/status").json())


def test_a_moved_version_waits_for_credentials_that_work_and_the_one_before_answers(
    client: httpx.Client, world: World, guarded: Guarded
) -> None:
    before = the_pod(world)
    first = answer(client)
    change = {"username": READER[0], "password": LATER}
    ask(guarded.uri, "2.0/mlflow/users/update-password", ADMIN, method="PATCH", **change)
    set_alias(guarded.uri, ADAPTER, "champion", "2")
    world.until(
        lambda: world.condition("AdaptersReady", NAME)["reason"] == "RegistryDenied", "the refusal"
    )
    assert answer(client) == first
    guarded.set_password(LATER)
    world.until(lambda: version(world) == "2", "the new version")
    assert answer(client) != first
    after = the_pod(world)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0
    assert LATER.encode() not in mounted(world, after, after["spec"]["containers"][0])


def test_a_killed_fetcher_comes_back_and_the_server_serves_on(
    client: httpx.Client, world: World, guarded: Guarded
) -> None:
    before = answer(client)
    for process in processes(the_pod(world), "llm_runtime.fetcher"):
        os.kill(process, signal.SIGKILL)
    world.until(
        lambda: the_pod(world)["status"]["initContainerStatuses"][-1]["restartCount"] == 1,
        "its restart",
    )
    world.until(lambda: answer(client) == before, "the same answer")
    assert the_pod(world)["status"]["containerStatuses"][0]["restartCount"] == 0
    set_alias(guarded.uri, ADAPTER, "champion", "3")
    world.until(lambda: version(world) == "3", "the next version")
    assert "restart 1 of container adapters" in world.events()
