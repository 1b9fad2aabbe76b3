"""A guarded registry on real kubelets:
what fetches adapters has its account, what serves does not."""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from devstack.registry import push
from guarded_mlflow import ADMIN, READER, guarded_mlflow
from kind.site import NAMESPACE, Front, Site, inside
from llm_runtime import contract
from unit.runtime import lora_models, tiny_model

pytestmark = pytest.mark.kind

NAME = "guarded"
MODEL = "guarded-bot"
ACCOUNTS = {"guarded-operator": ADMIN, "guarded-pods": READER}
"""By the Secret of the operator's namespace."""
DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "llm-operator.dev/v1alpha1",
    "kind": "LLMDeployment",
    "metadata": {"name": NAME},
    "spec": {
        "model": {"mlflow": {"name": MODEL, "version": 1, "connection": "guarded"}},
        "engine": {"maxModelLength": 256, "maxBatchSize": 4},
        "server": {"completionCache": {"enabled": False}},
        "access": {"authentication": "Disabled"},
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}},
    },
}
SEARCH = """
import json, pathlib, sys
secret = sys.stdin.buffer.read()
mounts = [line.split() for line in open("/proc/self/mounts")]
folders = [each[1] for each in mounts if each[1].startswith(("/etc/", "/models", "/tmp", "/run/", "/var/"))]
files = [file for folder in folders for file in (pathlib.Path(folder), *pathlib.Path(folder).rglob("*"))]
files += pathlib.Path("/proc").glob("[0-9]*/environ")
read, found = [], []
for file in files:
    if file.is_file():
        read.append(str(file))
        if secret in file.read_bytes():
            found.append(str(file))
print(json.dumps({"read": read, "found": found}))
"""
"""All files of all volumes, and the environment of each process;
the secret comes by standard input."""
TOLD = f"{contract.MODELS_MOUNT}/told"
PLANTED = f"""
import os, sys
open("{TOLD}", "a").write(repr(os.environ))
sys.path.pop(0)
del sys.modules["typer"]
import typer
"""
"""A module that a Python which looks into its working folder imports in the place of its own.
It tells its environment, and goes on as the true one."""
UNGUARDED = ("env", "-u", "PYTHONSAFEPATH", "python", "-c", "import typer")


@pytest.fixture(scope="module")
def registry(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A connection to a server that wants a password, with a model and two adapters."""
    folder = tmp_path_factory.mktemp("guarded")
    with guarded_mlflow(folder, site.cluster.host_address()) as uri:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN[0])
            patch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN[1])
            base = tiny_model.make(folder / "base", seed=0)
            push(uri, MODEL, base)
            for seed, name in enumerate(("legal", "french")):
                push(uri, name, lora_models.save_adapter(base, folder / name, seed))
        for name, account in ACCOUNTS.items():
            site.cluster.kubectl("apply", "-n", NAMESPACE, "-f", "-", stdin=secret(name, account))
        accounts = dict(zip(("credentialsSecret", "podCredentialsSecret"), ACCOUNTS, strict=True))
        site.helm("upgrade", connections={"guarded": {"trackingUri": uri, **accounts}})
        yield
        site.helm("upgrade")
        site.cluster.kubectl("delete", "secret", "-n", NAMESPACE, *ACCOUNTS)


def secret(name: str, account: tuple[str, str]) -> str:
    data = dict(zip(("username", "password"), account, strict=True))
    return json.dumps(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}
    )


@pytest.fixture(scope="module")
def guarded(site: Site, registry: None) -> Iterator[Front]:
    front = Front(site, NAME)
    deploy(front, "legal")
    front.ready()
    yield front
    site.cluster.kubectl("delete", "llmd", NAME, "--ignore-not-found", "--timeout=90s")


def deploy(front: Front, *adapters: str) -> None:
    listed = [
        {"name": name, "mlflow": {"name": name, "version": 1, "connection": "guarded"}}
        for name in adapters
    ]
    body = {**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], "adapters": listed}}
    front.site.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(body))


def answer(front: Front, adapter: str) -> str | None:
    """What it makes of a prompt; None while it is not there."""
    body = {"model": f"{NAME}:{adapter}", "prompt": "hello", "temperature": 0, "max_tokens": 12}
    with suppress(httpx.TransportError):
        said = httpx.post(f"{front.url}/v1/completions", json=body, timeout=60, trust_env=False)
        return str(said.json()["choices"][0]["text"]) if said.is_success else None
    return None


def the_pod(front: Front) -> dict[str, Any]:
    (pod,) = front.site.pods(NAME)
    return dict(pod)


def search(front: Front, container: str) -> dict[str, list[str]]:
    """Which files of this container were read,
    and which of them tell the password of the pods' account."""
    command = (
        "exec",
        "-i",
        the_pod(front)["metadata"]["name"],
        "-c",
        container,
        "--",
        "python",
        "-c",
        SEARCH,
    )
    found: dict[str, list[str]] = json.loads(front.site.cluster.kubectl(*command, stdin=READER[1]))
    return found


def test_the_container_that_serves_has_no_credentials_and_the_one_beside_it_has(
    guarded: Front,
) -> None:
    guarded.until(lambda: answer(guarded, "legal") is not None, "the adapter's answer")
    beside = search(guarded, "adapters")
    assert any(file.endswith(f"/{contract.REGISTRIES_FILE}") for file in beside["found"]), beside
    serving = search(guarded, "runtime")
    read = "\n".join(serving["read"])
    assert "/proc/1/environ" in read
    for folder in (contract.ADAPTERS_MOUNT, contract.KEYS_MOUNT, contract.MODELS_MOUNT):
        assert f"{folder}/" in read
    assert serving["found"] == []


def test_an_adapter_that_is_added_answers_from_the_pod_that_runs(guarded: Front) -> None:
    before = the_pod(guarded)
    deploy(guarded, "legal", "french")
    guarded.until(lambda: answer(guarded, "french") is not None, "the second adapter's answer")
    assert answer(guarded, "french") != answer(guarded, "legal")
    after = the_pod(guarded)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    states = after["status"]["initContainerStatuses"] + after["status"]["containerStatuses"]
    assert {state["name"]: state["restartCount"] for state in states} == {
        "fetch": 0,
        "adapters": 0,
        "runtime": 0,
    }


def test_what_the_server_writes_is_run_by_no_container(site: Site, guarded: Front) -> None:
    """A pod whose sandbox is made anew, as after a restart of its node,
    runs its init containers on its old volumes."""
    pod = the_pod(guarded)
    write = f"open('{contract.SCRATCH_MOUNT}/typer.py', 'w').write({PLANTED!r})"
    inside(pod, site.cluster, "python", "-c", write)
    inside(pod, site.cluster, *UNGUARDED)
    assert TOLD in search(guarded, "runtime")["read"], "what was planted can be run"
    inside(pod, site.cluster, "rm", TOLD)
    node = pod["spec"]["nodeName"]
    sandbox = site.cluster.node_exec(
        node, "crictl", "pods", "--name", pod["metadata"]["name"], "--quiet"
    )
    site.cluster.node_exec(node, "crictl", "stopp", sandbox.strip())
    guarded.until(
        lambda: the_pod(guarded)["status"]["containerStatuses"][0]["restartCount"], "its restart"
    )
    guarded.until(lambda: answer(guarded, "legal") is not None, "the adapter's answer")
    serving = search(guarded, "runtime")
    assert f"{contract.SCRATCH_MOUNT}/typer.py" in serving["read"]
    assert TOLD not in serving["read"]
    assert serving["found"] == []


def test_the_credentials_go_with_the_deployment(site: Site, guarded: Front) -> None:
    assert site.get("secret", f"{NAME}-adapters")["data"]
    site.cluster.kubectl("delete", "llmd", NAME, "--wait=true", "--timeout=90s")
    names = (f"{NAME}-adapters", f"{NAME}-registry")
    guarded.until(
        lambda: not site.cluster.kubectl("get", "secret", *names, "--ignore-not-found"),
        "no Secret of it",
    )
