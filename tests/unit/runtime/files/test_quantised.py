"""What a configuration says of quantised weights, and what headers show of them: without torch."""

from typing import Any

import pytest

from llm_runtime.errors import ConfigInvalid, ModelCorrupt, ModelUnsupported
from llm_runtime.files.quantised import Format, quantisation_of, refuse_twice
from llm_runtime.files.stored_layers import (
    StoredLayer,
    plain_tensors,
    stored_layers,
    stores_head,
)

GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}
AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"}
WEIGHTS: dict[str, Any] = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}


def compressed(stored_as: str = "pack-quantized", **fields: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": WEIGHTS} | fields
    return {
        "quant_method": "compressed-tensors", "format": stored_as, "config_groups": {"group_0": group},
    }  # fmt: skip


def format_of(config: dict[str, Any], layer: str = "model.layers.0.q_proj") -> Format:
    found = quantisation_of({"quantization_config": config}, {})
    assert found is not None
    return found.format_of(layer)


def test_nothing_said_is_nothing_quantised() -> None:
    assert quantisation_of({"model_type": "llama"}, {}) is None
    assert quantisation_of({"quantization_config": {}}, []) is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GPTQ, Format("gptq", 4, 128)),
        (GPTQ | {"bits": 8, "group_size": -1}, Format("gptq", 8, -1)),
        (GPTQ | {"checkpoint_format": "gptq_v2", "desc_act": True}, Format("gptq_v2", 4, 128)),
        (GPTQ | {"format": "gptq_v2", "dynamic": {"-:.*down.*": {}}}, Format("gptq_v2", 4, 128)),
        (AWQ, Format("awq", 4, 64)),
        (
            {"quant_method": "awq", "w_bit": 4, "q_group_size": 32, "version": "GEMM"},
            Format("awq", 4, 32),
        ),
        (compressed(), Format("pack-quantized", 4, 128, symmetric=True)),
        (
            compressed(weights=WEIGHTS | {"symmetric": False, "actorder": "weight"}),
            Format("pack-quantized", 4, 128),
        ),
        (
            compressed(weights={"num_bits": 8, "strategy": "channel", "group_size": None}),
            Format("pack-quantized", 8, -1, symmetric=True),
        ),
        (
            compressed(
                "int-quantized",
                weights={"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
                input_activations={"num_bits": 8, "dynamic": True, "strategy": "token"},
            ),
            Format("int-quantized", 8, -1, symmetric=True),
        ),
    ],
)
def test_a_format_is_what_the_tools_wrote(config: dict[str, Any], expected: Format) -> None:
    assert format_of(config) == expected


def test_the_language_models_own_part_and_gptqs_file_count_too() -> None:
    inner = quantisation_of({"text_config": {"quantization_config": AWQ}}, {})
    beside = quantisation_of({}, {"bits": 8, "group_size": 32, "desc_act": False})
    assert inner is not None
    assert beside is not None
    assert (str(inner), str(beside)) == ("awq of 4 bits", "gptq of 8 bits")


def test_layers_of_a_checkpoint_may_have_different_formats() -> None:
    config = compressed()
    groups = config["config_groups"]
    groups["wide"] = {
        "targets": ["re:.*down_proj$", "model.layers.1.q_proj"], "weights": WEIGHTS | {"num_bits": 8},
    }  # fmt: skip
    assert format_of(config).bits == 4
    assert format_of(config, "model.layers.0.down_proj").bits == 8
    assert format_of(config, "model.layers.1.q_proj").bits == 8
    del groups["group_0"]
    with pytest.raises(ModelUnsupported, match="names no format for it"):
        format_of(config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "by the scheme 'bitsandbytes'"),
        ({"quant_method": "fp8"}, "by the scheme 'fp8'"),
        ({"bits": 4}, "by the scheme None"),
        ("gptq", "is not an object"),
        (GPTQ | {"bits": 3}, "have 3 bits, not 4 or 8"),
        (GPTQ | {"bits": "4"}, "have '4' bits"),
        (GPTQ | {"checkpoint_format": "marlin"}, "in the format 'marlin'"),
        (GPTQ | {"is_marlin_format": True}, "in the format 'marlin'"),
        (GPTQ | {"group_size": 0}, "group size is 0"),
        (GPTQ | {"group_size": None}, "group size is None"),
        (GPTQ | {"dynamic": {"+:.*down.*": {"bits": 8}}}, "gives some layers another format"),
        (GPTQ | {"pack_dtype": "int16"}, "`pack_dtype` .* is 'int16', not int32"),
        (GPTQ | {"adapter": {"name": "lora", "rank": 64}}, "`adapter` .* asks for more"),
        (AWQ | {"bits": 8}, "have 8 bits, not 4"),
        (AWQ | {"version": "gemv"}, "in the version 'gemv', not gemm"),
        (AWQ | {"backend": "llm-awq"}, "in the version 'llm-awq'"),
        (compressed("float-quantized"), "stored as 'float-quantized'"),
        (compressed("marlin-24"), "stored as 'marlin-24'"),
        (compressed(weights=None), "no weights of integers"),
        (compressed(weights=WEIGHTS | {"type": "float"}), "no weights of integers"),
        (compressed(weights=WEIGHTS | {"num_bits": 2}), "have 2 bits"),
        (compressed("int-quantized"), "scales for groups"),
        (compressed(weights={"num_bits": 8, "strategy": "tensor"}), "scales are for a tensor"),
        (compressed(weights={"num_bits": 8}), "scales are for a tensor"),
        (compressed(input_activations={"num_bits": 8, "dynamic": False}), "not dynamically"),
        (compressed(output_activations={"num_bits": 8, "dynamic": True}), "not dynamically"),
        (compressed() | {"kv_cache_scheme": {"num_bits": 8}}, "`kv_cache_scheme`"),
        (compressed() | {"transform_config": {"config_groups": {}}}, "`transform_config`"),
        (compressed() | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "are sparse"),
        (compressed() | {"config_groups": {}}, "`config_groups` are missing"),
        (compressed() | {"config_groups": {"group_0": ["Linear"]}}, "is not an object"),
    ],
)
def test_what_is_not_read_is_refused_by_name_and_with_what_is(config: Any, words: str) -> None:
    with pytest.raises(ModelUnsupported, match=f"{words}.* This runtime reads GPTQ"):
        quantisation_of({"quantization_config": config}, {})


def test_a_quantised_checkpoint_is_not_quantised_again() -> None:
    found = quantisation_of({"quantization_config": AWQ}, {})
    refuse_twice(found, "none")
    refuse_twice(None, "int8")
    with pytest.raises(ConfigInvalid, match=r"engine\.quantization is int8, .*awq of 4 bits"):
        refuse_twice(found, "int8")


def tensor(dtype: str, *shape: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape)}


LAYER = "model.layers.0.mlp.down_proj"
HEADERS: dict[str, Any] = {
    "model.embed_tokens.weight": tensor("F16", 1000, 256),
    "lm_head.weight": tensor("F16", 1000, 256),
    f"{LAYER}.qweight": tensor("I32", 64, 256),
    f"{LAYER}.scales": tensor("F16", 4, 256),
    f"{LAYER}.qzeros": tensor("I32", 4, 32),
    f"{LAYER}.g_idx": tensor("I32", 512),
    f"{LAYER}.bias": tensor("F16", 256),
}


def checked(config: dict[str, Any], headers: dict[str, Any]) -> dict[str, StoredLayer]:
    found = stored_layers(quantisation_of({"quantization_config": config}, {}), headers)
    for layer in found.values():
        layer.check(*layer.shape)
    return found


def test_quantised_layers_are_those_whose_tensors_are() -> None:
    found = checked(GPTQ, HEADERS)
    assert found.keys() == {LAYER}
    assert found[LAYER].shape == (256, 512)
    assert plain_tensors(HEADERS, found.values()).keys() == {
        "model.embed_tokens.weight", "lm_head.weight", f"{LAYER}.bias",
    }  # fmt: skip
    assert not stores_head(found)
    assert stores_head(["lm_head"])


@pytest.mark.parametrize(
    ("tensors", "shape"),
    [
        ({"qweight": tensor("I32", 512, 32), "scales": tensor("F16", 8, 256),
          "qzeros": tensor("I32", 8, 32)}, (256, 512)),
        ({"weight_packed": tensor("I32", 256, 64), "weight_scale": tensor("BF16", 256, 4),
          "weight_shape": tensor("I64", 2)}, (256, 512)),
        ({"weight_packed": tensor("I32", 256, 63), "weight_scale": tensor("BF16", 256, 1),
          "weight_shape": tensor("I64", 2)}, (256, 504)),
        ({"weight": tensor("I8", 256, 512), "weight_scale": tensor("BF16", 256, 1)}, (256, 512)),
    ],
)  # fmt: skip
def test_a_layers_shape_is_read_off_its_integers(
    tensors: dict[str, Any], shape: tuple[int, int]
) -> None:
    if "qweight" in tensors:
        config = AWQ
    elif "weight" in tensors:
        config = compressed("int-quantized", weights={"num_bits": 8, "strategy": "channel"})
    else:
        whole = tensors["weight_scale"]["shape"][1] == 1
        config = (
            compressed(weights={"num_bits": 4, "strategy": "channel"}) if whole else compressed()
        )
    headers = {f"{LAYER}.{last}": entry for last, entry in tensors.items()}
    assert checked(config, headers)[LAYER].shape == shape


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"scales": None}, "but has no scales"),
        ({"scales": None, "qzeros": None}, "but has no scales and no qzeros"),
        ({"weight": tensor("F16", 256, 512)}, "but has a weight"),
        ({"weight_scale": tensor("F16", 256, 1)}, "but has a weight_scale"),
        ({"qweight": tensor("I32", 63, 256)}, r"shape \[63, 256\], but .* shape \[64, 256\]"),
        ({"qweight": tensor("I32", 63, 256), "g_idx": None}, "groups of 128 do not divide the 504"),
        (
            {"scales": tensor("F16", 5, 256)},
            r"scales is F16 of shape \[5, 256\].* of shape \[4, 256\]",
        ),
        ({"qzeros": tensor("I32", 4, 33)}, r"qzeros is I32 of shape \[4, 33\]"),
        ({"g_idx": tensor("I64", 512)}, "g_idx is I64"),
        ({"g_idx": tensor("I32", 1, 512)}, "g_idx has 2 dimensions, not 1"),
        ({"qweight": tensor("I32", 64)}, "qweight has 1 dimensions, not 2"),
    ],
)
def test_headers_that_can_not_be_right_are_named_before_anything_is_read(
    changed: dict[str, Any], words: str
) -> None:
    headers = {**HEADERS, **{f"{LAYER}.{last}": entry for last, entry in changed.items()}}
    headers = {name: entry for name, entry in headers.items() if entry is not None}
    with pytest.raises((ModelCorrupt, ModelUnsupported), match=words):
        checked(GPTQ, headers)


def test_quantised_weights_that_nothing_describes_are_corrupt() -> None:
    with pytest.raises(ModelCorrupt, match=r"down_proj is stored quantised, but neither"):
        stored_layers(None, HEADERS)
    with pytest.raises(ModelCorrupt, match=r"down_proj is stored quantised, but neither"):
        stored_layers(None, {f"{LAYER}.weight": tensor("I8", 256, 512)})


def test_names_that_a_plain_model_may_have_do_not_make_it_quantised() -> None:
    assert stored_layers(None, {"model.mixer.scales": tensor("F32", 16)}) == {}
