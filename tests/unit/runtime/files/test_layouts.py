"""The matrix of docs/models.md: each layout that MLflow writes,
as it lies in the registry, and what becomes of it."""

import itertools
import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from llm_runtime.errors import ConfigInvalid, Fatal, ModelCorrupt, ModelNotFound, ModelUnsupported
from llm_runtime.fetching.fetch import Fetcher
from llm_runtime.fetching.local import local_model
from llm_runtime.files.locate import Artifacts, local_artifacts, locate
from llm_runtime.files.verify import verify_weights
from unit.runtime.fetching.fakes import (
    VERSION,
    FolderRegistry,
    safetensors,
    write_model,
    write_tokenizer,
)

BOMB = b"[" * 100_000
LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in itertools.pairwise("abcdefghij")
)


def mlmodel(folder: Path, **flavor: object) -> None:
    """As mlflow.transformers writes it, registered_model_meta's nulls included."""
    flavors = {
        "python_function": {"loader_module": "mlflow.transformers", "model_binary": "python_model.pkl", "env": None},
        "transformers": {
            "code": None, "framework": "pt", "instance_type": "TextGenerationPipeline", "task": "text-generation",
            "pipeline_model_type": "LlamaForCausalLM", "tokenizer_type": "PreTrainedTokenizerFast", **flavor,
        },
    }  # fmt: skip
    meta = {
        "artifact_path": "model",
        "mlflow_version": "3.17.2",
        "model_id": None,
        "signature": None,
    }
    (folder / "MLmodel").write_text(yaml.safe_dump({**meta, "flavors": flavors}))


def adapter(folder: Path, base: str) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": base, "r": 8})
    )
    (folder / "adapter_model.safetensors").write_bytes(
        safetensors({"base_model.model.q_proj.lora_A.weight": 8})
    )


def pipeline(root: Path) -> None:
    write_model(root / "model", tokenizer=False)
    write_tokenizer(root / "components/tokenizer")
    mlmodel(
        root,
        model_binary="model",
        components=["tokenizer"],
        source_model_name="org/m",
        source_model_revision="a1",
    )


def path_logged(root: Path) -> None:
    write_model(root / "model")
    write_tokenizer(root / "components/tokenizer")
    mlmodel(
        root, model_binary="model", components=["tokenizer"], source_model_name="/somewhere/model"
    )


def peft_local_base(root: Path) -> None:
    adapter(root / "peft", "/somewhere/base")
    write_tokenizer(root / "components/tokenizer")
    mlmodel(
        root, peft_adaptor="peft", local_base_model_path="/somewhere/base", components=["tokenizer"]
    )


def peft_hub_base(root: Path) -> None:
    adapter(root / "peft", "org/base")
    mlmodel(root, peft_adaptor="peft", source_model_name="org/base", source_model_revision="a1")


def peft_corrupt(root: Path) -> None:
    pipeline(root)
    weights = {
        "model.layers.0.self_attn.q_proj.base_layer.weight": 8,
        "model.embed_tokens.weight": 8,
    }
    (root / "model/model.safetensors").write_bytes(safetensors(weights))
    adapter(root / "peft", "/somewhere/base")
    mlmodel(root, model_binary="model", peft_adaptor="peft", source_model_name="/somewhere/base")


def no_weights(root: Path) -> None:
    write_tokenizer(root / "components/tokenizer")
    mlmodel(
        root, source_model_name="org/base", source_model_revision="a1", components=["tokenizer"]
    )


def raw(root: Path) -> None:
    write_model(root, sharded=True)


def raw_adapter(root: Path) -> None:
    adapter(root / "lora", "org/base")


Make = Callable[[Path], None]


@pytest.mark.parametrize(
    ("make", "weights", "tokenizer"),
    [
        (pipeline, "model/model.safetensors", "components/tokenizer/tokenizer.json"),
        (path_logged, "model/model.safetensors", "model/tokenizer.json"),
        (raw, "model-00001-of-00002.safetensors", "tokenizer.json"),
    ],
)
def test_what_is_served(make: Make, weights: str, tokenizer: str, tmp_path: Path) -> None:
    make(tmp_path)
    files = locate(local_artifacts(tmp_path)).files
    assert {weights, tokenizer} <= set(files.values())
    assert not any("pkl" in path for path in files.values())


@pytest.mark.parametrize("make", [pipeline, path_logged, raw])
def test_a_layout_in_a_folder_of_a_run_is_found_and_sub_path_leads_to_it(
    make: Make, tmp_path: Path
) -> None:
    (tmp_path / "bot").mkdir()
    make(tmp_path / "bot")
    artifacts = local_artifacts(tmp_path)
    assert (
        locate(artifacts).files
        == locate(artifacts, "bot").files
        == locate(artifacts, "/bot/").files
    )


@pytest.mark.parametrize("make", [pipeline, path_logged])
def test_sub_path_may_name_the_weights_folder_itself(make: Make, tmp_path: Path) -> None:
    make(tmp_path)
    assert (
        locate(local_artifacts(tmp_path), "model").files == locate(local_artifacts(tmp_path)).files
    )


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (
            peft_local_base,
            ModelUnsupported,
            "'peft' holds a PEFT adapter without its base model; merge it .*tie_word_embeddings=False",
        ),
        (
            peft_hub_base,
            ModelUnsupported,
            "'peft' holds a PEFT adapter without its base model; merge it .*tie_word_embeddings=False",
        ),
        (raw_adapter, ModelUnsupported, "adapter without its base"),
        (no_weights, ModelUnsupported, r"only the name 'org/base' \(save_pretrained=False\)"),
        (
            peft_corrupt,
            ModelCorrupt,
            "q_proj.base_layer.weight and 0 more.*merge_and_unload before logging",
        ),
    ],
)
def test_what_is_refused_leaves_no_folder(
    make: Make, kind: type[Fatal], words: str, tmp_path: Path
) -> None:
    registered = tmp_path / "registered"
    registered.mkdir()
    make(registered)
    with pytest.raises(kind, match=words):
        Fetcher(FolderRegistry(registered), tmp_path / "models", sleep=lambda _: None).fetch(
            VERSION
        )
    assert not [path for path in (tmp_path / "models").iterdir() if path.is_dir()]


def test_candidates_below_several_folders_are_listed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pipeline(tmp_path / name)
    with pytest.raises(ConfigInvalid, match="a/model, b/model"):
        locate(local_artifacts(tmp_path))
    assert locate(local_artifacts(tmp_path), "b").folder == "b/model"


@pytest.mark.parametrize(
    "content",
    [
        "[]", "flavors: 7", "flavors: [transformers]", "flavors: {transformers: [1]}", "flavors: {1: {}, b: {}}",
        "flavors: {transformers: {model_binary: [model]}}", "flavors: {transformers: {peft_adaptor: {a: b}}}",
        f"{LAUGHS}flavors: {{transformers: {{source_model_name: *j}}}}", f"{LAUGHS}flavors: *j", "{" * 5000,
    ],
    ids=lambda content: content[-40:],
)  # fmt: skip
def test_a_strange_mlmodel_is_corrupt(content: str, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "MLmodel").write_text(content)
    with pytest.raises((ModelCorrupt, ModelUnsupported)) as caught:
        locate(local_artifacts(tmp_path))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["MLmodel", "model.safetensors.index.json"])
def test_a_small_file_that_is_huge_is_not_even_read(name: str) -> None:
    artifacts = Artifacts(
        {name: 1 << 40, "config.json": 2, "model.safetensors": 9, "tokenizer.json": 2}, pytest.fail
    )
    with pytest.raises(ModelCorrupt, match=f"{name} .*1099511627776 bytes"):
        locate(artifacts)


@pytest.mark.parametrize(
    "path", ["model/../../x", "./config.json", "model/./x", "/model/x", "a\0b", ""]
)
def test_no_path_that_is_not_plain(path: str) -> None:
    with pytest.raises(ModelCorrupt, match="not a plain relative path"):
        locate(Artifacts({path: 1}, lambda _: b""))


@pytest.mark.parametrize("sub_path", ["../other", "model/../../other", "a//b"])
def test_sub_path_does_not_leave_the_artifacts(sub_path: str, tmp_path: Path) -> None:
    pipeline(tmp_path)
    with pytest.raises(ConfigInvalid, match="subPath"):
        locate(local_artifacts(tmp_path), sub_path)


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path: Path) -> None:
    """Caches of the Hugging Face Hub consist of the first kind;
    the second may go round in circles."""
    blobs = write_model(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    (snapshot / "again").symlink_to(snapshot)
    (snapshot / "tokenizer.model").symlink_to(tmp_path / "gone")
    located = locate(local_artifacts(snapshot))
    assert set(located.files) == {file.name for file in blobs.iterdir()}
    verify_weights(snapshot)


def test_a_link_to_nowhere_is_a_missing_file(tmp_path: Path) -> None:
    write_model(tmp_path, sharded=True)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    (tmp_path / "model-00002-of-00002.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(ModelCorrupt, match="model-00002-of-00002"):
        locate(local_artifacts(tmp_path))


def test_sub_path_that_is_not_there_lists_what_is(tmp_path: Path) -> None:
    pipeline(tmp_path)
    with pytest.raises(ModelNotFound, match="components/tokenizer, model"):
        locate(local_artifacts(tmp_path), "models")


@pytest.mark.parametrize(
    "header", [BOMB, b'{"a":' * 100_000, b'{"a": {"dtype": "U8", "shape": [' + b"9" * 5000 + b"]}}"]
)
def test_a_header_that_is_a_bomb_is_corrupt(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ModelCorrupt, match="header"):
        verify_weights(tmp_path)


def test_a_long_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 99_000_000))
        file.truncate(100_000_000)
    tracemalloc.start()
    with pytest.raises(ModelCorrupt, match="claims 99000000 bytes"):
        verify_weights(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("index", [BOMB.decode(), '{"weight_map": ' * 100_000])
def test_an_index_that_is_a_bomb_is_corrupt(index: str, tmp_path: Path) -> None:
    write_model(tmp_path, sharded=True)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelCorrupt, match="index of shards"):
        locate(local_artifacts(tmp_path))


@pytest.mark.parametrize("name", ["chat_template.jinja", "nested/config.json", "nested"])
def test_a_link_that_leaves_the_folder_is_corrupt(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / "model")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "text").write_text("secret")
    link = folder / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "outside" / ("text" if link.suffix else ""))
    with pytest.raises(ModelCorrupt, match="is a link out of"):
        local_model(folder, tmp_path / "models")


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/rag.jinja"])
def test_a_pipe_is_corrupt_as_reading_it_would_wait_for_ever(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / "model")
    (folder / name).parent.mkdir(exist_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(ModelCorrupt, match="is a pipe, a socket or a device: remove it"):
        local_model(folder, tmp_path / "models")


def test_links_in_a_circle_lead_nowhere(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "circle").symlink_to("circle")
    assert local_model(folder, tmp_path / "models") == folder


@pytest.mark.parametrize(
    ("link", "target", "name"),
    [
        ("model", "../..", "model"),
        ("model", ".", "model"),
        ("way", "../../..", "way/mnt"),
        ("way", "deep/er", "way/../.."),
    ],
)
def test_a_link_to_a_folder_around_it_is_corrupt(
    tmp_path: Path, link: str, target: str, name: str
) -> None:
    """Whoever fills the volume would choose what counts as inside,
    and so what files may be links to."""
    volume = write_model(tmp_path / "mnt" / "claims" / "volume")
    (tmp_path / "mnt" / "password").write_text("secret")
    (volume / "deep" / "er").mkdir(parents=True)
    (volume / "chat_template.jinja").symlink_to("../../password")
    (volume / link).symlink_to(target)
    with pytest.raises(ModelCorrupt, match="is a link"):
        local_model(volume / name, tmp_path / "models")


def test_the_folder_may_be_a_link_to_another_beside_it(tmp_path: Path) -> None:
    write_model(tmp_path / "v3")
    (tmp_path / "current").symlink_to("v3")
    assert local_model(tmp_path / "current", tmp_path / "models") == tmp_path / "current"


def test_links_inside_the_folder_and_the_hubs_own_are_followed(tmp_path: Path) -> None:
    blobs = write_model(tmp_path / "models--org--name" / "blobs")
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert local_model(snapshot, tmp_path / "models") == snapshot
    (blobs / "special_tokens_map.json").symlink_to("config.json")
    assert local_model(blobs, tmp_path / "models") == blobs
