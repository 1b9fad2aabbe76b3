"""Models whose linear weights became integers: what that saves, what it costs,
and what stays as it was."""

import ctypes
import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

from llm_runtime.compute import native  # noqa: E402
from llm_runtime.compute.embeddings import SharedEmbedding  # noqa: E402
from llm_runtime.compute.int4 import Int4Linear  # noqa: E402
from llm_runtime.compute.int8 import Int8Linear  # noqa: E402
from llm_runtime.compute.products import BlockLinear, usable  # noqa: E402
from llm_runtime.compute.quantised import Kind, quantize  # noqa: E402
from llm_runtime.contract import EngineConfig, ModelConfig  # noqa: E402
from llm_runtime.errors import ModelCorrupt, ModelUnsupported  # noqa: E402
from llm_runtime.loading import build, load  # noqa: E402
from llm_runtime.loading.agreement import tolerance  # noqa: E402
from llm_runtime.loading.runners import choose_runner  # noqa: E402
from unit.runtime import tiny_model  # noqa: E402
from unit.runtime.engine.architectures import ARCHITECTURES  # noqa: E402

MODEL = ModelConfig(name="m")
KINDS: tuple[Kind, ...] = ("int8", "int4")
TORCH = {"int8": Int8Linear, "int4": Int4Linear}
LEFT = {"int8": (0.25, 0.4), "int4": (0.17, 0.3)}
"""Share of float32 weights that is left, in layers of 32 to 64 inputs and outputs."""


def engine(kind: Kind) -> EngineConfig:
    return EngineConfig(
        device="cpu", max_model_length=64, max_batch_size=2, max_batch_tokens=32, quantization=kind
    )


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    usable.cache_clear()
    monkeypatch.setattr(native, "library", lambda: None)


@pytest.fixture(autouse=True)
def _forget_which_products_are_usable() -> Iterator[None]:
    yield
    usable.cache_clear()


def tiny(folder: Path, *, tied: bool = True) -> Any:
    from transformers import AutoModelForCausalLM

    made = AutoModelForCausalLM.from_pretrained(
        tiny_model.make(folder, tied=tied), dtype=torch.float32
    )
    return made.requires_grad_(False)


def forward(model: Any) -> Any:
    return partial(model, torch.tensor([[1, 2, 3]]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("device", ["cpu", "cuda", "cpu without kernels"])
def test_layers_shrink_and_on_a_cpu_the_output_layer_becomes_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, tied: bool, kind: Kind
) -> None:
    if device == "cpu without kernels":
        without_kernels(monkeypatch)
    blocks = device == "cpu" and native.library() is not None
    model = tiny(tmp_path, tied=tied)
    before = {n: m.weight.nbytes for n, m in model.named_modules() if hasattr(m, "weight")}
    linears = sum(size for name, size in before.items() if name.endswith("_proj"))
    head = before["lm_head"]
    saved = quantize(model, forward(model), device[:4].strip(), kind)
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            narrow = kind if name.endswith(("gate_proj", "up_proj")) else "int8"
            assert type(module) is (BlockLinear if blocks else TORCH[narrow])
            assert not blocks or module.kind == narrow
    least, most = LEFT[kind]
    if device == "cuda":
        assert type(model.lm_head) is torch.nn.Linear
        assert least * linears < linears - saved < most * linears
    else:
        assert type(model.lm_head) is (BlockLinear if blocks else Int8Linear)
        low, high = LEFT["int8"]
        assert least * linears + low * head < linears + head - saved < most * linears + high * head
    embedding = SharedEmbedding if tied and device != "cuda" else torch.nn.Embedding
    assert type(model.get_input_embeddings()) is embedding


@pytest.mark.parametrize("kernels", [True, False])
def test_a_tied_embedding_is_read_from_the_output_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: bool
) -> None:
    if not kernels:
        without_kernels(monkeypatch)
    model = tiny(tmp_path)
    weight = model.lm_head.weight.clone()
    quantize(model, forward(model), "cpu", "int4")
    ids = torch.tensor([[0, 1, 31], [32, 33, len(weight) - 1]])
    rows = model.get_input_embeddings()(ids)
    assert (rows.shape, rows.dtype) == ((2, 3, weight.shape[1]), torch.float32)
    steps = weight[ids].abs().amax(dim=2, keepdim=True) / 127
    assert ((rows - weight[ids]).abs() <= 0.501 * steps).all()
    assert model.dtype is torch.float32
    assert not any(p.numel() == weight.numel() for p in model.parameters())


def test_a_tied_weight_of_unknown_code_stays(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    model.__class__ = type("OtherForCausalLM", (type(model),), {})
    quantize(model, forward(model), "cpu", "int8")
    assert type(model.lm_head) is torch.nn.Linear
    assert model.get_input_embeddings().weight is model.lm_head.weight


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(
    tmp_path: Path, fault: float, kind: Kind
) -> None:
    model = tiny(tmp_path)
    model.model.layers[0].mlp.up_proj.weight[0, 0] = fault
    with pytest.raises(ModelCorrupt, match=r"layers\.0\.mlp\.up_proj\.weight has numbers"):
        quantize(model, forward(model), "cpu", kind)


@pytest.mark.parametrize("kind", KINDS)
def test_products_of_the_same_input_are_joined(tmp_path: Path, kind: Kind) -> None:
    if native.library() is None:
        pytest.skip("no compiled kernels: apt-get install g++")
    llama = next(a for a in ARCHITECTURES if a.name == "Llama, SmolLM, SmolLM2")
    loaded = load.load(llama.make(tmp_path), engine(kind), MODEL)
    choose_runner(loaded, engine(kind), 64, build._batched)
    for layer in loaded.model.model.layers:
        query_key_value, gate_up = (
            part.forward.args[1].product for part in (layer.self_attn, layer.mlp)
        )
        assert [len(product.layers) for product in (query_key_value, gate_up)] == [3, 2]
        # Attention is int8, and what writes to the residual stream.
        names = (query_key_value.name, gate_up.name)
        assert names == ("llm_product_int8", f"llm_product_{kind}")
        assert (layer.self_attn.o_proj.kind, layer.mlp.down_proj.kind) == ("int8", "int8")
    assert loaded.model.lm_head.kind == "int8"


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.1), ("int4", 0.5)])
def test_loading_says_what_integers_save_and_cost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: Kind, most: float
) -> None:
    with caplog.at_level(logging.INFO):
        loaded = load.load(tiny_model.make(tmp_path), engine(kind), MODEL)
    (record,) = (r for r in caplog.records if kind in r.message)
    assert 0 < record.__dict__["relative_difference_of_logits"] < most
    assert choose_runner(loaded, engine(kind), 64, build._batched).kind == "batched"
    # Rounding to 8 bits is bfloat16's: so much may two runners differ.
    assert tolerance(loaded) == 0.1
    assert tolerance(replace(loaded, quantised=False)) == 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_integers_destroy_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    def destroy(model: Any, *_: Any) -> int:
        for parameter in model.parameters():
            parameter.zero_()
        return 1

    monkeypatch.setattr(load, "quantize", destroy)
    with pytest.raises(ModelUnsupported, match=f"does not tolerate {kind}"):
        load.load(tiny_model.make(tmp_path), engine(kind), MODEL)


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_that_is_wrong_on_this_processor_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: Kind
) -> None:
    if native.library() is None:
        pytest.skip("no compiled kernels: apt-get install g++")
    right = native.call

    def wrong(name: str, number_format: str, x: int, out: int, rows: int, *others: Any) -> None:
        """One row of several is another one's."""
        right(name, number_format, x, out, rows, *others)
        if name == f"llm_product_{kind}":
            ctypes.memmove(out, out + 4 * 33, 4 * 33)

    monkeypatch.setattr(native, "call", wrong)
    usable.cache_clear()
    model = tiny(tmp_path)
    quantize(model, forward(model), "cpu", kind)
    layers = {type(m) for n, m in model.named_modules() if n.endswith("up_proj")}
    assert layers == {TORCH[kind]}
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert [record.__dict__["weights"] for record in warnings] == [kind]


@pytest.mark.parametrize(
    "name",
    ["Llama, SmolLM, SmolLM2", "GPT-NeoX, Pythia", "Mixtral", "Mamba", "Jamba", "RecurrentGemma"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_it_suits_models_that_are_built_differently(tmp_path: Path, name: str, kind: Kind) -> None:
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    loaded = load.load(architecture.make(tmp_path), engine(kind), MODEL)
    choose_runner(loaded, engine(kind), 64, build._batched)
