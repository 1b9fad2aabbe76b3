"""An adapter's way to a verified folder:
its two files, wherever they lie, as whoever the file says."""

import os
from pathlib import Path

import pytest

from llm_runtime import contract
from llm_runtime.contract import PinnedAdapter, RegistryAccess
from llm_runtime.errors import ConfigInvalid, ModelCorrupt, ModelNotFound
from llm_runtime.fetching.fetch_adapter import AdapterFetcher, fetch_adapter, registry_environment
from llm_runtime.fetching.sources import folder_name
from llm_runtime.files.verify import is_whole
from unit.runtime.fetching.fakes import VERSION, FolderRegistry, safetensors, write_model

WEIGHTS = {"base_model.model.layer.lora_A.weight": 8, "base_model.model.layer.lora_B.weight": 8}


def write_adapter(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(safetensors(WEIGHTS))
    (folder / "README.md").write_text("made by PEFT")
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> FolderRegistry:
    return FolderRegistry(tmp_path / "registry")


@pytest.fixture
def fetcher(tmp_path: Path, registry: FolderRegistry) -> AdapterFetcher:
    return AdapterFetcher(
        registry, tmp_path / "models", lambda done, total: None, lambda seconds: None, lambda: 0.5
    )


@pytest.mark.parametrize("place", ["", "peft", "model/final/adapter"])
def test_its_two_files_are_brought_wherever_they_lie(
    fetcher: AdapterFetcher, registry: FolderRegistry, place: str
) -> None:
    write_adapter(registry.folder / place)
    folder = fetcher.fetch(VERSION)
    assert is_whole(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]


def test_an_adapter_beside_its_base_is_found(
    fetcher: AdapterFetcher, registry: FolderRegistry
) -> None:
    write_model(registry.folder / "model")
    write_adapter(registry.folder / "peft")
    assert is_whole(fetcher.fetch(VERSION))


def test_a_version_that_was_registered_anew_has_a_folder_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(AdapterFetcher, "fetch", lambda _, version: Path(folder_name(version)))
    access = RegistryAccess(tracking_uri="http://mlflow")
    former = PinnedAdapter(name="legal", model="law", version="1")
    again = former.model_copy(update={"anew": "5f3c"})
    assert fetch_adapter(former, access, tmp_path) != fetch_adapter(again, access, tmp_path)


def test_of_several_the_sub_path_names_one(
    fetcher: AdapterFetcher, registry: FolderRegistry
) -> None:
    for name in ("a", "b"):
        write_adapter(registry.folder / name)
    with pytest.raises(ConfigInvalid, match=r"several adapters: a, b; .*subPath"):
        fetcher.fetch(VERSION)
    assert is_whole(fetcher.fetch(VERSION.model_copy(update={"sub_path": "b"})))


def test_without_one_it_says_what_to_register(
    fetcher: AdapterFetcher, registry: FolderRegistry
) -> None:
    write_model(registry.folder)
    with pytest.raises(ModelNotFound, match="save_pretrained"):
        fetcher.fetch(VERSION)
    assert not is_whole(fetcher.models)


def test_a_pickle_is_refused_with_the_way_out(
    fetcher: AdapterFetcher, registry: FolderRegistry
) -> None:
    folder = write_adapter(registry.folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelNotFound, match=r"is a pickle.*safe_serialization=True"):
        fetcher.fetch(VERSION)


def test_a_truncated_file_never_gets_its_final_name(
    fetcher: AdapterFetcher, registry: FolderRegistry
) -> None:
    weights = write_adapter(registry.folder) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(ModelCorrupt, match=r"adapter_model\.safetensors"):
        fetcher.fetch(VERSION)
    assert [path.name for path in fetcher.models.iterdir() if not path.name.startswith(".")] == []


def test_mlflows_client_is_who_the_file_says_and_then_again_who_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(contract.ENV_MLFLOW_USERNAME, "before")
    monkeypatch.delenv(contract.ENV_MLFLOW_PASSWORD, raising=False)
    monkeypatch.delenv(contract.ENV_MLFLOW_CA_FILE, raising=False)
    with registry_environment(RegistryAccess(tracking_uri="http://m", token="t", ca="PEM")):
        assert os.environ[contract.ENV_MLFLOW_TOKEN] == "t"
        assert contract.ENV_MLFLOW_USERNAME not in os.environ
        assert Path(os.environ[contract.ENV_MLFLOW_CA_FILE]).read_text() == "PEM"
    assert os.environ[contract.ENV_MLFLOW_USERNAME] == "before"
    assert contract.ENV_MLFLOW_CA_FILE not in os.environ
    with registry_environment(RegistryAccess(tracking_uri="http://m")):
        assert os.environ[contract.ENV_MLFLOW_USERNAME] == "before"
