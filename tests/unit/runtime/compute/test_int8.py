"""Linear weights as 8-bit integers: what they cost in precision, what they save,
and what stays as it was."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

from llm_runtime.compute import native  # noqa: E402
from llm_runtime.compute.int8 import Int8Linear, quantize_int8, quantize_weight  # noqa: E402
from llm_runtime.compute.products import BlockLinear  # noqa: E402
from llm_runtime.contract import EngineConfig, ModelConfig  # noqa: E402
from llm_runtime.errors import ModelCorrupt, ModelUnsupported  # noqa: E402
from llm_runtime.loading import build, load  # noqa: E402
from llm_runtime.loading.agreement import probed  # noqa: E402
from llm_runtime.loading.runners import choose_runner  # noqa: E402
from unit.runtime import tiny_model  # noqa: E402
from unit.runtime.engine.architectures import ARCHITECTURES  # noqa: E402

INT8 = EngineConfig(
    device="cpu", max_model_length=64, max_batch_size=2, max_batch_tokens=32, quantization="int8"
)
MODEL = ModelConfig(name="m")


def test_a_weight_is_off_by_no_more_than_half_a_step_of_its_row() -> None:
    weight = torch.randn(7, 33) * torch.logspace(-3, 3, 7).unsqueeze(1)
    weight[3] = 0.0
    quantised, scale = quantize_weight(weight)
    assert quantised.dtype is torch.int8
    assert ((quantised * scale.unsqueeze(1) - weight).abs() <= scale.unsqueeze(1) * 0.501).all()


@pytest.mark.parametrize("shape", [(1, 64), (5, 64), (2, 3, 64), (300, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_answers_as_the_layer_it_replaces(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 96, bias=bias).requires_grad_(False)
    x = torch.randn(shape)
    expected = linear(x)
    for kind in kinds():
        out = kind(linear, *quantize_weight(linear.weight))(x)
        assert (out.shape, out.dtype) == (expected.shape, torch.float32)
        assert float((out - expected).norm() / expected.norm()) < 0.02


def kinds() -> list[Any]:
    """What a layer may become here: the second only with the compiled kernels."""
    return [Int8Linear] if native.library() is None else [Int8Linear, BlockLinear]


@pytest.mark.parametrize("device", ["cpu", "cuda", "cpu without kernels"])
def test_tied_and_output_layers_stay_and_the_rest_shrinks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    from transformers import AutoModelForCausalLM

    if device == "cpu without kernels":
        monkeypatch.setattr(native, "library", lambda: None)
    kind = kinds()[-1] if device == "cpu" else Int8Linear
    for tied in (True, False):
        folder = tiny_model.make(tmp_path / str(tied), tied=tied)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        linears = sum(
            m.weight.nbytes
            for n, m in model.named_modules()
            if isinstance(m, torch.nn.Linear) and "proj" in n
        )
        saved = quantize_int8(model, partial(model, torch.tensor([[1, 2, 3]])), device[:4].strip())
        assert isinstance(model.lm_head, torch.nn.Linear)
        assert all(type(m) is kind for n, m in model.named_modules() if n.endswith("_proj"))
        assert 0.6 * linears < saved < 0.75 * linears


@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, fault: float) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model.make(tmp_path), dtype=torch.float32)
    model.requires_grad_(False)
    model.model.layers[0].mlp.up_proj.weight[0, 0] = fault
    with pytest.raises(ModelCorrupt, match=r"layers\.0\.mlp\.up_proj\.weight has numbers"):
        quantize_int8(model, partial(model, torch.tensor([[1, 2, 3]])), "cpu")


def test_a_model_of_int8_weights_joins_products_of_the_same_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native.library() is None:
        pytest.skip("no compiled kernels: apt-get install g++")
    llama = next(a for a in ARCHITECTURES if a.name == "Llama, SmolLM, SmolLM2")
    loaded = load.load(llama.make(tmp_path), INT8, MODEL)
    runner = choose_runner(loaded, INT8, 64, build._batched).runner
    called: list[int] = []
    call = native.call

    def count(name: str, *given: Any) -> None:
        if name == "llm_product_int8":
            called.append(given[6])  # the number of layers
        call(name, *given)

    monkeypatch.setattr(native, "call", count)
    probed(runner, loaded.codec, [1, 2, 3], (0, 2, 3))
    layers = loaded.model.config.num_hidden_layers
    assert called == 2 * layers * [3, 1, 2, 1]


def test_loading_says_what_int8_saves_and_costs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        loaded = load.load(tiny_model.make(tmp_path), INT8, MODEL)
    (record,) = (r for r in caplog.records if "int8" in r.message)
    assert 0 < record.__dict__["relative_difference_of_logits"] < 0.1
    assert choose_runner(loaded, INT8, 64, build._batched).kind == "batched"


def test_a_model_that_int8_destroys_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def destroy(model: Any, forward: Any, device: str) -> int:
        for parameter in model.parameters():
            parameter.zero_()
        return 1

    monkeypatch.setattr(load, "quantize_int8", destroy)
    with pytest.raises(ModelUnsupported, match="does not tolerate int8"):
        load.load(tiny_model.make(tmp_path), INT8, MODEL)


@pytest.mark.parametrize(
    "name",
    ["Llama, SmolLM, SmolLM2", "GPT-NeoX, Pythia", "Mixtral", "Mamba", "Jamba", "RecurrentGemma"],
)
def test_it_suits_models_that_are_built_differently(tmp_path: Path, name: str) -> None:
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    loaded = load.load(architecture.make(tmp_path), INT8, MODEL)
    choose_runner(loaded, INT8, 64, build._batched)
