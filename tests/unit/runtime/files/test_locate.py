"""Which files of which layout are served."""

from pathlib import Path

import pytest

from llm_runtime.errors import ConfigInvalid, ModelCorrupt, ModelNotFound, ModelUnsupported
from llm_runtime.files.locate import Artifacts, Located, local_artifacts, locate
from unit.runtime.fetching.fakes import write_model, write_tokenizer

MLMODEL = "flavors:\n  python_function: {loader_module: mlflow.transformers}\n  transformers:\n    "


def found(folder: Path, sub_path: str = "") -> Located:
    return locate(local_artifacts(folder), sub_path)


def test_a_raw_folder(tmp_path: Path) -> None:
    located = found(write_model(tmp_path))
    assert located.folder == ""
    assert set(located.files) == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_gptqs_own_description_goes_along(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "quantize_config.json").write_text("{}")
    assert "quantize_config.json" in found(tmp_path).files


def test_only_what_serving_needs_is_taken(tmp_path: Path) -> None:
    write_model(tmp_path)
    for name in (
        "training_args.bin",
        "optimizer.pt",
        "README.md",
        "consolidated.safetensors",
        "python_model.pkl",
    ):
        (tmp_path / name).write_bytes(b"x")
    assert set(found(tmp_path).files) == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_a_logged_pipeline_has_its_tokenizer_elsewhere(tmp_path: Path) -> None:
    write_model(tmp_path / "model", sharded=True, tokenizer=False)
    write_tokenizer(tmp_path / "components/tokenizer")
    (tmp_path / "MLmodel").write_text(MLMODEL + "model_binary: model\n")
    files = found(tmp_path).files
    assert files["tokenizer.json"] == "components/tokenizer/tokenizer.json"
    assert files["model-00002-of-00002.safetensors"] == "model/model-00002-of-00002.safetensors"


def test_a_logged_local_path_takes_the_tokenizer_beside_the_weights(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_tokenizer(tmp_path / "components/tokenizer")
    (tmp_path / "MLmodel").write_text(
        MLMODEL + "model_binary: model\n    source_model_name: /tmp/x\n"
    )
    assert found(tmp_path).files["tokenizer.json"] == "model/tokenizer.json"


def test_a_model_below_without_mlmodel_is_found(tmp_path: Path) -> None:
    write_model(tmp_path / "a/b/c")
    assert found(tmp_path).folder == "a/b/c"


def test_a_tokenizer_in_the_folder_above(tmp_path: Path) -> None:
    write_model(tmp_path / "weights", tokenizer=False)
    write_tokenizer(tmp_path)
    assert found(tmp_path).files["tokenizer.json"] == "tokenizer.json"


def test_the_root_wins_over_checkpoints_inside(tmp_path: Path) -> None:
    write_model(tmp_path)
    write_model(tmp_path / "checkpoint-100")
    assert found(tmp_path).folder == ""


def test_several_candidates_are_listed_and_sub_path_chooses(tmp_path: Path) -> None:
    write_model(tmp_path / "small")
    write_model(tmp_path / "large")
    with pytest.raises(ConfigInvalid, match=r"large, small.*subPath"):
        found(tmp_path)
    assert found(tmp_path, "large/").folder == "large"
    with pytest.raises(ModelNotFound, match="folders there: large, small"):
        found(tmp_path, "medium")


def test_one_weights_file_of_another_name_is_taken_under_the_usual_one(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    assert found(tmp_path).files["model.safetensors"] == "weights.safetensors"


@pytest.mark.parametrize(
    ("files", "kind", "words"),
    [
        (
            ("config.json", "pytorch_model.bin", "tokenizer.json"),
            ModelUnsupported,
            "pickles.*llm-runtime convert",
        ),
        (
            ("adapter_config.json", "adapter_model.safetensors"),
            ModelUnsupported,
            "adapter without its base.*merge",
        ),
        (("model.gguf",), ModelUnsupported, "GGUF"),
        (("notes.txt",), ModelNotFound, "files there: notes.txt"),
        (("config.json", "model.safetensors"), ModelUnsupported, "no tokenizer"),
        (
            (
                "config.json",
                "tokenizer.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ),
            ModelCorrupt,
            "but no model.safetensors.index.json",
        ),
    ],
)
def test_what_can_not_be_served_says_why_and_what_to_do(
    tmp_path: Path, files: tuple[str, ...], kind: type[Exception], words: str
) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(kind, match=words):
        found(tmp_path)


@pytest.mark.parametrize(
    ("flavor", "kind", "words"),
    [
        (
            "peft_adaptor: peft\n    source_model_name: org/base\n",
            ModelUnsupported,
            "adapter without its base",
        ),
        ("source_model_name: org/base\n", ModelUnsupported, "save_pretrained=False"),
        ("model_binary: ../../etc\n", ModelCorrupt, "not a plain relative path"),
        ("model_binary: [\n", ModelCorrupt, "not valid YAML"),
    ],
)
def test_mlmodel_that_leads_nowhere(
    tmp_path: Path, flavor: str, kind: type[Exception], words: str
) -> None:
    (tmp_path / "MLmodel").write_text(MLMODEL + flavor)
    with pytest.raises(kind, match=words):
        found(tmp_path)


def test_another_flavor_is_named(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("flavors: {sklearn: {}, python_function: {}}")
    with pytest.raises(ModelUnsupported, match="logged as python_function, sklearn"):
        found(tmp_path)


@pytest.mark.parametrize("path", ["../evil", "/etc/passwd", "a/../../b", "a\\b", "a//b"])
def test_paths_that_leave_the_folder_are_refused(path: str) -> None:
    with pytest.raises(ModelCorrupt, match="not a plain relative path"):
        locate(Artifacts({path: 1, "config.json": 1, "model.safetensors": 1}, lambda _: b""))


def test_missing_shards_are_named(tmp_path: Path) -> None:
    write_model(tmp_path, sharded=True)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelCorrupt, match=r"not there: model-00002-of-00002.safetensors"):
        found(tmp_path)


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../../x.safetensors"}}']
)
def test_a_wrong_index_is_corrupt(tmp_path: Path, index: str) -> None:
    write_model(tmp_path, sharded=True)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelCorrupt):
        found(tmp_path)
