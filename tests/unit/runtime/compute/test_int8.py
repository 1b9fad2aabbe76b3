"""Linear weights as 8-bit integers: what they cost in precision, what they save,
and what stays as it was."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

from llm_runtime.compute.int8 import Int8Linear, quantize_int8, quantize_weight  # noqa: E402
from llm_runtime.contract import EngineConfig, ModelConfig  # noqa: E402
from llm_runtime.errors import ModelUnsupported  # noqa: E402
from llm_runtime.loading import build, load  # noqa: E402
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
    out = Int8Linear(linear)(x)
    expected = linear(x)
    assert (out.shape, out.dtype) == (expected.shape, torch.float32)
    assert float((out - expected).norm() / expected.norm()) < 0.02


def test_tied_and_output_layers_stay_and_the_rest_shrinks(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    for tied in (True, False):
        folder = tiny_model.make(tmp_path / str(tied), tied=tied)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        linears = sum(
            m.weight.nbytes
            for n, m in model.named_modules()
            if isinstance(m, torch.nn.Linear) and "proj" in n
        )
        saved = quantize_int8(model, partial(model, torch.tensor([[1, 2, 3]])))
        assert isinstance(model.lm_head, torch.nn.Linear)
        assert all(
            isinstance(m, Int8Linear) for n, m in model.named_modules() if n.endswith("_proj")
        )
        assert 0.7 * linears < saved < 0.75 * linears


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
    def destroy(model: Any, forward: Any) -> int:
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
