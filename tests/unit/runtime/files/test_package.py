"""What of a folder may go to the registry, and what is refused before a byte is sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_runtime.commands.publish import Wish
from llm_runtime.errors import ConfigInvalid, ModelCorrupt, ModelNotFound, ModelUnsupported
from llm_runtime.files.package import package
from unit.runtime.fetching.fakes import safetensors, write_model


def write_adapter(
    folder: Path, tensors: tuple[str, ...] = ("q.lora_A.weight", "q.lora_B.weight")
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(safetensors(dict.fromkeys(tensors, 4)))
    return folder


def test_the_digest_is_that_of_names_and_contents_wherever_they_lie(tmp_path: Path) -> None:
    one = write_model(tmp_path / "one")
    other = write_model(tmp_path / "deep/other")
    assert package(one).digest() == package(other).digest()
    (other / "tokenizer_config.json").write_text('{"a": 1}')
    assert package(one).digest() != package(other).digest()


def test_only_what_serves_is_taken(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    for name in ("optimizer.pt", "pytorch_model.bin", "notes.txt"):
        (folder / name).write_bytes(b"x")
    assert set(package(folder).files) == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip


def test_an_adapter_is_told_from_a_model_and_names_its_base(tmp_path: Path) -> None:
    found = package(write_adapter(tmp_path))
    assert (found.kind, found.base) == ("adapter", "org/base")
    assert set(found.files) == {"adapter_config.json", "adapter_model.safetensors"}


def test_pickled_weights_are_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelUnsupported, match="llm-runtime convert"):
        package(folder)
    adapter = write_adapter(tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelNotFound, match=r"adapter_model.bin is a pickle"):
        package(adapter)


def test_a_cut_file_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ModelCorrupt, match=r"model.safetensors is not a whole"):
        package(folder)


def test_a_folder_with_several_models_asks_for_one_of_them(tmp_path: Path) -> None:
    write_model(tmp_path / "a")
    write_model(tmp_path / "b")
    with pytest.raises(
        ConfigInvalid, match=r"several models: a, b; push the folder of the one you mean"
    ):
        package(tmp_path)


def test_a_missing_folder_and_an_empty_one_say_so(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="is not a folder"):
        package(tmp_path / "gone")
    with pytest.raises(ModelNotFound, match=rf"no folder with config.json.* of {tmp_path};"):
        package(tmp_path)


def test_adapters_that_are_more_than_lora_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnsupported, match=r"holds q.weight: only lora_A and lora_B"):
        package(write_adapter(tmp_path, ("q.lora_A.weight", "q.weight")))
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(ModelUnsupported, match="PEFT type IA3"):
        package(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(ModelCorrupt, match="not a JSON object"):
        package(tmp_path)


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ({"name": "team/bot"}, "must not be empty or contain / or :"),
        ({"name": " "}, "must not be empty"),
        ({"name": "bot", "alias": "7"}, "not be a number"),
        ({"name": "bot", "alias": "a b"}, "of letters, digits"),
        ({"name": "bot", "alias": "latest"}, "reserves the alias 'latest'"),
        ({"name": "bot", "alias": "v3"}, "reserves the alias 'v3'"),
        ({"name": "bot", "base_model": "org/base"}, "must begin with models:/ or hf://"),
    ],
)
def test_names_that_mlflow_would_refuse_after_the_upload_are_refused_before(
    wish: dict[str, str], told: str
) -> None:
    with pytest.raises(ConfigInvalid, match=told):
        Wish(**wish)  # type: ignore[arg-type]
