"""`llm-runtime fit` of a registered model: the server is asked for small pieces only."""

from __future__ import annotations

import json
import struct
import uuid
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llm_runtime.__main__ import cli
from llm_runtime.fetching import fetch, registry
from mlflow_fixtures import mlflow_server
from unit.runtime.fetching.fakes import write_tokenizer

__all__ = ["mlflow_server"]

NUMBERS = 2048 * 2048
SETTINGS = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 1000,
    "num_key_value_heads": 4, "max_position_embeddings": 512,
}  # fmt: skip


def write(folder: Path) -> Path:
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(SETTINGS))
    header = json.dumps(
        {"layer.weight": {"dtype": "F32", "shape": [2048, 2048], "data_offsets": [0, 4 * NUMBERS]}}
    ).encode()
    (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header + bytes(4 * NUMBERS)
    )
    return folder


def test_a_registered_model_is_judged_without_its_weights(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"bot-{uuid.uuid4().hex[:8]}"
    source = write(tmp_path / "source")
    arguments = ["--name", name, "--alias", "champion"]
    pushed = CliRunner().invoke(
        cli, ["push", str(source), *arguments, "--tracking-uri", mlflow_server]
    )
    assert pushed.exit_code == 0, pushed.stderr
    taken: list[str] = []
    download = registry.MlflowRegistry.download
    monkeypatch.setattr(
        registry.MlflowRegistry,
        "download",
        lambda *given: (taken.append(given[2]), download(*given))[1],
    )
    monkeypatch.setattr(fetch, "fetch", lambda *_: pytest.fail("the model was fetched"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)

    asked = ["fit", f"models:/{name}@champion", "--device", "cpu", "--json", "--memory"]
    fits, does_not = (CliRunner().invoke(cli, [*asked, memory]) for memory in ("1Gi", "10Mi"))

    assert (fits.exit_code, does_not.exit_code) == (0, 1), (fits.stderr, does_not.stderr)
    assert json.loads(fits.stdout)["weights_bytes"] == 4 * NUMBERS
    assert taken
    assert not [path for path in taken if path.endswith(".safetensors")]
