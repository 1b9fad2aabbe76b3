"""Adapter folders as PEFT saves them, and refusal of what would be served wrongly."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

from safetensors.torch import load_file, save_file  # noqa: E402

from llm_runtime.compute.lora import Adapter, LinearShape, Shapes  # noqa: E402
from llm_runtime.errors import Fatal, ModelCorrupt, ModelNotFound, ModelUnsupported  # noqa: E402
from llm_runtime.loading.adapter import AdapterReader  # noqa: E402
from unit.runtime import lora_models  # noqa: E402

QUERY = "model.layers.0.self_attn.q_proj"
KEY = f"base_model.model.{QUERY}"
WIDTHS = {"q": (64, 64), "k": (64, 32), "v": (64, 32), "o": (64, 64)}
SHAPES: Shapes = {
    f"model.layers.{layer}.self_attn.{side}_proj": LinearShape(*widths)
    for layer in range(2)
    for side, widths in WIDTHS.items()
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapter")
    return lora_models.save_adapter(
        lora_models.llama(root / "base"),
        root / "it",
        0,
        ("q_proj", "v_proj"),
        r=4,
        rank_pattern={"v_proj": 6},
    )


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "it"))


def read(folder: Path, shapes: Shapes = SHAPES, max_rank: int = 8) -> Adapter:
    return AdapterReader(max_rank)(folder, shapes)


def change(folder: Path, **fields: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_folder_becomes_weights_with_the_scaling_folded_in(folder: Path) -> None:
    adapter = read(folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert adapter.rank == 6
    assert set(adapter.weights) == {name for name in SHAPES if name.endswith(("q_proj", "v_proj"))}
    assert torch.equal(adapter.weights[QUERY].a, tensors[f"{KEY}.lora_A.weight"])
    assert torch.equal(adapter.weights[QUERY].b, tensors[f"{KEY}.lora_B.weight"] * 2)


def test_half_precision_files_are_read(folder: Path) -> None:
    change_tensors(
        folder, lambda tensors: tensors.update({k: t.bfloat16() for k, t in tensors.items()})
    )
    assert read(folder).weights[QUERY].a.dtype == torch.float32


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias=all"),
        ({"lora_bias": True}, "lora_bias=True"),
        (
            {"modules_to_save": ["lm_head"]},
            "modules_to_save.*merge the adapter .*tie_word_embeddings=False",
        ),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        (
            {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
            "init_lora_weights=loftq",
        ),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": None}, "None"),
        ({"of_the_future": {"x": 1}}, "of_the_future"),
        ({"r": 9}, "rank 9"),
        ({"r": 0}, "PEFT does not accept|rank below 1"),
        ({"target_modules": "(("}, "can't be matched"),
        ({"target_modules": ["c_attn"]}, "none of this model's linear layers"),
        ({"target_modules": None}, "none of this model's linear layers|can't be matched"),
    ],
)
def test_a_configuration_that_asks_for_more_is_refused_by_its_field(
    folder: Path, fields: dict[str, Any], words: str
) -> None:
    change(folder, **fields)
    with pytest.raises(ModelUnsupported, match=words):
        read(folder)


def test_fields_of_the_future_that_ask_for_nothing_are_harmless(folder: Path) -> None:
    change(
        folder,
        of_the_future=None,
        another=False,
        lora_dropout=0.1,
        inference_mode=True,
        revision="main",
    )
    read(folder)


def test_an_adapter_of_another_base_is_refused_with_module_and_shapes(folder: Path) -> None:
    wider = {name: LinearShape(128, 2 * shape.outputs) for name, shape in SHAPES.items()}
    with pytest.raises(
        ModelUnsupported, match=rf"(?s){QUERY}.*\[4, 64\] and \[64, 4\].*\[4, 128\] and \[128, 4\]"
    ):
        read(folder, wider)


def test_an_adapter_of_a_base_with_fewer_or_more_layers_is_refused(folder: Path) -> None:
    fewer = {name: shape for name, shape in SHAPES.items() if ".0." in name}
    with pytest.raises(
        ModelUnsupported,
        match=r"adapts model\.layers\.1\.self_attn\.q_proj, which is no linear layer",
    ):
        read(folder, fewer)
    more = {**SHAPES, "model.layers.2.self_attn.q_proj": LinearShape(64, 64)}
    with pytest.raises(ModelUnsupported, match=r"1 missing: model\.layers\.2\.self_attn\.q_proj"):
        read(folder, more)


def test_missing_and_unexpected_tensors_are_refused(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.pop(f"{KEY}.lora_B.weight"))
    with pytest.raises(ModelUnsupported, match=f"1 missing: {QUERY}"):
        read(folder)
    change(folder, target_modules=["v_proj"])
    with pytest.raises(ModelUnsupported, match="2 unexpected"):
        read(folder)


@pytest.mark.parametrize(
    "name", ["lora_magnitude_vector", "lora_embedding_A", "modules_to_save.weight", "weight"]
)
def test_tensors_of_other_kinds_are_refused(folder: Path, name: str) -> None:
    change_tensors(folder, lambda tensors: tensors.update({f"{KEY}.{name}": torch.zeros(2)}))
    with pytest.raises(ModelUnsupported, match=name):
        read(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(folder: Path, value: float) -> None:
    change_tensors(
        folder, lambda tensors: tensors[f"{KEY}.lora_A.weight"].view(-1)[3:4].fill_(value)
    )
    with pytest.raises(ModelCorrupt, match=QUERY):
        read(folder)


def test_integers_are_refused(folder: Path) -> None:
    change_tensors(
        folder, lambda tensors: tensors.update({k: t.to(torch.int8) for k, t in tensors.items()})
    )
    with pytest.raises(ModelUnsupported, match="I8"):
        read(folder)


def truncate(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def pickle_instead(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


FAULTS: list[tuple[Callable[[Path], Any], type[Fatal], str]] = [
    (truncate, ModelCorrupt, "not a whole safetensors file"),
    (pickle_instead, ModelNotFound, "pickle"),
    (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        ModelNotFound,
        "safe_serialization",
    ),
    (lambda folder: (folder / "adapter_config.json").unlink(), ModelNotFound, "adapter_config"),
    (lambda folder: (folder / "adapter_config.json").write_text("{"), ModelCorrupt, "not JSON"),
    (lambda folder: (folder / "adapter_config.json").write_text("[]"), ModelCorrupt, "object"),
    (
        lambda folder: (folder / "adapter_config.json").write_text(" " * 2_000_000),
        ModelCorrupt,
        "larger",
    ),
]


@pytest.mark.parametrize(("spoil", "error", "words"), FAULTS)
def test_files_that_are_not_whole_are_refused(
    folder: Path, spoil: Callable[[Path], Any], error: type[Fatal], words: str
) -> None:
    spoil(folder)
    with pytest.raises(error, match=words):
        read(folder)


def test_a_refused_adapter_leaves_the_one_of_its_name_alone(folder: Path) -> None:
    from llm_runtime.compute.lora import AdapterSet

    base = lora_models.load(lora_models.llama(folder.parent / "base"))
    adapters = AdapterSet(base, AdapterReader(8))
    adapters.load("it", folder)
    before = adapters._adapters["it"]
    change(folder, use_dora=True)
    with pytest.raises(ModelUnsupported):
        adapters.load("it", folder)
    assert adapters._adapters["it"] is before
