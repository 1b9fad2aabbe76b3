"""What sentence-transformers' files say, in folders of their own and in a flat one."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_runtime.errors import ModelCorrupt, ModelUnsupported
from llm_runtime.fetching.local import local_model
from llm_runtime.files.heads import embeds
from llm_runtime.files.locate import Artifacts, local_artifacts, locate
from llm_runtime.files.package import package
from llm_runtime.files.sentence_files import Recipe, read_recipe
from unit.runtime.embedding_models import describe, pooling

EMPTY = b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "
"""A file of safetensors without tensors."""


def model(folder: Path, name: str = "") -> Path:
    home = folder / name
    home.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "tokenizer.json"):
        (home / file).write_text("{}")
    (home / "model.safetensors").write_bytes(EMPTY)
    return folder


def sentence_model(folder: Path) -> Path:
    described = describe(
        model(folder),
        pooling("cls_token"),
        ("Dense", {"bias": False}),
        ("Dropout", {}),
        ("Normalize", {}),
        max_seq_length=128,
        prompts={"query": "q: ", "document": None},
        default_prompt_name="query",
    )
    (folder / "2_Dense/model.safetensors").write_bytes(EMPTY)
    return described


def test_a_recipe_is_read_from_folders_and_from_a_flat_one(tmp_path: Path) -> None:
    folder = sentence_model(tmp_path / "model")
    found = read_recipe(folder)
    assert found.poolings == ("cls",)
    assert [step.kind for step in found.steps] == ["Dense", "Normalize"]
    assert found.steps[0].settings == {"bias": False}
    assert (found.prompts, found.default_prompt) == ({"query": "q: "}, "query")
    assert (found.max_tokens, found.normalised, found.include_prompt) == (128, True, True)

    located = locate(local_artifacts(folder))
    assert located.files["1_Pooling.config.json"] == "1_Pooling/config.json"
    flat = tmp_path / "flat"
    flat.mkdir()
    for name, path in located.files.items():
        (flat / name).write_bytes((folder / path).read_bytes())
    again = read_recipe(flat)
    assert again.steps[0].weights == flat / "2_Dense.model.safetensors"
    assert (again.poolings, again.prompts, again.max_tokens) == (("cls",), {"query": "q: "}, 128)


def test_a_local_folder_is_served_as_it_is_and_pushed_as_it_was(tmp_path: Path) -> None:
    folder = sentence_model(tmp_path / "model")
    assert local_model(folder, tmp_path / "models") == folder
    assert {"1_Pooling/config.json", "2_Dense/model.safetensors"} <= package(folder).files.keys()


def test_the_older_layout_has_the_model_in_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", "0_Transformer")
    describe(folder, pooling("mean_tokens"))
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    located = locate(local_artifacts(folder))
    assert located.folder == "0_Transformer"
    assert located.files["modules.json"] == "modules.json"
    assert read_recipe(local_model(folder, tmp_path / "models")).poolings == ("mean",)


def test_a_version_logged_by_mlflows_sentence_transformers_is_found() -> None:
    inside = "model.sentence_transformer"
    names = (
        "modules.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "1_Pooling/config.json",
    )
    contents = {f"{inside}/{name}": b"{}" for name in names}
    contents["MLmodel"] = b"flavors: {python_function: {}, sentence_transformers: {}}"
    contents[f"{inside}/modules.json"] = json.dumps(
        [
            {"path": "", "type": "sentence_transformers.models.Transformer"},
            {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ]
    ).encode()
    sizes = {name: len(content) for name, content in contents.items()}
    located = locate(Artifacts(sizes, contents.__getitem__))
    assert located.folder == inside
    assert located.files["1_Pooling.config.json"] == f"{inside}/1_Pooling/config.json"


def test_without_its_files_a_model_is_pooled_by_the_mean(tmp_path: Path) -> None:
    assert read_recipe(tmp_path) == Recipe()


@pytest.mark.parametrize(
    ("modules", "error", "says"),
    [
        ("{", ModelCorrupt, "not a list of modules"),
        ([], ModelCorrupt, "names no module"),
        ([{"path": "../x", "type": "t"}], ModelCorrupt, "no plain folder"),
        (
            [{"path": "", "type": "own.Transformer"}],
            ModelUnsupported,
            "runs no code of a model's own",
        ),
        (
            [{"path": "", "type": "sentence_transformers.models.CLIPModel"}],
            ModelUnsupported,
            "CLIPModel as Transformer",
        ),
        (
            [{"path": "", "type": "sentence_transformers.models.Transformer"}],
            ModelUnsupported,
            "names no pooling",
        ),
    ],
)
def test_modules_that_can_not_be_served_are_refused_by_name(
    modules: Any, error: type[Exception], says: str, tmp_path: Path
) -> None:
    text = modules if isinstance(modules, str) else json.dumps(modules)
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(error, match=says):
        read_recipe(tmp_path)


def test_a_pickled_module_an_unknown_pooling_and_a_missing_prompt_are_refused(
    tmp_path: Path,
) -> None:
    folder = describe(model(tmp_path), pooling(), ("Dense", {}))
    (folder / "2_Dense/pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelUnsupported, match="2_Dense are a pickle"):
        read_recipe(folder)
    describe(folder, ("Pooling", {"pooling_mode": "attention"}))
    with pytest.raises(ModelUnsupported, match="pooling attention is not one of cls"):
        read_recipe(folder)
    describe(folder, pooling(), default_prompt_name="query")
    with pytest.raises(ModelCorrupt, match="default prompt 'query'"):
        read_recipe(folder)


@pytest.mark.parametrize(
    ("task", "settings", "described", "expected"),
    [
        ("auto", {"architectures": ["BertModel"], "model_type": "bert"}, False, True),
        ("auto", {"architectures": ["BertForMaskedLM"], "model_type": "bert"}, False, False),
        ("auto", {"architectures": ["BertLMHeadModel"], "model_type": "bert"}, False, False),
        ("auto", {"architectures": ["Qwen3Model"], "model_type": "qwen3"}, False, False),
        ("auto", {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}, True, True),
        ("auto", {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, False, False),
        ("auto", {}, False, False),
        ("embed", {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, False, True),
        ("generate", {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}, True, False),
    ],
)
def test_the_task_is_found_from_the_files_unless_it_is_said(
    task: str, settings: dict[str, Any], described: bool, expected: bool
) -> None:
    assert embeds(task, settings, described=described) is expected
