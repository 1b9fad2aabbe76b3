"""`llm-runtime push` to a real MLflow server, and `fetch` of what it made."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from devstack.ports import free_port
from devstack.registry import MlflowServer
from llm_runtime.__main__ import cli
from llm_runtime.commands import publish
from llm_runtime.contract import MlflowVersion, ModelConfig
from llm_runtime.fetching.fetch import fetch
from mlflow_fixtures import mlflow_server
from unit.runtime.fetching.fakes import safetensors, write_model

__all__ = ["mlflow_server"]


@pytest.fixture
def name() -> str:
    return f"bot-{uuid.uuid4().hex[:8]}"


def push(uri: str, folder: Path, name: str, *more: str) -> Result:
    return CliRunner().invoke(
        cli, ["push", str(folder), "--name", name, "--tracking-uri", uri, *more]
    )


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri, uri)


def versions(uri: str, name: str) -> list[str]:
    return sorted(
        version.version for version in client(uri).search_model_versions(f"name = '{name}'")
    )


def write_adapter(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    settings = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "org/base", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tensors = {f"base_model.model.model.layers.0.q_proj.lora_{side}.weight": 8 for side in "AB"}
    (folder / "adapter_model.safetensors").write_bytes(safetensors(tensors))
    (folder / "README.md").write_text("not needed to serve")
    return folder


@pytest.mark.parametrize("sharded", [False, True])
def test_what_was_pushed_is_fetched_byte_for_byte(
    mlflow_server: str, tmp_path: Path, name: str, sharded: bool
) -> None:
    source = write_model(tmp_path / "source", sharded=sharded)
    pushed = push(
        mlflow_server,
        source,
        name,
        "--alias",
        "champion",
        "--tag",
        "team=web",
        "--experiment",
        "uploads",
    )
    assert pushed.exit_code == 0, pushed.stderr
    assert "verified" in pushed.stderr
    manifest = yaml.safe_load(pushed.stdout)
    assert manifest["spec"]["model"]["mlflow"] == {"name": name, "alias": "champion"}
    found = client(mlflow_server).get_model_version_by_alias(name, "champion")
    assert (found.version, found.tags["team"], found.tags[publish.KIND_TAG]) == (
        "1",
        "web",
        "model",
    )
    folder = fetch(
        ModelConfig(
            name=name,
            mlflow=MlflowVersion(tracking_uri=mlflow_server, name=name, version=found.version),
        ),
        tmp_path / "models",
    )
    for file in source.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()


def test_named_chat_templates_come_along(mlflow_server: str, tmp_path: Path, name: str) -> None:
    source = write_model(tmp_path / "source")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates/tool_use.jinja").write_text("{{ tools }}")
    pushed = push(mlflow_server, source, name)
    assert pushed.exit_code == 0, pushed.stderr
    model = ModelConfig(
        name=name, mlflow=MlflowVersion(tracking_uri=mlflow_server, name=name, version="1")
    )
    folder = fetch(model, tmp_path / "models")
    assert (folder / "chat_template-tool_use.jinja").read_text() == "{{ tools }}"


@pytest.mark.torch
def test_a_pushed_model_is_loaded_after_its_fetch(
    mlflow_server: str, tmp_path: Path, name: str
) -> None:
    pytest.importorskip("torch")
    from llm_runtime.contract import EngineConfig
    from llm_runtime.loading.load import load
    from unit.runtime import tiny_model

    source = tiny_model.make(tmp_path / "source")
    assert push(mlflow_server, source, name).exit_code == 0
    model = ModelConfig(
        name=name, mlflow=MlflowVersion(tracking_uri=mlflow_server, name=name, version="1")
    )
    engine = EngineConfig(device="cpu", max_model_length=64, max_batch_size=2, max_batch_tokens=32)
    load(fetch(model, tmp_path / "models"), engine, model)


def test_a_tokenizer_that_lies_apart_and_pickles_beside_are_put_right(
    mlflow_server: str, tmp_path: Path, name: str
) -> None:
    source = tmp_path / "source"
    write_model(source / "model", tokenizer=False)
    write_model(source / "components/tokenizer").joinpath("model.safetensors").unlink()
    (source / "model/pytorch_model.bin").write_bytes(b"\x80\x04 pickle")
    assert push(mlflow_server, source, name).exit_code == 0
    version = client(mlflow_server).get_model_version(name, "1")
    files = {entry.path for entry in client(mlflow_server).list_artifacts(version.run_id, "model")}
    assert "model/tokenizer.json" in files
    assert "model/pytorch_model.bin" not in files


def test_the_same_files_make_no_second_version_but_the_alias_moves_to_them(
    mlflow_server: str, tmp_path: Path, name: str
) -> None:
    first = write_model(tmp_path / "first")
    second = write_model(tmp_path / "second", sharded=True)
    push(mlflow_server, first, name, "--alias", "champion")
    push(mlflow_server, second, name, "--alias", "champion")
    again = push(mlflow_server, first, name, "--alias", "champion")
    assert "version 1 holds these very files already" in again.stderr
    assert versions(mlflow_server, name) == ["1", "2"]
    assert client(mlflow_server).get_model_version_by_alias(name, "champion").version == "1"
    assert push(mlflow_server, first, name, "--force").exit_code == 0
    assert versions(mlflow_server, name) == ["1", "2", "3"]


def test_an_adapter_gets_a_version_that_names_its_base(
    mlflow_server: str, tmp_path: Path, name: str
) -> None:
    adapter = write_adapter(tmp_path / "legal")
    pushed = push(mlflow_server, adapter, name, "--base-model", "models:/bot/3")
    assert pushed.exit_code == 0, pushed.stderr
    assert yaml.safe_load(pushed.stdout)["spec"]["adapters"] == [
        {"name": name, "mlflow": {"name": name, "version": 1}}
    ]
    version = client(mlflow_server).get_model_version(name, "1")
    assert version.tags[publish.BASE_TAG] == "models:/bot/3"
    files = {
        entry.path for entry in client(mlflow_server).list_artifacts(version.run_id, "adapter")
    }
    assert files == {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}


def test_an_upload_that_breaks_off_leaves_no_version_and_no_run(
    mlflow_server: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def cut(self: Any, run_id: str, path: str, artifact_path: str) -> None:
        raise OSError("connection reset")

    monkeypatch.setattr(MlflowClient, "log_artifact", cut)
    monkeypatch.setattr(publish, "PAUSE_SECONDS", 0.0)
    pushed = push(mlflow_server, write_model(tmp_path / "source"), name, "--experiment", name)
    assert pushed.exit_code == 1
    assert f"model {name} at" in pushed.stderr
    assert versions(mlflow_server, name) == []
    experiment = client(mlflow_server).get_experiment_by_name(name)
    assert client(mlflow_server).search_runs([experiment.experiment_id]) == []


def test_a_fault_that_passes_costs_no_upload(
    mlflow_server: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    faults = [OSError("connection reset")]
    send = MlflowClient.log_artifact

    def hiccup(self: Any, *arguments: str) -> None:
        if faults:
            raise faults.pop()
        send(self, *arguments)

    monkeypatch.setattr(MlflowClient, "log_artifact", hiccup)
    monkeypatch.setattr(publish, "PAUSE_SECONDS", 0.0)
    assert push(mlflow_server, write_model(tmp_path / "source"), name).exit_code == 0
    assert faults == []


@pytest.mark.parametrize("odd", ["Support Bot", "it's", 'the "new" one', "ünï%", "7b.chat"])
def test_any_name_that_mlflow_takes_is_found_again(
    mlflow_server: str, tmp_path: Path, odd: str
) -> None:
    source = write_model(tmp_path / "source")
    pushed = push(mlflow_server, source, odd)
    assert pushed.exit_code == 0, pushed.stderr
    assert yaml.safe_load(pushed.stdout)["spec"]["model"]["mlflow"] == {"name": odd, "version": 1}
    assert "already" in push(mlflow_server, source, odd).stderr


def test_a_server_that_does_not_answer_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    pushed = push(nowhere, write_model(tmp_path / "source"), name)
    assert pushed.exit_code == 1
    assert "check that the MLflow server answers" in pushed.stderr
    assert "Traceback" not in pushed.stderr
    assert pushed.stdout == ""


class Denying(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()

    def log_request(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def denying_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Denying)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_wrong_credentials_are_told_in_one_line(denying_server: str, tmp_path: Path) -> None:
    pushed = push(denying_server, write_model(tmp_path), "bot")
    assert pushed.exit_code == 1
    assert f"MLflow refused model bot at {denying_server} (HTTP 401)" in pushed.stderr
    assert "check the credentials" in pushed.stderr


@pytest.fixture
def server_with_local_artifacts(tmp_path: Path) -> Iterator[str]:
    server = MlflowServer(tmp_path / "mlflow")
    place = server.command.index("--artifacts-destination")
    server.command[place : place + 2] = [
        "--no-serve-artifacts",
        "--default-artifact-root",
        str(tmp_path / "theirs"),
    ]
    server.start()
    yield server.uri
    server.stop()


def test_a_server_that_keeps_artifacts_on_its_own_disk_is_refused(
    server_with_local_artifacts: str, tmp_path: Path, name: str
) -> None:
    pushed = push(server_with_local_artifacts, write_model(tmp_path / "source"), name)
    assert pushed.exit_code == 1
    assert "--artifacts-destination" in pushed.stderr
    assert not list((tmp_path / "theirs").glob("**/*.safetensors"))
