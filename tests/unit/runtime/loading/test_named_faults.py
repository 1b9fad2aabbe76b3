"""A fault of a model is named for what it is:
corrupt only if its bytes are, else by what is unknown or missing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

from llm_runtime.contract import EngineConfig, ModelConfig, RuntimeConfig  # noqa: E402
from llm_runtime.errors import Fatal, ModelCorrupt, ModelNotFound, ModelUnsupported  # noqa: E402
from llm_runtime.fetching.outline import of_folder  # noqa: E402
from llm_runtime.files.fit import most_positions  # noqa: E402
from llm_runtime.loading import build  # noqa: E402
from llm_runtime.loading.load import load  # noqa: E402
from unit.runtime import tiny_model  # noqa: E402

CPU = EngineConfig(device="cpu", max_model_length=64, max_batch_size=2, max_batch_tokens=32)
MODEL = ModelConfig(name="tiny")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.make(tmp_path_factory.mktemp("tiny"), max_positions=128)


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def change(file: Path, drop: str = "", **fields: Any) -> None:
    content = {**json.loads(file.read_text()), **fields}
    content.pop(drop, None)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rope_scaling": {"rope_type": "su", "factor": 4.0}}, "does not know the rope_type 'su'"),
        ({"rope_scaling": {"type": "su", "factor": 4.0}}, "does not know the (rope_)?type 'su'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "short_factor"),
        ({"rope_scaling": "odd"}, "odd"),
        ({"hidden_act": "gelu9"}, "does not know the hidden_act 'gelu9'"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_attention_heads": 0}, "modulo"),
        ({"vocab_size": -5}, "num_embeddings"),
        ({"model_type": "brand_new"}, "brand_new"),
        ({"eos_token_id": {"a": 1}}, "eos_token_id"),
    ],
)
def test_what_a_configuration_asks_for_in_vain_is_unsupported_and_named(
    folder: Path, fields: dict[str, Any], words: str
) -> None:
    change(folder / "config.json", drop="rope_parameters", **fields)
    with pytest.raises(ModelUnsupported, match=words) as caught:
        load(folder, CPU, MODEL)
    assert "weights" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        (
            {"model_type": "bert", "architectures": ["BertModel"]},
            "BertModel is .* one without a head",
        ),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "one for masked LM"),
        (
            {"model_type": "roberta", "architectures": ["RobertaForCausalLM"]},
            "an encoder: roberta reads in both",
        ),
        ({"model_type": "bert", "architectures": None}, "bert is .* an encoder"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "one for sequence classification"),
        ({"architectures": ["Qwen2ForRewardModel"]}, "one for reward model"),
        ({"architectures": ["LlamaModel"]}, "one without a head"),
        (
            {"model_type": "vit", "architectures": ["ViTForImageClassification"]},
            "one for image classification",
        ),
    ],
)
def test_a_model_that_continues_no_text_is_told_as_what_it_is(
    folder: Path, fields: dict[str, Any], what: str
) -> None:
    change(folder / "config.json", **fields)
    with pytest.raises(ModelUnsupported, match=what):
        load(folder, CPU, MODEL)
    generating = CPU.model_copy(update={"task": "generate"})
    with pytest.raises(ModelUnsupported, match=what):  # `llm-runtime fit`
        of_folder(folder).sizing(generating, "cpu")


def test_an_encoder_that_was_made_a_decoder_is_no_encoder(folder: Path) -> None:
    change(
        folder / "config.json",
        model_type="bert",
        architectures=["BertLMHeadModel"],
        is_decoder=True,
    )
    assert of_folder(folder).settings["is_decoder"]


@pytest.mark.parametrize(
    ("name", "content", "kind", "words"),
    [
        ("config.json", None, ModelNotFound, "no config.json"),
        ("config.json", b"{", ModelCorrupt, "config.json"),
        ("generation_config.json", b"{", ModelCorrupt, "generation_config.json is not JSON"),
        ("generation_config.json", b'{"eos_token_id": {"a": 1}}', ModelUnsupported, "eos_token_id"),
        ("generation_config.json", b'{"eos_token_id": "</s>"}', ModelUnsupported, "eos_token_id"),
        (
            "model.safetensors",
            b"\x10\x00\x00\x00\x00\x00\x00\x00no header",
            ModelCorrupt,
            "model.safetensors",
        ),
    ],
)
def test_a_file_at_fault_is_named(
    folder: Path, name: str, content: bytes | None, kind: type[Fatal], words: str
) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(kind, match=words):
        load(folder, CPU, MODEL)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({"max_position_embeddings": 128}, 128),
        ({"max_position_embeddings": 128, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 512),
        ({"max_position_embeddings": 128, "rope_parameters": YARN}, 512),
        ({"max_position_embeddings": 512, "rope_scaling": YARN}, 512),
        (
            {
                "max_position_embeddings": 128,
                "rope_parameters": {"full_attention": YARN, "sliding_attention": {}},
            },
            512,
        ),
        (
            {
                "max_position_embeddings": 128,
                "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            },
            128,
        ),
        ({"max_position_embeddings": 128, "rope_scaling": {"type": "yarn", "factor": "4"}}, 128),
        (
            {
                "max_position_embeddings": 128,
                "rope_scaling": {"type": "yarn", "factor": float("nan")},
            },
            128,
        ),
        ({"max_position_embeddings": 128, "rope_scaling": None}, 128),
        ({}, 0),
    ],
)
def test_yarn_stretches_what_a_model_was_trained_with(settings: dict[str, Any], most: int) -> None:
    assert most_positions(settings) == most


def test_a_model_with_yarn_by_its_recipe_is_served_at_the_length_that_is_asked_for(
    folder: Path,
) -> None:
    change(folder / "config.json", drop="rope_parameters", rope_scaling={"type": "yarn", **YARN})
    settings = EngineConfig(device="cpu", max_model_length=256, max_batch_size=2)
    built = build.build_model(RuntimeConfig(model=MODEL, engine=settings), folder)
    assert built.limits.max_model_length == 256
