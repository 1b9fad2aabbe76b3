"""Weights from an S3 store: through MLflow's proxy, at addresses that its server signs,
and asked directly."""

import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from devstack.registry import mlflow_server, push
from devstack.store import BUCKET, client, s3_store
from llm_runtime.contract import MlflowVersion, ModelConfig
from llm_runtime.errors import ModelNotFound, RegistryDenied
from llm_runtime.fetching.fetch import fetch
from llm_runtime.fetching.part import Part, Piece
from llm_runtime.fetching.registry import MlflowRegistry
from llm_runtime.files.verify import is_whole
from unit.runtime.fetching.fakes import safetensors, write_model

WEIGHTS_BYTES = 40 << 20


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    with s3_store(tmp_path_factory.mktemp("store")) as environment:
        yield environment


@pytest.fixture(scope="module")
def server(store: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    with mlflow_server(folder, artifacts=f"s3://{BUCKET}/mlflow", env=store) as running:
        yield running.uri


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that came in pieces."""
    names: list[str] = []
    taken = Part.take_pieces

    def take(part: Part, first: Iterable[bytes], piece: Piece, etag: str) -> None:
        names.append(part.path.name)
        taken(part, first, piece, etag)

    monkeypatch.setattr(Part, "take_pieces", take)
    return names


def write(folder: Path) -> Path:
    write_model(folder)
    (folder / "model.safetensors").write_bytes(
        safetensors({"a": WEIGHTS_BYTES})[:-8] + os.urandom(8)
    )
    return folder


def pushed(server: str, source: Path) -> ModelConfig:
    name = f"bot-{uuid.uuid4().hex[:8]}"
    version = push(server, name, write(source))
    return ModelConfig(
        name=name, mlflow=MlflowVersion(tracking_uri=server, name=name, version=version)
    )


def check(folder: Path, source: Path) -> None:
    assert is_whole(folder)
    assert (folder / "model.safetensors").read_bytes() == (
        source / "model.safetensors"
    ).read_bytes()


def test_a_proxied_store_sends_whole_files(
    server: str, tmp_path: Path, pieces: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    check(fetch(pushed(server, tmp_path / "source"), tmp_path / "models"), tmp_path / "source")
    assert pieces == []


def test_at_signed_addresses_large_files_come_in_pieces(
    server: str, tmp_path: Path, pieces: list[str]
) -> None:
    check(fetch(pushed(server, tmp_path / "source"), tmp_path / "models"), tmp_path / "source")
    assert pieces == [".part-model.safetensors"]


def test_a_store_that_is_asked_directly(
    store: Mapping[str, str], tmp_path: Path, pieces: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    for file in write(tmp_path / "source").iterdir():
        client(store).upload_file(str(file), BUCKET, f"plain/bot/{file.name}")
    check(
        fetch(ModelConfig(name="x", uri=f"s3://{BUCKET}/plain/bot"), tmp_path / "models"),
        tmp_path / "source",
    )
    assert pieces == [".part-model.safetensors"]
    with pytest.raises(ModelNotFound):
        fetch(ModelConfig(name="x", uri=f"s3://{BUCKET}/plain/nothing"), tmp_path / "models")
    with pytest.raises((ModelNotFound, RegistryDenied)):
        fetch(ModelConfig(name="x", uri="s3://nobody-has-this/bot"), tmp_path / "models")


def test_a_file_that_is_replaced_while_it_comes_is_no_mix_of_both(
    store: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """moto knows no If-Range. A checksum that came with the upload is checked."""
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    key = {"Bucket": BUCKET, "Key": "changing/weights"}
    old = b"A" * (1 << 20)
    new = b"B" * (1 << 20)
    etag = client(store).put_object(**key, Body=old)["ETag"]
    part = Part(tmp_path, "weights", len(old))

    def half() -> Iterator[bytes]:
        yield old[: 1 << 19]
        raise ConnectionError

    with pytest.raises(ConnectionError):
        part.take(half(), 0, etag)
    client(store).put_object(**key, Body=new, ChecksumAlgorithm="SHA256")
    MlflowRegistry("http://127.0.0.1:1").download(f"s3://{BUCKET}/changing", "weights", part)
    assert part.path.read_bytes() == new
    assert part.promise == f"sha256:{part.sha256}"
