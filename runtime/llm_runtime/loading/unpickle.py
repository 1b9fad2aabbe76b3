"""Converts pickled weights to safetensors:
`python -m llm_runtime.loading.unpickle PLAN`, in a separate process.

PyTorch's `weights_only` unpickles tensors and nothing else. Its safety depends on PyTorch, so it
runs in a process without anyone else's data. One shard is in memory at a time. PLAN is JSON. A
fatal error is the last line of output, as with `fetch`.
"""

import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from llm_runtime import logs
from llm_runtime.errors import Fatal, ModelCorrupt, ModelUnsupported
from llm_runtime.files.locate import INDEX

HEADS = (
    "lm_head.weight",
    "embed_out.weight",
    "output_projection.weight",
    "transformer.lm_head.weight",
)
_UNFINISHED = ".shard-{:05d}"


def main() -> None:
    """Entry point."""
    plan = json.loads(sys.argv[1])
    try:
        convert(
            [Path(file) for file in plan["files"]],
            Path(plan["target"]),
            plan["name"],
            plan["shard_bytes"],
        )
    except Fatal as fatal:
        logs.report_fatal(fatal.to_report())
        raise SystemExit(1) from fatal


def convert(files: list[Path], target: Path, name: str, shard_bytes: int) -> None:
    """Write all tensors of `files` to `target` as `name`.safetensors,
    or as shards of about `shard_bytes` and an index.

    Raises ModelCorrupt and ModelUnsupported.
    """
    shards: list[dict[str, int]] = []
    for shard in _shards(files, shard_bytes):
        tensors = _apart(shard)
        save_file(tensors, target / _UNFINISHED.format(len(shards)), metadata={"format": "pt"})
        shards.append({key: tensor.nbytes for key, tensor in tensors.items()})
    names = [f"{name}-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [f"{name}.safetensors"]
    else:
        places = {key: file for file, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(size for shard in shards for size in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (target / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    for number, file in enumerate(names):
        (target / _UNFINISHED.format(number)).rename(target / file)


def _shards(files: list[Path], shard_bytes: int) -> Iterator[dict[str, Any]]:
    shard: dict[str, Any] = {}
    seen: set[str] = set()
    for file in files:
        for key, tensor in _tensors(file).items():
            if key in seen:
                raise ModelCorrupt(
                    f"{file.name} holds {key}, which an earlier file also holds; upload the model again"
                )
            seen.add(key)
            if shard and sum(each.nbytes for each in shard.values()) + tensor.nbytes > shard_bytes:
                yield shard
                shard = {}
            shard[key] = tensor
    if not shard:
        raise ModelCorrupt(f"{', '.join(file.name for file in files)} hold no tensors")
    yield shard


def _tensors(file: Path) -> dict[str, Any]:
    try:
        content = _unpickled(file)
    except pickle.UnpicklingError as error:
        raise ModelUnsupported(
            f"{file.name} holds more than tensors, so it was not unpickled: {_first_line(error)}; its author should "
            "save it with save_pretrained(…, safe_serialization=True)"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise ModelCorrupt(
            f"{file.name} is not a complete PyTorch file: {_first_line(error)}"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in content.values()
    ):
        raise ModelUnsupported(
            f"{file.name} is not a state_dict: it holds something other than tensors by name"
        )
    return _without_tied_heads(content)


def _unpickled(file: Path) -> Any:
    try:
        # Memory-mapped, so that only the shard being written is in memory.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(
            file, map_location="cpu", weights_only=True
        )  # Files from before PyTorch 1.6 can't be mapped.


def _without_tied_heads(tensors: dict[str, Any]) -> dict[str, Any]:
    """Drop output layers tied to the embedding:
    safetensors can't share tensors, and Transformers ties them again."""
    places = [_place(tensor) for tensor in tensors.values()]
    return {
        key: tensor for key, tensor in tensors.items() if key not in HEADS or places.count(_place(tensor)) == 1
    }  # fmt: skip


def _place(tensor: Any) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)


def _apart(tensors: dict[str, Any]) -> dict[str, Any]:
    """Contiguous tensors that share no memory, as safetensors requires."""
    storages = [tensor.untyped_storage().data_ptr() for tensor in tensors.values()]
    return {
        key: tensor.clone(memory_format=torch.contiguous_format)
        if storages.count(tensor.untyped_storage().data_ptr()) > 1
        else tensor.contiguous()
        for key, tensor in tensors.items()
    }


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300]


if __name__ == "__main__":
    main()
