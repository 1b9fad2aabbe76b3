"""`llm-runtime fit`: an answer before anything big is read or fetched."""

import http.server
import json
import math
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llm_runtime.__main__ import cli
from llm_runtime.commands.fit import bytes_of
from llm_runtime.errors import ConfigInvalid, ModelCorrupt
from llm_runtime.fetching import outline, stream
from llm_runtime.fetching.outline import of_files
from unit.runtime.fetching.fakes import FolderRegistry, write_tokenizer

SETTINGS = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 1000,
    "num_key_value_heads": 4, "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
}  # fmt: skip
NUMBERS = 4096 * 4096
DATA_BYTES = 2 * NUMBERS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of 2 x 32 MiB as bfloat16 in two shards that are holes: nobody is to read them."""
    home = tmp_path / "big"
    write_tokenizer(home)
    (home / "config.json").write_text(json.dumps(SETTINGS))
    shards = {f"layer.{n}.weight": f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    for tensor, file in shards.items():
        entry = {tensor: {"dtype": "BF16", "shape": [4096, 4096], "data_offsets": [0, DATA_BYTES]}}
        header = json.dumps(entry).encode()
        with (home / file).open("wb") as out:
            out.write(struct.pack("<Q", len(header)) + header)
            out.truncate(8 + len(header) + DATA_BYTES)
    (home / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return home


@pytest.fixture
def quantised(tmp_path: Path) -> Path:
    """A layer of 4096 x 4096 in GPTQ's 4 bits and an embedding; a file that is a hole."""
    home = tmp_path / "quantised"
    write_tokenizer(home)
    (home / "config.json").write_text(json.dumps(SETTINGS | {"quantization_config": GPTQ}))
    shapes = {
        "layer.1.qweight": ("I32", 4, [512, 4096]), "layer.1.scales": ("F16", 2, [32, 4096]),
        "layer.1.qzeros": ("I32", 4, [32, 512]), "layer.1.g_idx": ("I32", 4, [4096]),
        "embed.weight": ("F16", 2, [1000, 64]),
    }  # fmt: skip
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, size, shape) in shapes.items():
        start, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    written = json.dumps(header).encode()
    with (home / "model.safetensors").open("wb") as out:
        out.write(struct.pack("<Q", len(written)) + written)
        out.truncate(8 + len(written) + end)
    return home


def asked(*arguments: str) -> tuple[int, Any]:
    result = CliRunner().invoke(cli, ["fit", *arguments, "--json"])
    return result.exit_code, json.loads(result.stdout)


def test_what_fits_says_what_it_takes_and_ends_with_0(folder: Path) -> None:
    status, said = asked(str(folder), "--memory", "24Gi", "--device", "cuda")
    assert status == 0
    assert (said["fits"], said["would_fit"], said["available_bytes"]) == (True, [], 24 << 30)
    assert (said["weights_bytes"], said["dtype"]) == (2 * DATA_BYTES, "bfloat16")
    assert said["sequence_cache_bytes"] == 2 * 2 * 64 * 2 * 4096


def test_what_does_not_fit_ends_with_1_and_every_way_out_is_named(folder: Path) -> None:
    status, said = asked(str(folder), "--memory", "1000Mi", "--device", "cpu")
    assert (status, said["fits"], said["dtype"]) == (1, False, "float32")
    assert said["needed_bytes"] > said["available_bytes"]
    assert "engine.dtype bfloat16" in said["would_fit"]
    assert said["available_bytes"] == 440 << 20, "the server's own processes have their part of it"


GPTQ = {"bits": 4, "group_size": 128, "quant_method": "gptq", "sym": True}


def test_quantised_weights_count_as_they_are_served(quantised: Path) -> None:
    status, said = asked(str(quantised), "--memory", "1000Mi", "--device", "cpu")
    assert (status, said["stored_quantised"]) == (0, ["gptq of 4 bits"])
    assert said["weights_bytes"] == 4096 * (4096 // 32 * 19 + 4) + 4 * 1000 * 64
    table = CliRunner().invoke(cli, ["fit", str(quantised), "--memory", "400Mi", "--device", "cpu"])
    assert "weights as float32, quantised as stored" in table.stdout
    assert "engine.quantization" not in table.stdout


def test_gptqs_own_file_says_so_too_also_in_a_registry(quantised: Path) -> None:
    (quantised / "config.json").write_text(json.dumps(SETTINGS))
    (quantised / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 128}))
    with serving(quantised) as address:
        found = of_files(Over(quantised, address), "somewhere")
    for outlined in (found, outline.of_folder(quantised)):
        assert str(outlined.quantisation) == "gptq of 4 bits"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (GPTQ | {"bits": 2}, "its weights have 2 bits, not 4 or 8"),
        ({"quant_method": "aqlm"}, "it is quantised by the scheme 'aqlm'"),
        (GPTQ | {"group_size": 100}, "groups of 100 do not divide the 4096 inputs of layer.1"),
    ],
)
def test_a_quantised_model_that_is_not_read_ends_with_2_and_one_line(
    quantised: Path, config: dict[str, Any], words: str
) -> None:
    (quantised / "config.json").write_text(json.dumps(SETTINGS | {"quantization_config": config}))
    result = CliRunner().invoke(cli, ["fit", str(quantised)])
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_quantised_model_is_not_quantised_again(quantised: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    model = {"name": "m", "path": str(quantised)}
    config.write_text(json.dumps({"model": model, "engine": {"quantization": "int8"}}))
    result = CliRunner().invoke(cli, ["fit", "--config", str(config), "--memory", "1Gi"])
    assert result.exit_code == 2
    assert "set engine.quantization to none" in result.stderr


def test_a_person_gets_a_table(folder: Path) -> None:
    result = CliRunner().invoke(cli, ["fit", str(folder), "--memory", "1000Mi", "--device", "cpu"])
    assert result.exit_code == 1
    assert "64 MiB  weights as float32" in result.stdout
    assert "It does not fit. What would:" in result.stdout


def test_the_configuration_says_how_it_would_run(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    engine = {"dtype": "bfloat16", "maxModelLength": 512}
    config.write_text(json.dumps({"model": {"name": "m", "path": str(folder)}, "engine": engine}))
    status, said = asked("--config", str(config), "--memory", "1Gi", "--device", "cpu")
    assert (status, said["dtype"], said["max_model_length"]) == (0, "bfloat16", 512)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nowhere"], "is not a folder"),
        (["ftp://here/model"], "is not one of"),
        ([".", "--memory", "24 GB"], "not a size like 24Gi"),
        (["models:/bot/3"], "needs an MLflow server"),
    ],
)
def test_what_can_not_be_said_ends_with_2_and_one_line(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(cli, ["fit", *arguments], env={"MLFLOW_TRACKING_URI": ""})
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "size"), [("24Gi", 24 << 30), ("80G", 80 * 10**9), ("1.5Gi", 3 << 29), ("4096", 4096)]
)
def test_sizes_are_written_as_in_kubernetes(text: str, size: int) -> None:
    assert bytes_of(text) == size


class Over(FolderRegistry):
    """A folder whose files are handed out over HTTP, by a server that knows no ranges."""

    def __init__(self, folder: Path, address: str) -> None:
        super().__init__(folder)
        self.address = address

    def source(
        self, location: str, path: str, size: int | None = None
    ) -> stream.FileRequest | None:
        import requests

        def get(headers: Mapping[str, str]) -> Any:
            return requests.get(
                f"{self.address}/{path}", headers=dict(headers), stream=True, timeout=5
            )

        return stream.FileRequest(get) if self.address else None


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    with serving(folder) as found:
        yield found


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(folder))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_of_a_registry_only_the_small_pieces_are_fetched(folder: Path, address: str) -> None:
    registry = Over(folder, address)
    found = of_files(registry, "somewhere")
    assert found.tensors.keys() == {"layer.1.weight", "layer.2.weight"}
    assert found.settings["hidden_size"] == 64
    assert not [path for path in registry.downloads if path.endswith(".safetensors")]


def test_a_store_that_hands_out_whole_files_only_is_named(folder: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"whole files only; fetch the model"):
        of_files(Over(folder, ""), "s3://bucket/model")


def test_a_short_file_in_the_registry_is_corrupt_before_it_is_fetched(
    folder: Path, address: str
) -> None:
    registry = Over(folder, address)
    registry.extra = {"model-00001-of-00002.safetensors": 100}
    with pytest.raises(ModelCorrupt, match=r"model-00001-of-00002"):
        of_files(registry, "somewhere")


def test_settings_of_a_model_that_also_sees_are_those_of_its_language_model() -> None:
    content = json.dumps(
        {"hidden_size": 1, "text_config": {"hidden_size": 2}, "tie_word_embeddings": True}
    )
    assert outline.settings_of(content.encode()) == {
        "hidden_size": 2, "text_config": {"hidden_size": 2}, "tie_word_embeddings": True,
    }  # fmt: skip
