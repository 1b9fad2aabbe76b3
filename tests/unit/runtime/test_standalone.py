"""A server that no operator manages: which keys it takes from where,
and a whole life of one, by the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import HTTPConnection

from devstack.ports import free_port
from harness import KEY, chat_body, key_file, record
from llm_runtime.api.server import Server
from llm_runtime.assembly import ModelSource, assemble
from llm_runtime.contract import RuntimeConfig
from llm_runtime.errors import ConfigInvalid
from llm_runtime.settings import Environment, Settings
from unit.runtime import tiny_model
from waiting import eventually

RUNTIME = Path(__file__).parents[3] / "runtime"


async def never(*_: Any) -> Any:
    raise AssertionError


def assembled(
    file: Path | None = None, url: str = "none", access: str = "Required", **given: str
) -> Server:
    config = RuntimeConfig.model_validate(
        {"model": {"name": "m", "path": "/m"}, "authentication": access}
    )
    environment = Environment.model_validate({**given, "database_url": url})
    return assemble(Settings(config, environment), ModelSource(never, never, never), file)


def test_a_key_file_is_the_only_source_and_there_is_no_management(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(key_file(record(KEY)))
    found = assembled(file, f"sqlite:///{tmp_path / 'no.db'}", api_key="k", admin_api_key="a")
    assert found.callers.keys
    assert found.callers.keys.find(KEY)
    assert (found.callers.keys.find("k"), found.callers.keys.find("a")) == (None, None)
    assert found.management is None


def test_a_key_file_of_a_deployment_without_authentication_asks_for_no_key_and_brings_its_tiers(
    tmp_path: Path,
) -> None:
    file = tmp_path / "keys.json"
    file.write_text(
        '{"salt": "s", "tiers": [{"name": "all", "requestsPerMinute": 7}], "defaultTier": "all"}'
    )
    found = assembled(file, access="Disabled")
    caller = found.callers.identify(
        HTTPConnection({"type": "http", "headers": [], "client": ("10.0.0.7", 4711)})
    )
    assert (caller.id, caller.tier.requests_per_minute, found.management) == (
        "ip:10.0.0.7",
        7,
        None,
    )


def test_without_a_file_the_environment_and_the_database_work_together(tmp_path: Path) -> None:
    found = assembled(None, f"sqlite:///{tmp_path / 'k.db'}", api_key="k", admin_api_key="a")
    assert found.callers.keys
    assert found.management
    user = found.callers.keys.find("k")
    boss = found.callers.keys.find("a")
    assert user
    assert boss
    assert (user.admin, boss.admin) == (False, True)
    assert found.management.issuer in found.parts


def test_the_environment_is_enough() -> None:
    found = assembled(api_key="k")
    assert found.callers.keys
    assert (
        bool(found.callers.keys.find("k")),
        found.callers.keys.find("other"),
        found.database,
    ) == (True, None, None)


def test_a_server_that_could_never_have_a_key_does_not_start() -> None:
    with pytest.raises(ConfigInvalid, match="API_KEY"):
        assembled()
    assert assembled(access="Disabled").callers.keys is None


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": str(RUNTIME),
        "DATABASE_URL": f"sqlite:///{tmp_path / 'keys.db'}",
        "ADMIN_API_KEY": "the-administrators-key",
        "MODEL_PATH": str(tmp_path / "first"),
        "SERVER__LAZY_LOAD": "true",
        "SERVER__DRAIN_SECONDS": "1",
        "ENGINE__DEVICE": "cpu",
        "ENGINE__MAX_MODEL_LENGTH": "200",
    }


@pytest.fixture
def url(tmp_path: Path, environment: dict[str, str]) -> Iterator[str]:
    for seed, name in enumerate(("first", "second")):
        tiny_model.make(tmp_path / name, seed=seed)
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "llm_runtime",
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    eventually(lambda: _status(f"{address}/readyz") == 200)
    yield address
    process.terminate()
    assert process.wait(20) == 0
    log.close()


def _status(url: str) -> int:
    try:
        return httpx.get(url, trust_env=False).status_code
    except httpx.TransportError:
        return 0


@pytest.mark.torch
def test_a_whole_life_without_an_operator(
    url: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    def command(*words: str) -> str:
        line = [sys.executable, "-m", "llm_runtime", *words]
        return subprocess.run(
            line, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    def post(path: str, key: str, **body: Any) -> httpx.Response:
        return httpx.post(
            url + path, json=body, headers={"X-API-Key": key}, trust_env=False, timeout=120
        )

    def says(key: str, model: str) -> int:
        return post("/v1/chat/completions", key, **chat_body(model=model, max_tokens=5)).status_code

    made = json.loads(command("keys", "create", "web", "--json"))
    eventually(
        lambda: (
            httpx.get(f"{url}/v1/key", headers={"X-API-Key": made["api_key"]}).status_code == 200
        )
    )
    assert says(made["api_key"], "first") == 200, "the first request has loaded the model"
    boss = "the-administrators-key"
    other = post("/generate_apikey", boss, username="myuser").json()["api_key"]
    loaded = post(
        "/load_model", boss, model_name=str(tmp_path / "second"), device="cpu", hf_token=None
    )
    assert (loaded.status_code, loaded.json()["model_name"]) == (200, "second")
    assert (says(other, "second"), says(other, "first")) == (200, 404)
    broken = post("/load_model", boss, model_name=str(tmp_path))
    assert broken.status_code in (400, 404)
    assert says(other, "second") == 200
    assert post("/unload_model", boss).status_code == 200
    assert (says(other, "second"), _status(f"{url}/readyz")) == (503, 503)
    assert post("/load_model", boss, model_name="second").status_code == 200
    assert says(other, "second") == 200
    command("keys", "revoke", made["id"])
    eventually(lambda: says(made["api_key"], "second") == 401)
    text = (tmp_path / "log").read_text()
    for secret in (boss, made["api_key"], other):
        assert secret not in text
