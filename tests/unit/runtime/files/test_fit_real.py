"""What is computed before loading is what loading then takes."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

from llm_runtime.compute import linears, native  # noqa: E402
from llm_runtime.compute.embeddings import MODELS  # noqa: E402
from llm_runtime.contract import EngineConfig, ModelConfig  # noqa: E402
from llm_runtime.engine.blocks import BlockPool  # noqa: E402
from llm_runtime.errors import OutOfMemory  # noqa: E402
from llm_runtime.files import fit  # noqa: E402
from llm_runtime.loading import build, load, runners  # noqa: E402
from llm_runtime.loading.loaded import Loaded  # noqa: E402
from llm_runtime.machine.memory import MIB  # noqa: E402
from unit.runtime import tiny_model  # noqa: E402
from unit.runtime.engine.architectures import ARCHITECTURES  # noqa: E402

LENGTH = 96
NAMES = [
    "Llama, SmolLM, SmolLM2", "Mistral with a sliding window", "Gemma 2", "Gemma", "GPT-2", "GPT-NeoX, Pythia",
    "Falcon", "BLOOM", "Mixtral", "Qwen3-MoE", "GPT-OSS", "Llama 4 (text)", "DeepSeek-V3", "Command R7B, Command A",
]  # fmt: skip
TIED = {"Gemma", "Command R7B, Command A"}


def made(name: str, folder: Path) -> Path:
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    if name in TIED:
        architecture = type(architecture)(
            name, architecture.config, architecture.options | {"tie_word_embeddings": True}
        )
    return architecture.make(folder)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_weights_and_cache_are_what_was_computed(
    name: str, quantization: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = EngineConfig(
        device="cpu", max_model_length=LENGTH, max_batch_size=2, quantization=quantization
    )
    plans: list[fit.Sizing] = []
    monkeypatch.setattr(
        load, "check_fit", lambda plan, free: (plans.append(plan), fit.check_fit(plan, free))[1]
    )
    loaded = load.load(made(name, tmp_path), engine, ModelConfig(name="m"))
    real = weights_of(loaded)
    least = fit.needed(plans[0])
    most = fit.needed(plans[0], surely=True)
    assert least.weights <= 1.05 * real
    assert most.weights >= 0.95 * real
    if quantization == "none":
        assert least.weights == pytest.approx(real, rel=0.05)
        assert least.cache == pytest.approx(cache_of(loaded, engine, monkeypatch), rel=0.05)


def weights_of(loaded: Loaded) -> int:
    tensors = (*loaded.model.parameters(), *loaded.model.buffers())
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def test_architectures_whose_embedding_is_known_have_one_name_here_and_in_compute() -> None:
    classes = [getattr(transformers, name) for name in MODELS]
    assert {each.config_class.model_type for each in classes} == fit.ONE_COPY


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_checkpoint_in_bfloat16_takes_on_a_cpu_what_was_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool, quantization: Any
) -> None:
    if native.library() is None:
        pytest.skip("no compiled kernels: apt-get install g++")
    config = transformers.LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, vocab_size=512,
        tie_word_embeddings=tied,
    )  # fmt: skip
    folder = tiny_model.make(tmp_path, tied=tied)
    transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    engine = EngineConfig(device="cpu", max_model_length=LENGTH, quantization=quantization)
    monkeypatch.setattr(linears, "_gains", lambda samples: {s: {"blocks": 2.0} for s in samples})
    loaded = load.load(folder, engine, ModelConfig(name="m"))
    build._batched(loaded, engine, LENGTH)
    sizing = fit.Sizing(
        fit.tensors_of(folder), config.to_dict(), engine, "float32", "cpu", limit_bytes=None
    )
    assert fit.needed(sizing).weights == pytest.approx(weights_of(loaded), rel=0.02)
    assert fit.needed(sizing, surely=True).weights >= 0.98 * weights_of(loaded)


def cache_of(loaded: Loaded, engine: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of one sequence of LENGTH, as the runner asks for them."""
    blocks: list[int] = []
    room_for = runners.room_for
    monkeypatch.setattr(
        runners, "room_for", lambda size, *a, **k: (blocks.append(size), room_for(size, *a, **k))[1]
    )
    runners.choose_runner(loaded, engine, LENGTH, build._batched)
    return blocks[-1] * BlockPool.needed(LENGTH)


def test_nothing_is_read_of_what_will_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made("Llama, SmolLM, SmolLM2", tmp_path)
    monkeypatch.setattr(load, "available_bytes", lambda: 100_000)
    monkeypatch.setattr(load, "_weights", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(OutOfMemory, match=r"What would fit: .*of free memory"):
        load.load(folder, EngineConfig(device="cpu", max_model_length=4096), ModelConfig(name="m"))


@pytest.mark.parametrize(("left_mib", "cache_mib"), [(4000, 3200), (400, 144), (300, 48)])
def test_a_cache_on_a_cpu_leaves_what_serving_takes_but_for_one_sequence(
    left_mib: int, cache_mib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "available_bytes", lambda: left_mib * MIB)
    monkeypatch.setattr(runners, "limit_bytes", lambda: 8000 * MIB)
    assert runners._cache_room("cpu", EngineConfig(), 48 * MIB, 256 * MIB) == cache_mib * MIB
