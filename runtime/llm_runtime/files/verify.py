"""Checks that files on disk are a complete model:
safetensors headers, the index of shards, the manifest."""

import hashlib
import json
import logging
import math
import os
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llm_runtime.errors import ModelCorrupt
from llm_runtime.files.locate import INDEX, check_links, index_shards

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
MAX_HEADER_BYTES = 16 << 20
"""Enough for a hundred thousand tensors.
The library allows 100 MB, but parsed JSON takes twenty times its size."""

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "U16": 16, "I16": 16, "F16": 16,
    "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
}  # fmt: skip


def verify_weights(folder: Path) -> None:
    """Check every safetensors file in `folder` and the index.
    Raises ModelCorrupt naming the file and what to do."""
    tensors = {file.name: safetensors_keys(file) for file in sorted(folder.glob("*.safetensors"))}
    for name, keys in tensors.items():
        _refuse_adapter_leftovers(name, keys)
    index = folder / INDEX
    if not index.is_file():
        return
    for tensor, file in index_shards(index.read_bytes()).items():
        if tensor not in tensors.get(file, ()):
            raise ModelCorrupt(
                f"{INDEX} places {tensor} in {file}, which does not hold it; upload index and shards again"
            )


def safetensors_keys(file: Path) -> frozenset[str]:
    """Names of the tensors in `file`. Raises as `safetensors_header` does."""
    return frozenset(safetensors_header(file))


def safetensors_header(file: Path) -> dict[str, Any]:
    """`dtype`, `shape` and `data_offsets` of each tensor in `file` (format: 8 bytes of length,
    JSON, data).

    Raises ModelCorrupt unless the header is bounded and valid and the file is exactly as long as it
    says.
    """
    with file.open("rb") as stream:
        return header_of(file.name, file.stat().st_size, stream.read)


def header_of(file: str, size: int, read: Callable[[int], bytes]) -> dict[str, Any]:
    """The header as `safetensors_header` returns it, for a file of `size` bytes. `read` returns its
    next bytes from the beginning."""
    prefix = read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise _corrupt(file, f"its header claims {length} bytes in a file of {size}")
    header = read(length)
    try:
        tensors: dict[str, Any] = json.loads(header)
        tensors.pop("__metadata__", None)
        spans = sorted(_span(tensor) for tensor in tensors.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _corrupt(file, f"its header is not valid: {error!r}") from error
    _check_spans(file, spans, size - 8 - length)
    return tensors


def write_manifest(
    folder: Path, source: str, known: Mapping[str, str] | None = None, sub_path: str = ""
) -> None:
    """Write the manifest: size and SHA-256 of every file.
    Its presence means that the folder is complete.

    `source` and `sub_path` say where the files came from. `known` has digests by file name that the
    download already computed.
    """
    names = sorted(file.name for file in folder.iterdir() if file.name != MANIFEST)
    digests = dict(known or {})
    unknown = [name for name in names if name not in digests]
    with ThreadPoolExecutor(max_workers=2) as pool:  # Hashing releases the interpreter lock.
        digests.update(
            zip(unknown, pool.map(lambda name: _sha256(folder / name), unknown), strict=True)
        )
    files = {
        name: {"size": (folder / name).stat().st_size, "sha256": digests[name]} for name in names
    }
    content = json.dumps(
        {"schema": 1, "source": source, "subPath": sub_path, "files": files}, indent=1
    )
    (folder / MANIFEST).write_text(content, encoding="utf-8")


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """The manifest that `write_manifest` wrote; empty if it is missing or invalid."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def is_whole(folder: Path) -> bool:
    """Whether every file of the manifest exists with its size, and none leads elsewhere.
    Cheap enough for every start.

    A download makes no link. Whoever else writes to the volume could add one.
    """
    try:
        check_links(folder)
        files: Mapping[str, Any] = read_manifest(folder)["files"]
        return bool(files) and all(
            (folder / name).stat().st_size == entry["size"] for name, entry in files.items()
        )
    except ModelCorrupt as error:
        log.warning("a version in the cache is not used: %s", error)
        return False
    except (OSError, ValueError, KeyError, TypeError):
        return False


def sync_folder(folder: Path) -> None:
    """Sync the folder's files, then the folder itself, to the disk."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _span(tensor: Any) -> tuple[int, int]:
    begin, end = tensor["data_offsets"]
    shape = tensor["shape"]
    if not all(isinstance(size, int) and size >= 0 for size in (*shape, begin, end)):
        raise ValueError("negative or fractional sizes")
    bits = math.prod(shape) * _BITS[tensor["dtype"]]
    if (end - begin) * 8 != bits:
        raise ValueError(f"a tensor of shape {shape} takes {end - begin} bytes")
    return begin, end


def _check_spans(file: str, spans: list[tuple[int, int]], data_bytes: int) -> None:
    position = 0
    for begin, end in spans:
        if begin != position:
            raise _corrupt(
                file, f"its tensors overlap or leave a gap at byte {position} of the data"
            )
        position = end
    if position != data_bytes:
        raise _corrupt(
            file, f"its header describes {position} bytes of data, but {data_bytes} are there"
        )


def _refuse_adapter_leftovers(name: str, keys: frozenset[str]) -> None:
    left = sorted(key for key in keys if ".base_layer." in key or ".lora_" in key)
    if left:
        raise ModelCorrupt(
            f"{name} holds the inner parts of a PEFT model ({left[0]} and {len(left) - 1} more): loaded as it is, it "
            "would run with random weights; call merge_and_unload before logging and register a new version"
        )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _corrupt(file: str, what: str) -> ModelCorrupt:
    return ModelCorrupt(
        f"{file} is not a whole safetensors file: {what}; upload it to the registry again"
    )
