"""Whether a model fits, from config.json and headers alone:
shapes worked out by hand, refusals and their ways out."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_runtime.contract import EngineConfig
from llm_runtime.errors import ModelCorrupt, OutOfMemory
from llm_runtime.files.fit import (
    PROCESS_BYTES,
    Sizing,
    cache_bytes,
    check_fit,
    needed,
    tensors_of,
    ways_out,
    weight_bytes,
)
from llm_runtime.machine.memory import MIB
from unit.runtime.fetching.fakes import safetensors, write_model

HIDDEN = 1024
LAYERS = 8
VOCABULARY = 32000
LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 16,
    "num_key_value_heads": 4, "vocab_size": VOCABULARY, "max_position_embeddings": 131072, "tie_word_embeddings": False,
}  # fmt: skip
LINEARS = LAYERS * HIDDEN * HIDDEN
TENSORS: dict[str, Any] = {
    "model.embed_tokens.weight": {"dtype": "BF16", "shape": [VOCABULARY, HIDDEN]},
    "lm_head.weight": {"dtype": "BF16", "shape": [VOCABULARY, HIDDEN]},
} | {
    f"model.layers.{i}.mlp.up_proj.weight": {"dtype": "BF16", "shape": [HIDDEN, HIDDEN]} for i in range(LAYERS)
}  # fmt: skip
NUMBERS = LINEARS + 2 * VOCABULARY * HIDDEN
BESIDE = PROCESS_BYTES + 4 * VOCABULARY * HIDDEN
"""A CPU's, with the largest layer, the output layer, a second time."""
TIED = LLAMA | {"tie_word_embeddings": True}
HEAD = VOCABULARY * HIDDEN
INT8_HEAD = HEAD + 4 * VOCABULARY
TOKEN_BYTES = 2 * LAYERS * 4 * 64 * 4


def plan(
    device: str = "cuda", dtype: str = "float32", settings: dict[str, Any] = LLAMA, **engine: Any
) -> Sizing:
    return Sizing(TENSORS, settings, EngineConfig(max_batch_size=1, **engine), dtype, device)


def refusal(wanted: Sizing, free_bytes: int) -> str:
    with pytest.raises(OutOfMemory) as caught:
        check_fit(wanted, free_bytes)
    return str(caught.value)


def test_weights_are_counted_in_the_dtype_asked_for() -> None:
    assert weight_bytes(TENSORS, LLAMA, "float32") == 4 * NUMBERS
    assert weight_bytes(TENSORS, LLAMA, "bfloat16") == 2 * NUMBERS
    masks = {"mask": {"dtype": "BOOL", "shape": [8, 8]}}
    assert weight_bytes(masks, LLAMA, "float32") == 64


def test_a_tied_output_layer_is_counted_once() -> None:
    assert weight_bytes(TENSORS, TIED, "float32") == 4 * (NUMBERS - HEAD)


@pytest.mark.parametrize(
    ("kind", "layer"),
    [("int8", HIDDEN * (HIDDEN + 4)), ("int4", HIDDEN * (HIDDEN // 32 * (16 + 2 + 1) + 4))],
)
@pytest.mark.parametrize("surely", [True, False])
def test_integers_take_their_bits_and_their_scales(kind: Any, layer: int, surely: bool) -> None:
    on_gpu = plan(quantization=kind)
    assert needed(on_gpu, surely=surely).weights == LAYERS * layer + 4 * 2 * HEAD
    # The output layer is int8 in any case, and the embedding in the bfloat16 that it was stored in.
    on_cpu = plan("cpu", quantization=kind)
    assert needed(on_cpu, surely=surely).weights == LAYERS * layer + INT8_HEAD + 2 * HEAD
    tied = plan("cpu", settings=TIED, quantization=kind)
    assert needed(tied, surely=surely).weights == LAYERS * layer + INT8_HEAD
    unknown = plan("cpu", settings=TIED | {"model_type": "new"}, quantization=kind)
    assert needed(unknown, surely=surely).weights == LAYERS * layer + 4 * HEAD


def test_weights_that_were_stored_in_bfloat16_may_stay_so_on_a_cpu() -> None:
    assert needed(plan("cpu")).weights == 2 * NUMBERS
    assert needed(plan("cpu"), surely=True).weights == 4 * (NUMBERS - HEAD) + 2 * HEAD
    tied = plan("cpu", settings=TIED)
    assert needed(tied).weights == 2 * (NUMBERS - HEAD)
    assert needed(tied, surely=True).weights == 4 * (NUMBERS - HEAD)
    assert needed(plan()).weights == 4 * NUMBERS
    stored = {name: tensor | {"dtype": "F32"} for name, tensor in TENSORS.items()}
    assert needed(replace(plan("cpu"), tensors=stored)).weights == 4 * NUMBERS
    unknown = plan("cpu", settings=LLAMA | {"model_type": "new"})
    assert needed(unknown).weights == 2 * (NUMBERS - HEAD) + 4 * HEAD


@pytest.mark.parametrize(
    ("settings", "tokens", "numbers"),
    [
        (LLAMA, 64, 2 * LAYERS * 4 * 64 * 64),
        (LLAMA, 65, 2 * LAYERS * 4 * 64 * 96),  # whole blocks
        (LLAMA | {"num_key_value_heads": 16, "head_dim": 32}, 64, 2 * LAYERS * 16 * 32 * 64),
        (
            LLAMA | {"sliding_window": 32},
            64,
            2 * LAYERS * 4 * 64 * 64,
        ),  # the blocks keep every token
        (
            LLAMA | {"layer_types": ["full_attention"] + ["linear_attention"] * 7},
            64,
            2 * 4 * 64 * 64,
        ),
        (
            LLAMA
            | {
                "layer_types": ["full_attention"] + ["chunked_attention"] * 7,
                "attention_chunk_size": 32,
            },
            64,
            2 * 4 * 64 * (64 + 7 * 32),
        ),
        ({"n_embd": 64, "n_layer": 2, "n_head": 4}, 32, 2 * 2 * 64 * 32),
        (LLAMA | {"kv_lora_rank": 512, "qk_rope_head_dim": 64}, 32, LAYERS * 576 * 32),
        ({"model_type": "mamba", "num_hidden_layers": 2}, 32, 0),
        ({"model_type": "new", "depth": 2}, 32, 0),
    ],
)
def test_the_cache_of_one_sequence(settings: dict[str, Any], tokens: int, numbers: int) -> None:
    assert cache_bytes(settings, tokens, "bfloat16") == 2 * numbers


def test_what_fits_says_what_it_takes() -> None:
    need = check_fit(plan(max_model_length=1024), 1 << 34)
    assert (need.weights, need.cache) == (4 * NUMBERS, 1024 * TOKEN_BYTES)
    assert need.total == need.weights + need.cache / 0.8


def test_no_more_tokens_than_the_model_was_made_for() -> None:
    short = plan(settings=LLAMA | {"max_position_embeddings": 512}, max_model_length=4096)
    assert needed(short).cache == 512 * TOKEN_BYTES


def test_a_refusal_says_what_is_needed_and_what_is_there() -> None:
    said = refusal(plan(max_model_length=4096), 200 * MIB)
    assert re.search(r"weights 282 MiB as float32, .* 4096 tokens 64 MiB, reserve 16 MiB", said)
    assert "200 MiB are free on the GPU" in said
    assert "362 MiB of free memory" in said


def test_a_limit_on_the_cache_is_named_as_an_llmdeployment_calls_it() -> None:
    words = refusal(plan(max_model_length=4096, kv_cache_bytes=32 * MIB), 9000 * MIB)
    assert "engine.kvCacheMemory (stand-alone: engine.kvCacheBytes) allows 32 MiB" in words


@pytest.mark.parametrize(
    ("wanted", "free_mib", "ways"),
    [
        (plan(max_model_length=8192), 400, ["engine.dtype bfloat16", "engine.maxModelLength 6016"]),
        (plan(max_model_length=4096), 350, ["engine.dtype bfloat16", "quantization int8", "maxModelLength 3456"]),
        (plan(max_model_length=4096), 180, ["engine.dtype bfloat16 with engine.quantization int8"]),
        (plan(max_model_length=4096), 150, ["bfloat16 and engine.maxModelLength 896"]),
        (plan(max_model_length=256).changed(max_batch_size=1024), 350, ["engine.maxBatchSize 128"]),
        (plan(max_model_length=4096, kv_cache_bytes=32 * MIB), 9000, ["maxModelLength 2048", "kvCacheBytes"]),
        (plan(max_model_length=4096), 20, []),
        (plan("cpu", max_model_length=4096, quantization="int8"), 520, ["engine.dtype bfloat16"]),
    ],
)  # fmt: skip
def test_every_way_out_is_true(wanted: Sizing, free_mib: int, ways: list[str]) -> None:
    found = ways_out(wanted, free_mib * MIB)
    assert all(any(way in words for words in found) for way in ways), found
    assert len(found) >= len(ways)
    refusal(wanted, free_mib * MIB)
    for words in found:
        check_fit(*followed(wanted, free_mib * MIB, words))


def followed(wanted: Sizing, free_bytes: int, words: str) -> tuple[Sizing, int]:
    """The plan and the free memory after doing what `words` say."""
    if memory := re.search(r"(\d+) MiB of free memory", words):
        free_bytes = int(memory[1]) * MIB
    changes: dict[str, Any] = {}
    for field, name in {
        "maxModelLength": "max_model_length",
        "maxBatchSize": "max_batch_size",
    }.items():
        if value := re.search(rf"{field} (\d+)", words):
            changes[name] = int(value[1])
    if limit := re.search(r"kvCacheBytes\): (\d+)", words):
        changes["kv_cache_bytes"] = int(limit[1])
    if kind := re.search(r"quantization (\w+)", words):
        changes["quantization"] = kind[1]
    return wanted.changed("bfloat16" if "bfloat16" in words else "", **changes), free_bytes


def test_on_a_cpu_int8_needs_the_whole_weights_for_a_moment() -> None:
    small = plan("cpu", max_model_length=256, quantization="int8")
    assert needed(small).total == needed(small).loading == 4 * NUMBERS + BESIDE
    assert "before the weights are quantised" in refusal(small, 4 * NUMBERS + BESIDE - 1)
    assert needed(replace(small, device="cuda")).total < 4 * NUMBERS


def test_a_cpu_needs_room_for_its_processes_for_packing_and_for_a_second_output_layer() -> None:
    tied = plan("cpu", settings=TIED, max_model_length=1024)
    share = 1024 * TOKEN_BYTES / 4
    head = 4 * HEAD
    copied = needed(tied, surely=True).reserve
    assert copied == pytest.approx(share + head + PROCESS_BYTES + head, abs=1)
    # Where the packed layer is the embedding, too, there is a copy only while it is packed.
    once = share + PROCESS_BYTES + head
    assert needed(tied).reserve == pytest.approx(once, abs=1)
    quantised = tied.changed(quantization="int8")
    assert needed(quantised, surely=True).reserve == pytest.approx(once, abs=1)
    assert needed(replace(tied, device="cuda")).reserve == pytest.approx(share, abs=1)


def test_a_refusal_names_the_limit_that_would_do() -> None:
    tight = replace(plan("cpu", max_model_length=4096), limit_bytes=1000 * MIB)
    need = needed(tight).total
    said = refusal(tight, need - 100 * MIB)
    assert "which a memory limit of 1120 MiB leaves instead of 1000 MiB" in said


def test_a_model_for_embeddings_has_no_cache_and_no_second_output_layer() -> None:
    wanted = replace(plan("cpu", settings=TIED), embeds=True)
    need = needed(wanted)
    assert need.cache == 0
    inner = 4 * HIDDEN
    # One text of the longest length, which is over a step's 1024.
    assert need.reserve == 4096 * (8 * HIDDEN + 2 * inner) * 4 + BESIDE
    shorter = replace(plan("cpu", settings=TIED, max_model_length=256), embeds=True)
    assert needed(shorter).reserve == need.reserve - (4096 - 1024) * (8 * HIDDEN + 2 * inner) * 4
    said = refusal(wanted, need.total - MIB)
    assert "keys and values" not in said
    assert "engine.quantization" not in said


def test_a_header_that_is_not_whole_is_corrupt_not_too_large(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors({"a.weight": 10})[:-1])
    with pytest.raises(ModelCorrupt):
        tensors_of(tmp_path)


def test_only_what_is_loaded_counts(tmp_path: Path) -> None:
    write_model(tmp_path, sharded=True)
    (tmp_path / "consolidated.safetensors").write_bytes(safetensors({"all": 30}))
    assert set(tensors_of(tmp_path)) == {"a.weight", "b.weight"}
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "model.safetensors").write_bytes(safetensors({"c.weight": 1}))
    assert set(tensors_of(tmp_path)) == {"c.weight"}
