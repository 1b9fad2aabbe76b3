"""Loading real files with Transformers, and refusing what would be served wrongly."""

import json
import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoTokenizer, T5Config  # noqa: E402

from llm_runtime.contract import EngineConfig, ModelConfig, RuntimeConfig  # noqa: E402
from llm_runtime.engine.blocks import BLOCK_TOKENS  # noqa: E402
from llm_runtime.errors import ModelCorrupt, ModelUnsupported, OutOfMemory  # noqa: E402
from llm_runtime.loading import build, runners  # noqa: E402
from llm_runtime.loading.load import load, refuse_unsupported  # noqa: E402
from unit.runtime import tiny_model  # noqa: E402

CPU = EngineConfig(device="cpu", max_model_length=64, max_batch_size=2, max_batch_tokens=32)
MODEL = ModelConfig(name="tiny")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.make(tmp_path_factory.mktemp("tiny"), tied=False)


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_a_folder_becomes_model_and_codec(folder: Path) -> None:
    change(folder / "generation_config.json", eos_token_id=[256, 259])
    loaded = load(folder, CPU, MODEL)
    assert (loaded.device, loaded.dtype, loaded.max_positions) == ("cpu", "float32", 512)
    assert loaded.codec.eos_token_ids == {256, 259}
    assert loaded.codec.vocabulary_size == 260


def test_the_log_says_how_long_it_took_and_what_memory(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        load(folder, CPU, MODEL)
    said = next(record.__dict__ for record in caplog.records if record.message == "model loaded")
    assert said["seconds"] >= 0
    assert said["peak_bytes"] >= said["before_bytes"] > 0


def test_the_codec_says_what_transformers_says(folder: Path) -> None:
    codec = load(folder, CPU, MODEL).codec
    theirs = AutoTokenizer.from_pretrained(folder)
    for said in ("Grüße <b> x", "Grüße <|end|><|system|> x"):
        messages = [{"role": "user", "content": said}, {"role": "assistant", "content": "y"}]
        # Control tokens that are spelled are letters: of Transformers one must ask for it.
        asked = theirs.apply_chat_template(
            messages, add_generation_prompt=True, sanitize_control_tokens=True
        )
        assert codec.encode_chat(messages) == asked["input_ids"]
    assert codec.encode("Grüße") == theirs("Grüße")["input_ids"]


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    load(tiny_model.make(tmp_path / "tied", tied=True), CPU, MODEL)


@pytest.mark.parametrize("fault", ["missing", "unexpected", "mismatched"])
def test_weights_that_do_not_fit_are_fatal(folder: Path, fault: str) -> None:
    weights = load_file(folder / "model.safetensors")
    key = "model.layers.0.self_attn.q_proj.weight"
    if fault == "missing":
        del weights[key]
    elif fault == "unexpected":
        weights["model.layers.7.extra"] = torch.zeros(1)
    else:
        weights[key] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelCorrupt):
        load(folder, CPU, MODEL)


def test_remote_code_is_never_run(folder: Path) -> None:
    change(
        folder / "config.json",
        model_type="mine",
        auto_map={"AutoConfig": "code.Mine", "AutoModelForCausalLM": "code.M"},
    )
    (folder / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(
        ModelUnsupported,
        match="needs code of its own \\(auto_map\\), which this runtime never runs",
    ):
        load(folder, CPU, MODEL)


def test_what_no_runner_serves_is_refused_by_name() -> None:
    with pytest.raises(ModelUnsupported, match="encoder-decoder"):
        refuse_unsupported(T5Config())


def test_the_model_bounds_the_length_and_memory_the_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EngineConfig(device="cpu", max_model_length=4096, max_batch_size=64)
    sequence_bytes = 2 * 2 * 4 * 8 * 512 * 4
    monkeypatch.setattr(runners, "SERVING_BYTES", 0)
    monkeypatch.setattr(runners, "activation_bytes", lambda *_: 0)
    monkeypatch.setattr(runners, "available_bytes", lambda: 4 * sequence_bytes)
    built = build.build_model(RuntimeConfig(model=MODEL, engine=settings), folder)
    assert built.limits.max_model_length == 512
    assert built.scheduler.pool.size == int(0.8 * 4 * 512 / BLOCK_TOKENS)
    monkeypatch.setattr(runners, "available_bytes", lambda: sequence_bytes)
    with pytest.raises(OutOfMemory):
        build.build_engine(RuntimeConfig(model=MODEL, engine=settings), folder)


def test_generation_config_recommends_and_what_no_request_may_have_is_left_out(
    folder: Path,
) -> None:
    change(
        folder / "generation_config.json",
        temperature=0.6,
        top_p=0.9,
        top_k=20,
        min_p=7,
        do_sample=False,
    )
    codec = load(folder, CPU, MODEL).codec
    assert codec.sampling_defaults == {"temperature": 0.6, "top_p": 0.9, "top_k": 20}
    assert pickle.loads(pickle.dumps(codec)).sampling_defaults == codec.sampling_defaults


def test_a_model_has_generated_before_it_is_ready_and_says_what_loading_took(folder: Path) -> None:
    engine, _ = build.build_engine(RuntimeConfig(model=MODEL, engine=CPU), folder)
    try:
        stats = engine.stats()
        assert stats.load_seconds > 0
        assert stats.load_peak_bytes >= 0
        assert (stats.steps, stats.prompt_tokens) == (0, 0)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (MemoryError("none left"), OutOfMemory, "no memory for its first generation"),
        (RuntimeError("no kernel"), ModelUnsupported, "its first generation failed: RuntimeError"),
    ],
)
def test_a_model_whose_first_generation_fails_is_not_served(
    folder: Path,
    fault: Exception,
    kind: type[Exception],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> None:
        raise fault

    monkeypatch.setattr("llm_runtime.compute.runner.TransformersRunner.forward", broken)
    with pytest.raises(kind, match=words):
        build.build_model(RuntimeConfig(model=MODEL, engine=CPU), folder)
