"""Fetching from a real MLflow server, over its artifact proxy and its REST API."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from devstack.ports import free_port
from devstack.registry import push
from llm_runtime.contract import MlflowVersion, ModelConfig
from llm_runtime.errors import DiskFull, ModelCorrupt, ModelNotFound, RegistryUnreachable
from llm_runtime.fetching import fetch as module
from llm_runtime.fetching import retry
from llm_runtime.fetching.fetch import fetch
from llm_runtime.fetching.part import Part
from llm_runtime.files.verify import is_whole
from mlflow_fixtures import mlflow_server
from unit.runtime.fetching.fakes import safetensors, write_model, write_tokenizer

__all__ = ["mlflow_server"]


def pinned(tracking_uri: str, source: Path, **more: str) -> ModelConfig:
    name = f"bot-{uuid.uuid4().hex[:8]}"
    version = push(tracking_uri, name, source)
    return ModelConfig(
        name=name,
        mlflow=MlflowVersion(tracking_uri=tracking_uri, name=name, version=version, **more),
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "ATTEMPTS", 2)


def test_a_raw_folder_arrives_whole_and_is_linked(mlflow_server: str, tmp_path: Path) -> None:
    config = pinned(mlflow_server, write_model(tmp_path / "source", sharded=True))
    seen: list[tuple[int, int]] = []
    folder = fetch(config, tmp_path / "models", lambda done, total: seen.append((done, total)))
    assert is_whole(folder)
    assert (tmp_path / "models/current").resolve() == folder
    assert seen[-1][0] == seen[-1][1] > 0
    for file in (tmp_path / "source").iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()


def test_a_logged_pipeline_arrives_with_its_tokenizer(mlflow_server: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_model(source / "model", tokenizer=False)
    write_tokenizer(source / "components/tokenizer")
    (source / "MLmodel").write_text(
        "flavors: {transformers: {model_binary: model}, python_function: {}}"
    )
    folder = fetch(pinned(mlflow_server, source), tmp_path / "models")
    assert {"config.json", "model.safetensors", "tokenizer.json"} < {
        file.name for file in folder.iterdir()
    }


def test_sub_path_chooses_one_of_several(mlflow_server: str, tmp_path: Path) -> None:
    write_model(tmp_path / "source/a")
    write_model(tmp_path / "source/b", sharded=True)
    folder = fetch(pinned(mlflow_server, tmp_path / "source", sub_path="b"), tmp_path / "models")
    assert (folder / "model.safetensors.index.json").exists()


def test_what_is_there_needs_no_registry(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pinned(mlflow_server, write_model(tmp_path / "source"))
    folder = fetch(config, tmp_path / "models")
    monkeypatch.setattr(module, "MlflowRegistry", lambda uri: None)
    assert fetch(config, tmp_path / "models") == folder


def test_an_unknown_version_or_model_is_not_found(mlflow_server: str, tmp_path: Path) -> None:
    for name, version in (("nobody", "1"), ("nobody", "x")):
        missing = MlflowVersion(tracking_uri=mlflow_server, name=name, version=version)
        with pytest.raises(ModelNotFound):
            fetch(ModelConfig(name="x", mlflow=missing), tmp_path / "models")


@pytest.mark.usefixtures("quick")
def test_a_silent_server_is_unreachable(tmp_path: Path) -> None:
    nowhere = MlflowVersion(tracking_uri=f"http://127.0.0.1:{free_port()}", name="bot", version="1")
    with pytest.raises(RegistryUnreachable, match="check that the MLflow server answers"):
        fetch(ModelConfig(name="x", mlflow=nowhere), tmp_path / "models")


def test_corrupt_weights_leave_nothing_behind(mlflow_server: str, tmp_path: Path) -> None:
    write_model(tmp_path / "source")
    (tmp_path / "source/model.safetensors").write_bytes(safetensors({"a": 100})[:-1])
    with pytest.raises(ModelCorrupt, match=r"model.safetensors is not a whole"):
        fetch(pinned(mlflow_server, tmp_path / "source"), tmp_path / "models")
    assert [
        path for path in (tmp_path / "models").iterdir() if not path.name.startswith(".lock-")
    ] == []


def test_no_flavour_and_no_torch_is_imported(mlflow_server: str, tmp_path: Path) -> None:
    config = pinned(mlflow_server, write_model(tmp_path / "source"))
    script = (
        "import sys; from pathlib import Path; from llm_runtime.contract import ModelConfig;from"
        " llm_runtime.fetching.fetch import"
        " fetch;fetch(ModelConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]));print([name"
        " for name in ('torch', 'transformers', 'mlflow.transformers') if name in sys.modules])"
    )
    command = [
        sys.executable,
        "-c",
        script,
        config.model_dump_json(by_alias=True),
        str(tmp_path / "models"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])}
    assert subprocess.check_output(command, env=environment, text=True).strip() == "[]"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system; the unit tests inject the error")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_too_small_is_told_before_the_download(
    mlflow_server: str, tmp_path: Path, small_disk: Path
) -> None:
    write_model(tmp_path / "source")
    (tmp_path / "source/model.safetensors").write_bytes(safetensors({"a": 30 << 20}))
    with pytest.raises(DiskFull, match=r"needs 30 MiB and 64 to spare, but .* has 80 MiB free"):
        fetch(pinned(mlflow_server, tmp_path / "source"), small_disk)


def test_a_disk_that_fills_up_on_the_way_leaves_nothing_behind(
    mlflow_server: str, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "source")
    (tmp_path / "source/model.safetensors").write_bytes(safetensors({"a": 90 << 20}))
    monkeypatch.setattr(module, "check_room", lambda folder, needed: None)
    with pytest.raises(DiskFull, match=r"became full while downloading model.safetensors"):
        fetch(pinned(mlflow_server, tmp_path / "source"), small_disk)
    assert [path for path in small_disk.iterdir() if not path.name.startswith(".lock-")] == []


KILLED = """
import sys
from pathlib import Path
from llm_runtime.contract import ModelConfig
from llm_runtime.fetching.fetch import fetch
fetch(ModelConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_download_goes_on_where_it_was(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "source")
    (tmp_path / "source/model.safetensors").write_bytes(safetensors({"a": 400 << 20}))
    config = pinned(mlflow_server, tmp_path / "source")
    models = tmp_path / "models"
    command = [sys.executable, "-c", KILLED, config.model_dump_json(by_alias=True), str(models)]
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])}
    )
    while process.poll() is None and not list(models.glob(".partial-*/.mark-model.safetensors")):
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (models / "current").exists()

    starts: list[int] = []
    taken = Part.take

    def take(part: Part, chunks: Iterable[bytes], start: int, etag: str) -> None:
        if part.path.name == ".part-model.safetensors":
            starts.append(start)
        taken(part, chunks, start, etag)

    monkeypatch.setattr(Part, "take", take)
    folder = fetch(config, models)
    assert len(starts) == 1
    assert starts[0] >= 32 << 20
    weights = folder / "model.safetensors"
    manifest = json.loads((folder / "manifest.json").read_text())
    digest = hashlib.sha256((tmp_path / "source/model.safetensors").read_bytes()).hexdigest()
    assert manifest["files"]["model.safetensors"]["sha256"] == digest
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == digest


def test_every_uri_of_a_version_leads_to_its_files(mlflow_server: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    name = pinned(mlflow_server, write_model(tmp_path / "source")).name
    client = MlflowClient(mlflow_server, mlflow_server)
    client.set_registered_model_alias(name, "champion", "1")
    client.transition_model_version_stage(name, "1", "Production")
    run = client.get_model_version(name, "1").run_id
    experiment = client.get_run(run).info.experiment_id
    logged = client.create_logged_model(experiment, name="logged")
    client.log_model_artifacts(logged.model_id, str(tmp_path / "source"))
    client.finalize_logged_model(logged.model_id, "READY")

    def folder(uri: str) -> Path:
        return fetch(
            ModelConfig(name="x", uri=uri, tracking_uri=mlflow_server), tmp_path / "models"
        )

    numbered = {
        folder(f"models:/{name}{end}")
        for end in (
            "/1",
            "@champion",
            "/Production",
            "/latest",
            "/Staging|Production",
            "/Staging|latest",
        )
    }
    assert len(numbered) == 1
    places = {
        folder(f"runs:/{run}/model"),
        folder(f"mlflow-artifacts:/{experiment}/{run}/artifacts/model"),
        folder(f"models:/{logged.model_id}"),
    }
    assert len(places | numbered) == 4
    for found in places | numbered:
        assert is_whole(found)
        assert (found / "model.safetensors").read_bytes() == (
            tmp_path / "source/model.safetensors"
        ).read_bytes()
    for nobody in (
        f"models:/{name}@nobody",
        f"models:/{name}/Staging",
        f"models:/{name}/Staging|Archived",
        "models:/nobody/latest",
    ):
        with pytest.raises(ModelNotFound):
            folder(nobody)
