"""Checkpoints that are quantised already are served as they are stored, or refused with a reason.

The packing of unit.runtime.quantised_models was compared by hand with what the libraries make of the
same integers, scales and zero points: see docs/decisions.md.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]

from safetensors.torch import load_file, save_file  # noqa: E402

from llm_runtime.compute import native, products  # noqa: E402
from llm_runtime.compute.stored import StoredLinear  # noqa: E402
from llm_runtime.contract import EngineConfig, ModelConfig, RuntimeConfig  # noqa: E402
from llm_runtime.errors import ConfigInvalid, ModelCorrupt, ModelUnsupported  # noqa: E402
from llm_runtime.fetching.outline import of_folder  # noqa: E402
from llm_runtime.files import fit  # noqa: E402
from llm_runtime.loading import build, load  # noqa: E402
from llm_runtime.loading.agreement import difference  # noqa: E402
from llm_runtime.loading.loaded import Loaded  # noqa: E402
from unit.runtime import tiny_model  # noqa: E402
from unit.runtime.engine.architectures import ARCHITECTURES  # noqa: E402
from unit.runtime.quantised_models import LAYOUTS, Layout, quantise  # noqa: E402

CPU = EngineConfig(device="cpu", max_model_length=64, max_batch_size=2, max_batch_tokens=32)
MODEL = ModelConfig(name="m")
PROBE = [1, 20, 33, 7, 250, 91]
GPTQ = Layout("gptq", symmetric=True)
PACKED = Layout("pack-quantized")
LAYER = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.make(tmp_path_factory.mktemp("plain"), tied=False)


def logits(loaded: Loaded) -> list[float]:
    return load.reference_logits(loaded.model, PROBE)


def stored_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave each layer as it is stored."""
    monkeypatch.setattr("llm_runtime.loading.quantised._served", lambda stored, device: stored)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.id)
def test_what_is_stored_are_the_weights_that_were_meant(
    plain: Path, tmp_path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, twin = quantise(plain, tmp_path, layout)
    stored_only(monkeypatch)
    assert (
        difference(logits(load.load(packed, CPU, MODEL)), logits(load.load(twin, CPU, MODEL)))
        < 1e-5
    )


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "no kernels"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.id)
def test_products_of_integers_differ_by_rounding_only(
    plain: Path, tmp_path: Path, layout: Layout, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernels:
        monkeypatch.setattr(native, "library", lambda: None)
        monkeypatch.setattr(products, "usable", lambda kind: False)
    packed, twin = quantise(plain, tmp_path, layout)
    loaded = load.load(packed, CPU, MODEL)
    most = 0.06 if kernels else 0.015  # Products of the compiled kernels round activations, too.
    assert difference(logits(loaded), logits(load.load(twin, CPU, MODEL))) < most


@pytest.mark.parametrize(
    "layout", [GPTQ, PACKED, Layout("gptq", ordered=True)], ids=lambda it: it.id
)
def test_a_quantised_model_serves_batched_and_generates(
    plain: Path, tmp_path: Path, layout: Layout
) -> None:
    packed, _ = quantise(plain, tmp_path, layout)
    assert build.build_model(RuntimeConfig(model=MODEL, engine=CPU), packed).kind == "batched"


def test_older_gptq_is_described_in_a_file_of_its_own(plain: Path, tmp_path: Path) -> None:
    packed, twin = quantise(plain, tmp_path, GPTQ)
    settings = json.loads((packed / "config.json").read_text())
    described = settings.pop("quantization_config")
    for name in ("quant_method", "checkpoint_format", "lm_head"):
        del described[name]
    (packed / "config.json").write_text(json.dumps(settings))
    (packed / "quantize_config.json").write_text(json.dumps(described))
    assert (
        difference(logits(load.load(packed, CPU, MODEL)), logits(load.load(twin, CPU, MODEL)))
        < 0.06
    )


def test_a_stored_output_layer_is_not_the_embedding(plain: Path, tmp_path: Path) -> None:
    packed, twin = quantise(plain, tmp_path, Layout("gptq", head=True))
    change(packed / "config.json", tie_word_embeddings=True)
    loaded = load.load(packed, CPU, MODEL)
    assert difference(logits(loaded), logits(load.load(twin, CPU, MODEL))) < 0.06
    assert not isinstance(loaded.model.lm_head, torch.nn.Linear)


def test_what_a_configuration_calls_quantised_and_is_not_is_loaded_as_it_is(
    plain: Path, tmp_path: Path
) -> None:
    _, twin = quantise(plain, tmp_path, GPTQ)
    expected = logits(load.load(twin, CPU, MODEL))
    change(twin / "config.json", quantization_config=GPTQ.config)
    loaded = load.load(twin, CPU, MODEL)
    assert logits(loaded) == expected
    assert not hasattr(loaded.model.config, "quantization_config")


def test_int8_of_a_row_stays_int8_and_int8_of_groups_becomes_bfloat16(
    plain: Path, tmp_path: Path
) -> None:
    if native.library() is None:
        pytest.skip("no compiled kernels: apt-get install g++")
    for layout, dtype in (
        (Layout("int-quantized", bits=8, group=-1, symmetric=True), torch.uint8),
        (Layout("pack-quantized", bits=8, symmetric=True), torch.bfloat16),
    ):
        packed, _ = quantise(plain, tmp_path / layout.id, layout)
        model = load.load(packed, CPU, MODEL).model
        assert model.get_submodule(LAYER).weight.dtype is dtype


def test_the_log_says_what_was_stored_and_what_the_products_round(
    plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    packed, _ = quantise(plain, tmp_path, Layout("int-quantized", bits=8, group=-1, symmetric=True))
    with caplog.at_level(logging.INFO):
        load.load(packed, CPU, MODEL)
    said = next(r.__dict__ for r in caplog.records if "served as they are stored" in r.message)
    assert sum(said["layers"].values()) == 14
    assert said["relative_difference_of_logits"] < 0.06


def test_products_that_compute_something_else_are_found_at_the_start(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, _ = quantise(plain, tmp_path, GPTQ)
    monkeypatch.setattr(
        "llm_runtime.loading.quantised._served",
        lambda stored, device: torch.nn.Linear(stored.in_features, stored.out_features, bias=False),
    )
    with pytest.raises(ModelUnsupported, match="does not tolerate products of integers"):
        load.load(packed, CPU, MODEL)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.id)
def test_what_is_computed_before_loading_is_what_a_quantised_model_takes(
    plain: Path, tmp_path: Path, layout: Layout
) -> None:
    if native.library() is None:
        pytest.skip("no compiled kernels: apt-get install g++")
    packed, _ = quantise(plain, tmp_path, layout)
    model = load.load(packed, CPU, MODEL).model
    tensors = (*model.parameters(), *model.buffers())
    real = sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
    computed = fit.needed(of_folder(packed).sizing(CPU, "cpu"), surely=True).weights
    assert computed == pytest.approx(real, rel=0.1)


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_quantising_twice_is_refused_with_a_way_out(plain: Path, tmp_path: Path) -> None:
    packed, _ = quantise(plain, tmp_path, GPTQ)
    asked = CPU.model_copy(update={"quantization": "int8"})
    with pytest.raises(ConfigInvalid, match=r"gptq of 4 bits\).*set engine\.quantization to none"):
        load.load(packed, asked, MODEL)


Tensors = dict[str, Any]


def _without(last: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.__delitem__(f"{LAYER}.{last}")


def _with(last: str, change: Callable[[Any], Any]) -> Callable[[Tensors], None]:
    def mutate(tensors: Tensors) -> None:
        tensors[f"{LAYER}.{last}"] = change(tensors[f"{LAYER}.{last}"]).contiguous()

    return mutate


def _number(value: float) -> Callable[[Any], Any]:
    return lambda tensor: tensor.index_fill(0, torch.tensor([1]), value)


def _unnamed(tensors: Tensors) -> None:
    for name in [name for name in tensors if name.startswith(f"{LAYER}.")]:
        tensors[name.replace("up_proj", "side_proj")] = tensors.pop(name)


FAULTS = [
    (GPTQ, _without("qzeros"), ModelCorrupt, "up_proj is to be gptq of 4 bits, but has no qzeros"),
    (GPTQ, _without("scales"), ModelCorrupt, "has no scales"),
    (GPTQ, _without("qweight"), ModelCorrupt, "has no qweight"),
    (PACKED, _without("weight_zero_point"), ModelCorrupt, "has no weight_zero_point"),
    (PACKED, _without("weight_shape"), ModelCorrupt, "has no weight_shape"),
    (GPTQ, _with("qweight", lambda t: t[:-1]), ModelCorrupt, r"up_proj\.\w+ is \w+ of shape"),
    (GPTQ, _with("qweight", lambda t: t[:, :-8]), ModelCorrupt, r"up_proj\.\w+ is \w+ of shape"),
    (GPTQ, _with("scales", lambda t: t[:1]), ModelCorrupt, r"scales is F16 of shape \[1, 128\]"),
    (GPTQ, _with("scales", lambda t: t[0]), ModelCorrupt, "scales has 1 dimensions, not 2"),
    (GPTQ, _with("qzeros", lambda t: t.float()), ModelCorrupt, "qzeros is F32"),
    (GPTQ, _with("g_idx", lambda t: t * 0), ModelCorrupt, "does not put 32 inputs into each of 2"),
    (GPTQ, _with("g_idx", lambda t: t - 1), ModelCorrupt, "does not put 32 inputs into each of 2"),
    (PACKED, _with("weight_packed", lambda t: t[:, :-1]), ModelCorrupt, "weight_packed is I32"),
    (
        PACKED,
        _with("weight_shape", lambda t: t + 8),
        ModelCorrupt,
        r"weight_shape says \[136, 72\]",
    ),
    (GPTQ, _with("scales", _number(float("inf"))), ModelCorrupt, "scales that are not finite"),
    (
        PACKED,
        _with("weight_scale", _number(float("nan"))),
        ModelCorrupt,
        "scales that are not finite",
    ),
    (GPTQ, _unnamed, ModelCorrupt, "missing.*unexpected"),
]


@pytest.mark.parametrize(("layout", "mutate", "kind", "words"), FAULTS)
def test_what_can_not_be_right_is_refused_by_name(
    plain: Path,
    tmp_path: Path,
    layout: Layout,
    mutate: Callable[[Tensors], None],
    kind: type[Exception],
    words: str,
) -> None:
    packed, _ = quantise(plain, tmp_path, layout)
    tensors = load_file(packed / "model.safetensors")
    mutate(tensors)
    save_file(tensors, packed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(kind, match=words):
        load.load(packed, CPU, MODEL)


def test_a_layer_of_another_shape_than_the_models_is_refused(plain: Path, tmp_path: Path) -> None:
    packed, _ = quantise(plain, tmp_path, GPTQ)
    change(packed / "config.json", intermediate_size=96)
    with pytest.raises(ModelCorrupt, match="64 outputs and 96 inputs as gptq of 4 bits take"):
        load.load(packed, CPU, MODEL)


def test_groups_that_do_not_divide_are_refused_with_both_numbers(
    plain: Path, tmp_path: Path
) -> None:
    packed, _ = quantise(plain, tmp_path, GPTQ)
    settings = GPTQ.config | {"group_size": 48}
    change(packed / "config.json", quantization_config=settings)
    with pytest.raises(
        ModelUnsupported, match=r"groups of 48 do not divide the (64|128) inputs of"
    ):
        load.load(packed, CPU, MODEL)


def test_quantised_experts_are_refused(tmp_path: Path) -> None:
    mixtral = next(each for each in ARCHITECTURES if each.name == "Mixtral").make(
        tmp_path / "plain"
    )
    weights = load_file(mixtral / "model.safetensors")
    name = min(name for name in weights if "experts" in name)
    layer = name.removesuffix(".weight")
    del weights[name]
    zeros = {"qweight": (8, 32), "scales": (1, 32), "qzeros": (1, 4)}
    for last, shape in zeros.items():
        kind = torch.float16 if last == "scales" else torch.int32
        weights[f"{layer}.{last}"] = torch.zeros(shape, dtype=kind)
    save_file(weights, mixtral / "model.safetensors", metadata={"format": "pt"})
    change(mixtral / "config.json", quantization_config=Layout("gptq", group=-1).config)
    with pytest.raises(ModelUnsupported, match=r"experts.* is stored quantised, (and|but)"):
        load.load(mixtral, CPU, MODEL)


def test_stored_layers_answer_alike_for_all_their_outputs_at_once_and_in_parts(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, _ = quantise(plain, tmp_path, Layout("awq"))
    stored_only(monkeypatch)
    layer = load.load(packed, CPU, MODEL).model.get_submodule(LAYER)
    assert isinstance(layer, StoredLinear)
    x = torch.randn(2, 3, 64)
    whole = layer(x)
    monkeypatch.setattr("llm_runtime.compute.stored._AT_ONCE", 24 * 64)
    assert torch.allclose(layer(x), whole, atol=1e-5)
    assert whole.shape == (2, 3, 128)
