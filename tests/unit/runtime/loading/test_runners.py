"""Which runner serves a model: batched where that is proven to be right,
else the slow path, else none."""

import logging
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    BertConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Phi3Config,
)

from llm_runtime.compute.logits.sampler import Sampler  # noqa: E402
from llm_runtime.compute.sequential import SequentialRunner  # noqa: E402
from llm_runtime.contract import EngineConfig, ModelConfig  # noqa: E402
from llm_runtime.engine.blocks import BlockPool  # noqa: E402
from llm_runtime.errors import ModelUnsupported, OutOfMemory  # noqa: E402
from llm_runtime.files.fit import CACHE_FRACTION  # noqa: E402
from llm_runtime.loading import agreement, build, runners  # noqa: E402
from llm_runtime.loading.load import load, reference_logits  # noqa: E402
from llm_runtime.loading.loaded import Loaded  # noqa: E402
from llm_runtime.loading.runners import choose_runner, obstacle, windows_of  # noqa: E402
from unit.runtime.engine.architectures import ARCHITECTURES, spread  # noqa: E402

ENGINE = EngineConfig(device="cpu", max_model_length=96, max_batch_size=4, max_batch_tokens=32)
LENGTH = 96
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 48,
    "long_factor": [2.0] * 48,
}


@pytest.fixture
def loaded(tmp_path: Path, request: pytest.FixtureRequest) -> Loaded:
    architecture = next(
        a for a in ARCHITECTURES if a.name == getattr(request, "param", "Llama, SmolLM, SmolLM2")
    )
    return load(architecture.make(tmp_path), ENGINE, ModelConfig(name="m"))


def test_logits_that_differ_lead_to_the_slow_path_and_a_warning_that_says_why(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = agreement.probed

    def wrong(runner: Any, *others: Any) -> list[float]:
        found = right(runner, *others)
        return found if isinstance(runner, SequentialRunner) else [1.0] * len(found)

    monkeypatch.setattr(agreement, "probed", wrong)
    with caplog.at_level(logging.WARNING):
        chosen = choose_runner(loaded, ENGINE, LENGTH, build._batched)
    assert chosen.kind == "sequential"
    (record,) = (r for r in caplog.records if "slow path" in r.message)
    assert "TransformersRunner differ" in record.__dict__["reason"]


def test_a_model_that_neither_runner_gets_right_is_refused(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "probed", lambda *a: [1.0] * loaded.codec.vocabulary_size)
    with pytest.raises(ModelUnsupported, match="SequentialRunner differ"):
        choose_runner(loaded, ENGINE, LENGTH, build._batched)


def test_bert_is_no_causal_model_and_is_refused(loaded: Loaded) -> None:
    settings = BertConfig(
        vocab_size=260, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    bert = AutoModelForCausalLM.from_config(settings).eval().requires_grad_(False)
    spread(bert)
    with pytest.raises(ModelUnsupported, match="reads ahead"):
        choose_runner(
            Loaded(bert, loaded.codec, "cpu", "float32", 512, 0), ENGINE, LENGTH, build._batched
        )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (LlamaConfig(), None),
        (MistralConfig(sliding_window=8), None),
        (MambaConfig(), "LinearAttentionLayer"),
        (Llama4TextConfig(attention_chunk_size=64), "chunks of 64"),
        (Llama4TextConfig(attention_chunk_size=8192), None),
        (
            Phi3Config(
                rope_parameters=LONGROPE, original_max_position_embeddings=64, pad_token_id=0
            ),
            "longrope",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_a_short_probe_can_not_see_is_read_from_the_configuration(
    settings: Any, words: str | None
) -> None:
    found = obstacle(settings, LENGTH)
    assert found is None if words is None else words in (found or "")


@pytest.mark.parametrize("loaded", ["Gemma 2", "Mistral with a sliding window"], indirect=True)
def test_a_window_of_any_size_is_shortened_for_the_probe_and_restored(loaded: Loaded) -> None:
    probe = agreement.probe_tokens(loaded.codec.vocabulary_size, LENGTH)
    before = reference_logits(loaded.model, probe)
    with windows_of(loaded.model, runners.PROBE_WINDOW):
        assert agreement.difference(reference_logits(loaded.model, probe), before) > 0.01
    assert reference_logits(loaded.model, probe) == before


@pytest.mark.parametrize("loaded", ["Mistral with a sliding window"], indirect=True)
def test_a_batched_runner_that_ignores_the_window_is_not_taken(loaded: Loaded) -> None:
    def ignores_windows(loaded: Loaded, engine: EngineConfig, length: int) -> tuple[BlockPool, Any]:
        far_sighted = type(loaded.model)(
            MistralConfig(**{**loaded.model.config.to_dict(), "sliding_window": None})
        )
        far_sighted.load_state_dict(loaded.model.state_dict())
        return BlockPool(16), SequentialRunner(far_sighted.eval(), Sampler())

    assert choose_runner(loaded, ENGINE, LENGTH, ignores_windows).kind == "sequential"


@pytest.mark.parametrize(
    "loaded", ["Mistral with a sliding window", "Gemma 2", "GPT-OSS"], indirect=True
)
def test_a_batched_runner_that_honours_the_window_is_taken(loaded: Loaded) -> None:
    def honours_windows(loaded: Loaded, engine: EngineConfig, length: int) -> tuple[BlockPool, Any]:
        return BlockPool(16), SequentialRunner(loaded.model, Sampler())

    assert choose_runner(loaded, ENGINE, LENGTH, honours_windows).kind == "batched"


@pytest.mark.parametrize(
    ("loaded", "sequence_bytes"),
    [
        ("BLOOM", 2 * 2 * 32 * 4 * LENGTH),  # keys and values of two layers
        (
            "Mistral with a sliding window",
            2 * 2 * 32 * 4 * 12,
        ),  # no more than the probe's first chunk, past the window
        ("Mamba", 2 * (64 * 4 + 64 * 8) * 4),  # states, whatever the length
    ],
    indirect=["loaded"],
)
def test_memory_bounds_how_many_sequences_run(
    loaded: Loaded, sequence_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> Any:
        raise ModelUnsupported("slow path wanted")

    monkeypatch.setattr(runners, "SERVING_BYTES", 0)
    monkeypatch.setattr(runners, "activation_bytes", lambda *_: 0)
    monkeypatch.setattr(
        runners, "available_bytes", lambda: int(3.2 * sequence_bytes / CACHE_FRACTION)
    )
    assert choose_runner(loaded, ENGINE, LENGTH, refused).pool.size == 3 * BlockPool.needed(LENGTH)
    monkeypatch.setattr(runners, "available_bytes", lambda: sequence_bytes // 2)
    with pytest.raises(OutOfMemory):
        choose_runner(loaded, ENGINE, LENGTH, refused)
