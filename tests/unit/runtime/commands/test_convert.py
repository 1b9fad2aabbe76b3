"""`llm-runtime convert`: real .bin files become safetensors; what would run code is refused."""

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(60)]

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from llm_runtime.__main__ import cli  # noqa: E402
from llm_runtime.commands import convert as command  # noqa: E402
from llm_runtime.contract import EngineConfig, ModelConfig  # noqa: E402
from llm_runtime.errors import ModelCorrupt, ModelUnsupported  # noqa: E402
from llm_runtime.loading.load import load  # noqa: E402
from llm_runtime.loading.unpickle import convert  # noqa: E402
from unit.runtime import tiny_model  # noqa: E402
from unit.runtime.quantised_models import Layout, quantise  # noqa: E402

CPU = EngineConfig(device="cpu", max_model_length=64, max_batch_size=2, max_batch_tokens=32)


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """A tiny model whose weights are in pytorch_model.bin."""
    folder = tiny_model.make(tmp_path / "pickled", tied=False)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def run(source: Path, target: Path) -> Result:
    return CliRunner().invoke(cli, ["convert", str(source), str(target)])


def tensors(folder: Path) -> dict[str, Any]:
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def test_a_converted_model_loads_and_the_source_stays(pickled: Path, tmp_path: Path) -> None:
    weights = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    result = run(pickled, tmp_path / "new")
    assert result.exit_code == 0, result.stderr
    assert "as tensors only" in result.stderr
    written = tensors(tmp_path / "new")
    assert written.keys() == weights.keys()
    assert all(torch.equal(written[name], weights[name]) for name in weights)
    assert load(tmp_path / "new", CPU, ModelConfig(name="m")).codec.chat_template
    assert (pickled / "pytorch_model.bin").exists()
    assert not list(tmp_path.glob(".partial-*"))


def test_pickled_weights_that_are_quantised_stay_so_and_load(tmp_path: Path) -> None:
    layout = Layout("gptq", symmetric=True)
    plain = tiny_model.make(tmp_path / "plain", tied=False)
    packed, _ = quantise(plain, tmp_path, layout)
    torch.save(load_file(packed / "model.safetensors"), packed / "pytorch_model.bin")
    (packed / "model.safetensors").unlink()
    settings = json.loads((packed / "config.json").read_text())
    described = settings.pop("quantization_config")
    (packed / "config.json").write_text(json.dumps(settings))
    (packed / "quantize_config.json").write_text(json.dumps(described))
    result = run(packed, tmp_path / "new")
    assert result.exit_code == 0, result.stderr
    assert tensors(tmp_path / "new")["model.layers.0.mlp.up_proj.qweight"].dtype is torch.int32
    load(tmp_path / "new", CPU, ModelConfig(name="m"))


def test_shards_become_shards_with_an_index(pickled: Path, tmp_path: Path) -> None:
    weights = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    names = sorted(weights)
    parts = {
        "pytorch_model-00001-of-00002.bin": names[::2],
        "pytorch_model-00002-of-00002.bin": names[1::2],
    }
    for file, held in parts.items():
        torch.save({name: weights[name] for name in held}, pickled / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (pickled / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (pickled / "pytorch_model.bin").unlink()
    target = tmp_path / "new"
    shutil.copytree(pickled, target, ignore=shutil.ignore_patterns("*.bin*"))
    convert([pickled / file for file in parts], target, "model", shard_bytes=60_000)
    places = json.loads((target / "model.safetensors.index.json").read_text())["weight_map"]
    assert places.keys() == weights.keys()
    assert len(set(places.values())) > 2
    for name, file in places.items():
        with safe_open(target / file, "pt") as opened:
            assert torch.equal(opened.get_tensor(name), weights[name])
    load(target, CPU, ModelConfig(name="m"))


def test_a_tied_output_layer_is_written_once_and_ties_again(tmp_path: Path) -> None:
    folder = tiny_model.make(tmp_path / "tied", tied=True)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert run(folder, tmp_path / "new").exit_code == 0
    assert "lm_head.weight" not in tensors(tmp_path / "new")
    load(tmp_path / "new", CPU, ModelConfig(name="m"))


def test_tensors_that_share_memory_otherwise_are_written_apart(tmp_path: Path) -> None:
    both = torch.arange(8.0)
    torch.save(
        {"a": both, "b": both[2:4], "c": both.reshape(2, 4).T}, tmp_path / "pytorch_model.bin"
    )
    convert([tmp_path / "pytorch_model.bin"], tmp_path, "model", 1 << 30)
    written = load_file(tmp_path / "model.safetensors")
    assert written["b"].tolist() == [2, 3]
    assert written["c"].tolist() == both.reshape(2, 4).T.tolist()


def test_an_adapter_is_converted_too(tmp_path: Path) -> None:
    source = tmp_path / "adapter"
    source.mkdir()
    (source / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    torch.save({"base_model.model.q.lora_A.weight": torch.ones(2, 2)}, source / "adapter_model.bin")
    assert run(source, tmp_path / "new").exit_code == 0
    assert {file.name for file in (tmp_path / "new").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


class Malicious:
    """Unpickled by Python itself it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def malicious(pickled: Path, tmp_path: Path) -> Iterator[Path]:
    torch.save(
        {"a": torch.ones(1), "b": Malicious(tmp_path / "ran")}, pickled / "pytorch_model.bin"
    )
    yield pickled
    assert not (tmp_path / "ran").exists()


def test_a_pickle_that_would_run_code_is_refused_and_leaves_nothing(
    malicious: Path, tmp_path: Path
) -> None:
    result = run(malicious, tmp_path / "new")
    assert result.exit_code == 1
    assert "pytorch_model.bin holds more than tensors, so it was not unpickled" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".partial-*"))


def test_a_plain_malicious_pickle_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    with pytest.raises((ModelUnsupported, ModelCorrupt)):
        convert([tmp_path / "pytorch_model.bin"], tmp_path, "model", 1 << 30)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", [{"epoch": 3, "w": torch.ones(1)}, [torch.ones(1)], {"state_dict": {}}]
)
def test_what_is_no_state_dict_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelUnsupported, match="not a state_dict"):
        convert([tmp_path / "pytorch_model.bin"], tmp_path, "model", 1 << 30)


def test_a_truncated_file_is_corrupt(pickled: Path, tmp_path: Path) -> None:
    file = pickled / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ModelCorrupt, match="not a complete PyTorch file"):
        convert([file], tmp_path, "model", 1 << 30)


@pytest.mark.parametrize(
    ("signal", "words"), [(9, "as it does where memory runs out"), (6, "status -6")]
)
def test_a_process_that_dies_is_told(
    pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal: int, words: str
) -> None:
    monkeypatch.setattr(command, "CHILD", ("sh", "-c", f"kill -{signal} $$"))
    result = run(pickled, tmp_path / "new")
    assert (result.exit_code, words in result.stderr) == (1, True)


def test_nothing_is_written_over_and_nothing_is_guessed(pickled: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    assert "is there already" in run(pickled, tmp_path / "new").stderr
    assert "is not a folder" in run(tmp_path / "none", tmp_path / "other").stderr
    (pickled / "pytorch_model.bin").unlink()
    assert "no pytorch_model" in run(pickled, tmp_path / "other").stderr
