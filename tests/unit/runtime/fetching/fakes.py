"""Model folders without weights worth the name, and a registry in a folder."""

import json
import struct
import threading
from pathlib import Path

from llm_runtime.contract import MlflowVersion
from llm_runtime.fetching.part import Part

VERSION = MlflowVersion(tracking_uri="http://mlflow", name="bot", version="3")


def safetensors(tensors: dict[str, int], header: bytes | None = None) -> bytes:
    """A safetensors file of U8 vectors with these lengths."""
    entries = {}
    position = 0
    for name, length in tensors.items():
        entries[name] = {
            "dtype": "U8",
            "shape": [length],
            "data_offsets": [position, position + length],
        }
        position += length
    content = json.dumps(entries).encode() if header is None else header
    return struct.pack("<Q", len(content)) + content + bytes(position)


def write_model(folder: Path, sharded: bool = False, tokenizer: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    if sharded:
        shards = {
            "a.weight": "model-00001-of-00002.safetensors",
            "b.weight": "model-00002-of-00002.safetensors",
        }
        for tensor, file in shards.items():
            (folder / file).write_bytes(safetensors({tensor: 10}))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    else:
        (folder / "model.safetensors").write_bytes(safetensors({"a.weight": 10, "b.weight": 20}))
    if tokenizer:
        write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")


class FolderRegistry:
    """`models.registry.Registry` over a local folder;
    `faults` are raised by the first downloads, one each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: list[Exception] = []
        self.cut_bytes = 0
        self.refused: set[str] = set()
        self.downloads: list[str] = []
        self.extra: dict[str, int | None] = {}
        self._lock = threading.Lock()

    def resolve(self, version: MlflowVersion) -> str:
        return f"mlflow-artifacts:/{version.name}"

    def sizes(self, location: str) -> dict[str, int | None]:
        files = {
            p.relative_to(self.folder).as_posix(): p.stat().st_size
            for p in self.folder.rglob("*")
            if p.is_file()
        }
        return {**files, **self.extra}

    def download(self, location: str, path: str, part: Part) -> None:
        with self._lock:
            self.downloads.append(path)
            fault = self.faults.pop(0) if self.faults else None
        if path in self.refused:
            raise ConnectionResetError(path)
        content = (self.folder / path).read_bytes()
        part.path.write_bytes(content[: len(content) - self.cut_bytes])
        if fault is not None:
            raise fault
