"""What goes wrong between an MLflow server and a folder,
and many at once: a real server, a front before it."""

import base64
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from control_plane.front import Front, before
from devstack.registry import push
from llm_runtime.contract import MlflowVersion, ModelConfig, PinnedAdapter, RegistryAccess
from llm_runtime.errors import ConfigInvalid, DiskFull, RegistryDenied, RegistryUnreachable
from llm_runtime.fetching import fetch as module
from llm_runtime.fetching import retry
from llm_runtime.fetching.fetch import fetch
from llm_runtime.fetching.fetch_adapter import fetch_adapter
from llm_runtime.files.package import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from llm_runtime.files.verify import is_whole
from mlflow_fixtures import mlflow_server
from secrets_told import invented
from unit.runtime.fetching.fakes import safetensors, write_model

__all__ = ["mlflow_server"]

WEIGHTS_BYTES = 4 << 20
PASSWORD = invented("mlflow-password")
TOKEN = invented("mlflow-token")


@pytest.fixture
def front(mlflow_server: str) -> Iterator[Front]:
    with before(mlflow_server) as running:
        yield running


def pinned(front: Front, server: str, source: Path) -> ModelConfig:
    write_model(source)
    (source / "model.safetensors").write_bytes(safetensors({"a": WEIGHTS_BYTES}))
    name = f"bot-{uuid.uuid4().hex[:8]}"
    version = push(server, name, source)
    return ModelConfig(
        name=name, mlflow=MlflowVersion(tracking_uri=front.uri, name=name, version=version)
    )


def test_a_second_start_opens_no_connection(
    front: Front, mlflow_server: str, tmp_path: Path
) -> None:
    config = pinned(front, mlflow_server, tmp_path / "source")
    folder = fetch(config, tmp_path / "models")
    assert front.asked
    front.asked.clear()
    assert fetch(config, tmp_path / "models") == folder
    assert front.asked == []


FETCH = """
import sys
from pathlib import Path
from llm_runtime.contract import ModelConfig
from llm_runtime.fetching.fetch import fetch
print(fetch(ModelConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2])))
"""


def test_ten_processes_on_one_volume_download_once(
    front: Front, mlflow_server: str, tmp_path: Path
) -> None:
    config = pinned(front, mlflow_server, tmp_path / "source")
    command = [
        sys.executable,
        "-c",
        FETCH,
        config.model_dump_json(by_alias=True),
        str(tmp_path / "models"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])}
    racers = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(10)
    ]
    folders = {racer.communicate(timeout=120)[0].strip() for racer in racers}
    assert [racer.returncode for racer in racers] == [0] * 10
    assert len(folders) == 1
    assert is_whole(Path(folders.pop()))
    assert front.downloads() == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_server_that_dies_in_the_middle_of_a_file_and_comes_back(
    front: Front, mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    front.cuts = 2
    config = pinned(front, mlflow_server, tmp_path / "source")
    folder = fetch(config, tmp_path / "models")
    assert is_whole(folder)
    assert (folder / "model.safetensors").read_bytes() == (
        tmp_path / "source/model.safetensors"
    ).read_bytes()
    assert front.downloads().count("model.safetensors") == 3


def test_a_server_that_stays_away_leaves_nothing_at_the_final_path_and_the_next_start_goes_on(
    front: Front, mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "ATTEMPTS", 1)
    front.cuts = 1
    config = pinned(front, mlflow_server, tmp_path / "source")
    with pytest.raises(RegistryUnreachable, match=r"downloading model\.safetensors"):
        fetch(config, tmp_path / "models")
    assert [
        path
        for path in (tmp_path / "models").iterdir()
        if not path.name.startswith((".partial-", ".lock-"))
    ] == []
    assert is_whole(fetch(config, tmp_path / "models"))


def test_an_alias_whose_registry_is_away_serves_what_it_named_last(
    mlflow_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setattr(retry, "ATTEMPTS", 1)
    with before(mlflow_server) as front:
        name = pinned(front, mlflow_server, tmp_path / "source").name
        MlflowClient(mlflow_server, mlflow_server).set_registered_model_alias(name, "champion", "1")
        config = ModelConfig(name="x", uri=f"models:/{name}@champion", tracking_uri=front.uri)
        folder = fetch(config, tmp_path / "models")
    assert fetch(config, tmp_path / "models") == folder
    assert "the registry can't be reached" in caplog.text
    with pytest.raises(RegistryUnreachable):
        fetch(config, tmp_path / "other")


def test_what_a_run_logged_as_a_model_of_its_own(mlflow_server: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server, mlflow_server)
    run = client.create_run("0")
    logged = client.create_logged_model("0", name="mine", source_run_id=run.info.run_id)
    write_model(tmp_path / "source/inside/model")
    client.log_model_artifacts(logged.model_id, str(tmp_path / "source"))
    client.finalize_logged_model(logged.model_id, "READY")
    for end in ("mine", "mine/inside"):
        uri = f"runs:/{run.info.run_id}/{end}"
        assert is_whole(
            fetch(ModelConfig(name="x", uri=uri, tracking_uri=mlflow_server), tmp_path / "models")
        )


@pytest.mark.parametrize(
    ("access", "authorization"),
    [
        (
            {"username": "me", "password": PASSWORD},
            f"Basic {base64.b64encode(f'me:{PASSWORD}'.encode()).decode()}",
        ),
        ({"token": TOKEN}, f"Bearer {TOKEN}"),
    ],
    ids=["password", "token"],
)
def test_an_adapter_comes_with_its_servers_credentials(
    front: Front, mlflow_server: str, tmp_path: Path, access: dict[str, str], authorization: str
) -> None:
    source = tmp_path / "adapter"
    source.mkdir()
    (source / ADAPTER_CONFIG).write_text('{"peft_type": "LORA"}')
    (source / ADAPTER_WEIGHTS).write_bytes(safetensors({"a": 10}))
    name = f"adapter-{uuid.uuid4().hex[:8]}"
    adapter = PinnedAdapter(name="a", model=name, version=push(mlflow_server, name, source))
    front.authorization = authorization
    with pytest.raises(RegistryDenied, match="check the credentials"):
        fetch_adapter(adapter, RegistryAccess(tracking_uri=front.uri), tmp_path / "models")
    assert is_whole(
        fetch_adapter(
            adapter, RegistryAccess(tracking_uri=front.uri, **access), tmp_path / "models"
        )
    )


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    folder = tmp_path / "volume"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("free_bytes", [0, 100 << 10, WEIGHTS_BYTES, WEIGHTS_BYTES + (8 << 10)])
def test_a_disk_that_fills_up_in_any_phase_leaves_what_was_there(
    front: Front,
    mlflow_server: str,
    tmp_path: Path,
    volume: Path,
    free_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing free; then too little for the weights,
    for their last bytes, for what is noted beside them."""
    monkeypatch.setattr(module, "check_room", lambda *_: None)
    before = fetch(pinned(front, mlflow_server, tmp_path / "first"), volume)
    second = pinned(front, mlflow_server, tmp_path / "second")
    there = os.statvfs(volume)
    with (volume / "filler").open("wb") as filler:
        left = max(0, there.f_bavail * there.f_frsize - free_bytes)
        while left > 0:
            left -= filler.write(bytes(min(left, 64 << 10)))
    with pytest.raises(DiskFull):
        fetch(second, volume)
    assert is_whole(before)
    assert (volume / "current").resolve() == before
    assert [path.name for path in volume.glob("*") if path.is_dir() and path != before] == [
        "current"
    ]
    (volume / "filler").unlink()
    assert is_whole(fetch(second, volume))


def test_a_read_only_volume_serves_what_it_has_and_refuses_what_it_has_not(
    front: Front, mlflow_server: str, tmp_path: Path, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "check_room", lambda *_: None)
    config = pinned(front, mlflow_server, tmp_path / "source")
    folder = fetch(config, volume)
    subprocess.run(["mount", "-o", "remount,ro", str(volume)], check=True)
    assert fetch(config, volume) == folder
    with pytest.raises(ConfigInvalid, match="mounted read-only: the model cache must be writable"):
        fetch(pinned(front, mlflow_server, tmp_path / "other"), volume)
