"""Files that are not what they say are found before anything is loaded."""

import json
import struct
from pathlib import Path

import pytest

from llm_runtime.errors import ModelCorrupt
from llm_runtime.files.verify import is_whole, safetensors_keys, verify_weights, write_manifest
from unit.runtime.fetching.fakes import safetensors, write_model


def entry(**changed: object) -> bytes:
    return json.dumps(
        {"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], **changed}}
    ).encode()


def test_keys_come_from_the_header(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(safetensors({"a": 3, "b": 0, "c": 5}))
    assert safetensors_keys(tmp_path / "m.safetensors") == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "claims 0 bytes"),
        (safetensors({"a": 100})[:-1], "describes 100 bytes of data, but 99"),
        (safetensors({"a": 100}) + b"x", "describes 100 bytes of data, but 101"),
        (safetensors({"a": 100})[:20], "claims"),
        (struct.pack("<Q", 1 << 60) + b"{}", "claims 1152921504606846976 bytes"),
        (safetensors({}, b"not json!"), "not valid"),
        (safetensors({}, b"[1, 2]"), "not valid"),
        (safetensors({"a": 4}, entry(data_offsets=[0, 5])) + b"x", "takes 5 bytes"),
        (safetensors({"a": 4}, entry(data_offsets=[2, 6])), "gap at byte 0"),
        (safetensors({"a": 4}, entry(shape=[-4])), "negative"),
        (safetensors({"a": 4}, entry(dtype="PICKLE")), "not valid"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "claims"),
    ],
)
def test_a_file_that_is_not_whole_is_named_with_the_reason(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(
        ModelCorrupt,
        match=f"model.safetensors is not a whole safetensors file: .*{words}.*upload it",
    ):
        verify_weights(tmp_path)


@pytest.mark.parametrize("key", ["q_proj.base_layer.weight", "q_proj.lora_A.default.weight"])
def test_the_inside_of_a_peft_model_is_refused_with_the_way_out(tmp_path: Path, key: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors({key: 4}))
    with pytest.raises(ModelCorrupt, match="merge_and_unload"):
        verify_weights(tmp_path)


def test_an_index_that_misplaces_a_tensor_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, sharded=True)
    verify_weights(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("00001-of", "00002-of"))
    with pytest.raises(ModelCorrupt, match=r"places a.weight in model-00002-of-00002.safetensors"):
        verify_weights(tmp_path)


def test_the_manifest_notices_missing_and_short_files(tmp_path: Path) -> None:
    write_model(tmp_path)
    assert not is_whole(tmp_path)
    write_manifest(tmp_path, "here")
    assert is_whole(tmp_path)
    assert (
        len(json.loads((tmp_path / "manifest.json").read_text())["files"]["config.json"]["sha256"])
        == 64
    )
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert not is_whole(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    assert not is_whole(tmp_path)
